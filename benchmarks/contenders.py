"""Miehistö, bare CRIU, crun, runc and podman, each as a way to dump and restore. Times nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks import bare, engines
from benchmarks.engines import Engines
from benchmarks.node import Node, free_port, small, wait_for
from worker import connections
from worker.supervision import Running

_T = TypeVar("_T")

# What Miehistö always promises, and an engine only when it is asked.
_PROMISES = ("--tcp-established", "--file-locks")


class Place(NamedTuple):
    """Where the contenders work."""

    node: Node
    scratch: Path
    criu: str
    root: Path
    keep_probe: bool


class Contender(ABC):
    """One way to dump and restore a server. Only `dump` and `restore` are timed."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.port = free_port()
        self.command = [str(engines.interpreter()), *small(self.port)[1:]]
        self.folder = scratch / re.sub(r"\W+", "-", name)
        self.image = self.folder / "image"
        self.folder.mkdir()
        # The thread in whose mount namespace this one works; None is the caller's.
        self.thread: Executor | None = None

    def do(self, work: Callable[[], _T]) -> _T:
        """Do `work` in this contender's own thread."""
        return self.thread.submit(work).result() if self.thread else work()

    @abstractmethod
    def start(self) -> None:
        """Start the server."""

    @abstractmethod
    def dump(self) -> None:
        """Dump the server and end it."""

    @abstractmethod
    def criu_version(self) -> str:
        """Return the CRIU that has made the image which lies there now."""

    def after_dump(self) -> None:  # noqa: B027 - not every contender has to
        """Do what has to be done before the server can be restored."""

    @abstractmethod
    def restore(self) -> None:
        """Restore the server."""

    def after_restore(self) -> None:  # noqa: B027 - not every contender has to
        """Remove the image; the server answers."""

    @abstractmethod
    def end(self) -> None:
        """End the server and leave nothing, whatever state things are in."""


class Miehisto(Contender):
    """mhctl, as an operator types it."""

    def __init__(self, place: Place) -> None:
        super().__init__("Miehistö", place.scratch)
        self._node = place.node
        self._service = ""
        self._id = ""

    def start(self) -> None:
        self._service = self._node.mhctl("service", "create", "--", *self.command)

    def dump(self) -> None:
        self._id = Path(self._node.mhctl("service", "dump", self._service)).name

    def criu_version(self) -> str:
        return str(self._node.json("image", "show", self._id)["criu_version"])

    def restore(self) -> None:
        self._node.mhctl("service", "restore", "--from", self._id)

    def after_restore(self) -> None:
        self._node.mhctl("image", "delete", self._id)

    def end(self) -> None:
        if self._service:
            self._node.mhctl("service", "delete", "--stop", self._service)


class Bare(Contender):
    """criu itself, on the tree that runmh made. What it restores has no supervisor: a round starts anew."""

    def __init__(self, place: Place) -> None:
        super().__init__("bare CRIU", place.scratch)
        self._place = place
        self._service = ""
        self._running: Running | None = None

    def start(self) -> None:
        self._service = self._place.node.mhctl("service", "create", "--", *self.command)
        self._running = self._place.node.running(self._service)

    def dump(self) -> None:
        assert self._running is not None
        try:
            bare.dump(self._place.criu, self._running, self.image)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(engines.last_error(self.image / "dump.log")) from error

    def criu_version(self) -> str:
        return _version(self.image / "dump.log")

    def restore(self) -> None:
        assert self._running is not None
        try:
            bare.restore(self._place.criu, self._running, self.image, self._place.root)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(engines.last_error(self.image / "restore.log")) from error

    def after_restore(self) -> None:
        bare.end(self.image)
        time.sleep(0.6)  # the agent writes that the service has ended
        self._place.node.mhctl("service", "start", self._service)
        wait_for(self.port)
        self._running = self._place.node.running(self._service)

    def end(self) -> None:
        if (self.image / "pid").exists():
            bare.end(self.image)
        elif (self.image / "inventory.img").exists():
            connections.release(connections.run_of(self.image))
        if self._service:
            time.sleep(0.6)
            self._place.node.mhctl("service", "delete", "--stop", self._service)


class Plain(Contender):
    """crun or runc by itself, on a bundle."""

    def __init__(self, place: Place, peers: Engines, runtime: str) -> None:
        super().__init__(f"{runtime} {peers.versions[runtime]}", place.scratch)
        self._peers = peers
        self._runtime = runtime
        self._log = self.folder / "errors"
        self._options = ["--image-path", str(self.image), "--work-path", str(self.image), *_PROMISES]

    def _call(self, *words: str) -> None:
        self._log.write_text("")
        program = str(self._peers.programs / self._runtime)
        self._peers.call(
            program, "--root", str(self.folder / "state"), "--log", str(self._log), *words, log=self._log
        )

    def start(self) -> None:
        bundle = self.folder / "config.json"
        subprocess.run([self._peers.programs / "runc", "spec"], cwd=self.folder, check=True)
        config = json.loads(bundle.read_text())
        config["root"] = {"path": str(self._peers.root), "readonly": True}
        config["process"].update(terminal=False, args=self.command)
        config["linux"]["cgroupsPath"] = f"/{engines.GROUP}/{self._runtime}"
        config["linux"]["resources"] = {}
        # The host's network, as a service of Miehistö has it.
        config["linux"]["namespaces"] = [
            one for one in config["linux"]["namespaces"] if one["type"] not in {"network", "cgroup"}
        ]
        bundle.write_text(json.dumps(config))
        self._call("run", "--detach", "--bundle", str(self.folder), engines.GROUP)

    def dump(self) -> None:
        self.image.mkdir()
        self._call("checkpoint", *self._options, engines.GROUP)

    def criu_version(self) -> str:
        return _version(self.image / "dump.log")

    def restore(self) -> None:
        self._call("restore", "--detach", "--bundle", str(self.folder), *self._options, engines.GROUP)

    def after_restore(self) -> None:
        shutil.rmtree(self.image)

    def end(self) -> None:
        self._call("delete", "--force", engines.GROUP)


class Podman(Contender):
    """podman with one of the two; the checkpoint stays in the container's own folder, or is exported."""

    def __init__(self, place: Place, peers: Engines, runtime: str, *, export: bool = False) -> None:
        name = f"podman {peers.versions['podman']} with {runtime}" + " (exported)" * export
        super().__init__(name, place.scratch)
        self._peers = peers
        self._runtime = runtime
        self._container = f"{engines.GROUP}-{runtime}{'-exported' * export}"
        self._archive = self.folder / "checkpoint.tar" if export else None
        # Only the first dump keeps CRIU's log, to tell which CRIU that was.
        self._keep = ["--keep"]

    def _call(self, *words: str) -> str:
        return self._peers.call(str(self._peers.programs / "podman"), "--runtime", self._runtime, *words)

    def start(self) -> None:
        network = ["--network", "host", "--cgroup-parent", f"/{engines.GROUP}"]
        self._call(
            "run",
            "--detach",
            "--name",
            self._container,
            *network,
            "--pull",
            "never",
            engines.IMAGE,
            *self.command,
        )

    def dump(self) -> None:
        export = ["--export", str(self._archive), "--compress", "none"] if self._archive else []
        self._call("container", "checkpoint", *_PROMISES, *self._keep, *export, self._container)

    def criu_version(self) -> str:
        self._keep = []
        folder = self._call("container", "inspect", "--format", "{{.StaticDir}}", self._container)
        return _version(Path(folder) / "dump.log")

    def after_dump(self) -> None:
        if self._archive:
            self._call("rm", self._container)

    def restore(self) -> None:
        which = ["--import", str(self._archive)] if self._archive else [self._container]
        self._call("container", "restore", *_PROMISES, *which)

    def after_restore(self) -> None:
        if self._archive:
            self._archive.unlink()

    def end(self) -> None:
        self._call("rm", "--force", "--ignore", "--time", "0", self._container)


def _version(log: Path) -> str:
    """Return the version that a log of CRIU's begins with."""
    found = re.search(r"Version: (\S+)", log.read_text(errors="replace")) if log.exists() else None
    return found[1] if found else "of a version that it did not log"
