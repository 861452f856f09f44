"""What the worker asks of one runmh. Knows nothing of how that is done."""

from __future__ import annotations

import os

USAGE = (
    "usage: runmh start|restore|adopt SERVICE --state-dir=DIR --run-dir=DIR --log-dir=DIR --tini=PATH"
    " [--NAME=VALUE]..."
)


class Order:
    """What the worker asks of one runmh: its command line, read without argparse, which costs a megabyte.

    Attributes:
        action: ``start``, ``restore``, or ``adopt`` for a service whose runmh was killed.
        service: the service's id.
        state_dir, run_dir, log_dir: the node's folders.
        tini: the init program for a service.
        ready_fd: where a line of JSON says how it went, and before a restore one that it is placed.
        image: id of the image that is restored.
        mounts: JSON, the (target, source) pairs of the image.
        limits: JSON, what the restored service may have.
        criu: the CRIU binary.
        rpc_fd: the socket that CRIU gets its request from.
        probe_fd: the kernel probe that spares CRIU its own; -1 for none.
        lock_fd: a lock that CRIU shall hold as long as it works; -1 for none.
        pipe_fd: the read end of the service's output, for ``adopt``; -1 for none.
        unit: the worker's unit of systemd's, which is then asked for a scope; empty for none.
        title: what systemd shall call the service.
    """

    def __init__(self, words: list[str]) -> None:
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        try:
            self.action, self.service = (word for word in words if not word.startswith("--"))
            self.state_dir, self.run_dir = options["state-dir"], options["run-dir"]
            self.log_dir, self.tini = options["log-dir"], options["tini"]
        except (KeyError, ValueError):
            raise SystemExit(USAGE) from None
        if self.action not in {"start", "restore", "adopt"}:
            raise SystemExit(USAGE)
        self.ready_fd = int(options.get("ready-fd", 1))
        self.image = options.get("image", "")
        self.mounts = options.get("mounts", "[]")
        self.limits = options.get("limits", "{}")
        self.criu = options.get("criu", "criu")
        self.rpc_fd = int(options.get("rpc-fd", -1))
        self.probe_fd = int(options.get("probe-fd", -1))
        self.lock_fd = int(options.get("lock-fd", -1))
        self.pipe_fd = int(options.get("pipe-fd", -1))
        self.unit, self.title = options.get("unit", ""), options.get("title", "")
        if (self.action == "adopt") != (self.pipe_fd >= 0):
            raise SystemExit(USAGE)
        # None of them is for the service.
        for descriptor in (self.ready_fd, self.rpc_fd, self.probe_fd, self.lock_fd, self.pipe_fd):
            if descriptor > 2:
                os.set_inheritable(descriptor, False)
