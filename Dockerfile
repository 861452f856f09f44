# One image for every part of Miehistö; docker-compose.yml says which part a container runs.
FROM debian:trixie-slim

# What set-up would install. Services run these programs, and their images want the very bytes again: another
# version of the code is built on this layer as the engine has it.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        age ca-certificates nftables passwd patchelf python3 python3-venv redis-server tini util-linux zstd \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/miehisto/app
COPY . .
# A CRIU with its pycriu, and the pinned requirements: as on a host, but for the probe.
RUN scripts/setup --image \
    && python3 -B -m scripts.links install /usr/local/bin \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /root/.cache

ENTRYPOINT ["miehistod"]
