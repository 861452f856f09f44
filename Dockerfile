# One image for every part of Miehistö; docker-compose.yml says which part a container runs.
FROM debian:trixie-slim

WORKDIR /opt/miehisto/app
COPY . .
# Debian's packages, a CRIU with its pycriu, and the pinned requirements: as on a host, but for the probe.
RUN scripts/setup --image \
    && python3 -B -m scripts.links install /usr/local/bin \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /root/.cache

ENTRYPOINT ["miehistod"]
