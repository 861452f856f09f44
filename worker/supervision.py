"""The worker's side of runmh: launching one, hearing from it, finding it again. Knows nothing of CRIU."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from worker import locks, spares
from worker.errors import JobFailed
from worker.paths import Paths
from worker.process import Process


class Running(NamedTuple):
    """A service that runs.

    Attributes:
        runmh: its supervisor.
        init: PID 1 of its namespace.
        main: its own process; None if init has no child at the moment.
        mounts: (target, source) of each file system it sees besides its root.
        pipe: inode of the pipe that its output goes to.
        image: id of the image it was restored from; empty if it was started.
    """

    runmh: Process
    init: Process
    main: Process | None
    mounts: list[tuple[str, str]]
    pipe: int
    image: str

    def wait(self, seconds: float) -> bool:
        """Wait until the service has ended and its supervisor has said how; False if that takes longer."""
        deadline = time.monotonic() + seconds
        return self.runmh.wait(seconds) and self.init.wait(max(0.0, deadline - time.monotonic()))

    @property
    def shown_pid(self) -> int:
        """The PID that an operator sees in ps."""
        return (self.main or self.init).pid


class Supervisor:
    """A runmh that was launched and has not said yet how it went."""

    def __init__(self, paths: Paths, service_id: str, ready: int, launcher: subprocess.Popen[bytes]) -> None:
        self._paths = paths
        self._launcher = launcher
        self._service_id = service_id
        self._ready = ready

    def settle(self, timeout: float) -> dict[str, Any]:
        """Return what runmh says: its state.

        Raises:
            JobFailed: it died or is silent.
        """
        deadline = time.monotonic() + timeout
        heard = b""
        try:
            while not heard.endswith(b"\n"):
                readable, _, _ = select.select([self._ready], [], [], max(0.0, deadline - time.monotonic()))
                data = os.read(self._ready, 65536) if readable else b""
                if not data:
                    break
                heard += data
        finally:
            os.close(self._ready)
            # It ended when it had forked the runmh proper, long before that had anything to say.
            self._launcher.wait()
        if not heard.endswith(b"\n"):
            raise JobFailed(
                "supervisor_died",
                "The service's supervisor ended without a word.",
                f"Read {self._paths.runtime(self._service_id) / 'runmh.err'}.",
                last_lines(self._paths.runtime(self._service_id) / "runmh.err"),
            )
        state: dict[str, Any] = json.loads(heard)
        return state

    def running(self, timeout: float) -> Running:
        """Return the service once it runs.

        Raises:
            JobFailed: it could not be started.
        """
        state = self.settle(timeout)
        error = state.get("error")
        if error:
            raise JobFailed(error["code"], error["message"], error.get("remedy", ""))
        return _running(state)


def begin(
    paths: Paths,
    action: str,
    service_id: str,
    tini: str,
    *,
    descriptors: Mapping[str, int] | None = None,
    options: Mapping[str, str] | None = None,
) -> Supervisor:
    """Order a runmh, and return before it has begun.

    `settle` or `running` must be called on what is returned.

    Args:
        action: ``start`` or ``restore``.
        tini: the init program.
        descriptors: what it inherits, by the names of the options that tell it their numbers.
        options: more words of its command line.
    """
    listen, ready = os.pipe2(os.O_CLOEXEC)
    words = {
        "state-dir": str(paths.state_dir),
        "run-dir": str(paths.run_dir),
        "log-dir": str(paths.log_dir),
        "tini": tini,
        **(options or {}),
    }
    try:
        with (paths.runtime(service_id) / "runmh.err").open("ab") as errors:
            launcher = spares.order(
                f"{action} {service_id} {paths.run_dir}",
                [action, service_id, *(f"--{name}={value}" for name, value in words.items())],
                {"ready-fd": ready, "errors": errors.fileno(), **(descriptors or {})},
            )
    finally:
        os.close(ready)
    return Supervisor(paths, service_id, listen, launcher)


def launch(paths: Paths, action: str, service_id: str, tini: str, timeout: float) -> Running:
    """Launch a runmh and wait until its service runs.

    Raises:
        JobFailed: it could not be started.
    """
    return begin(paths, action, service_id, tini).running(timeout)


def give_up(paths: Paths, service_id: str) -> None:
    """Tell a runmh whose CRIU does not come to an end to end it, and all that it has restored so far."""
    state = read_state(paths, service_id)
    if state.get("phase") == "restoring":
        Process(*state["runmh"]).signal(signal.SIGTERM)


def read_state(paths: Paths, service_id: str) -> dict[str, Any]:
    """Return what a service's runmh wrote last; empty if there is nothing."""
    try:
        state: dict[str, Any] = json.loads(paths.state(service_id).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return state


def running(paths: Paths, service_id: str) -> Running | None:
    """Return the service if it lives now, whatever any row says, and even if its supervisor was killed."""
    state = read_state(paths, service_id)
    if state.get("phase") not in {"starting", "running"} or not state.get("init"):
        return None
    found = _running(state)
    return found if found.init.alive() else None


def is_at_work(paths: Paths, service_id: str) -> bool:
    """Tell whether a supervisor is about to start or restore the service, or to say how it ended."""
    with locks.held(paths.runtime(service_id) / "lock") as free:
        if free is not None or not paths.runtime(service_id).is_dir():
            return False
    found = running(paths, service_id)
    return found is None or not found.runmh.alive()


def _running(state: Mapping[str, Any]) -> Running:
    main = state.get("main")
    return Running(
        runmh=Process(*state["runmh"]),
        init=Process(*state["init"]),
        main=Process(*main) if main else None,
        mounts=[(target, source) for target, source in state["mounts"]],
        pipe=state["pipe"],
        image=state["image"],
    )


def last_lines(log: Path, count: int = 10) -> list[str]:
    """Return the last `count` lines of a text file; none if it is missing."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []
