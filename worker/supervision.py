"""The worker's side of runmh: launching one, hearing from it, finding it again. Knows nothing of CRIU."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from worker import lines, locks, spares, units
from worker.durable import write_json
from worker.errors import JobFailed, describe
from worker.paths import Paths
from worker.process import Process, children, holders

log = logging.getLogger(__name__)

_LAST_BREATH = 1.0
"""Seconds after which a service that does not end will not because of a signal of CRIU's."""


class Running(NamedTuple):
    """A service that runs.

    Attributes:
        runmh: its supervisor.
        init: PID 1 of its namespace.
        main: its own process; None if init has no child at the moment.
        mounts: (target, source) of each file system it sees besides its root.
        pipe: inode of the pipe that its output goes to.
        image: id of the image it was restored from; empty if it was started.
        adopted: whether its first supervisor was killed, and `runmh` has taken over.
    """

    runmh: Process
    init: Process
    main: Process | None
    mounts: list[tuple[str, str]]
    pipe: int
    image: str
    adopted: bool = False

    def wait(self, seconds: float) -> bool:
        """Wait until the service has ended and its supervisor has said how; False if that takes longer."""
        deadline = time.monotonic() + seconds
        return self.runmh.wait(seconds) and self.init.wait(max(0.0, deadline - time.monotonic()))

    def has_been_killed(self) -> bool:
        """Tell whether it has ended or is about to: one that CRIU has just killed still seems to live."""
        return self.init.wait(_LAST_BREATH) or self.init.is_ending()

    @property
    def shown_pid(self) -> int:
        """The PID that an operator sees in ps."""
        return (self.main or self.init).pid


class Supervisor:
    """A runmh that was launched and has not said yet how it went."""

    def __init__(
        self, errors: Path, before: tuple[int, int] | None, ready: int, launcher: subprocess.Popen[bytes]
    ) -> None:
        self._errors = errors
        self._before = before
        self._launcher = launcher
        self._ready = ready
        self._heard = b""
        self._last: dict[str, Any] = {}

    def placed(self, timeout: float) -> bool:
        """Wait until what is restored is born in the service's control groups; False if it will not be."""
        return "placed" in self._hear(timeout)

    def _hear(self, timeout: float) -> dict[str, Any]:
        """Return the next thing that runmh says; nothing if it dies or is silent."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._heard:
            readable, _, _ = select.select([self._ready], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._ready, 65536) if readable else b""
            if not data:
                return {}
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        # Its last word is kept for whoever settles.
        self._last = said if "phase" in said else {}
        return said

    def settle(self, timeout: float) -> dict[str, Any]:
        """Return what runmh says at last: its state.

        Raises:
            JobFailed: it died or is silent.
        """
        try:
            while not self._last and self._hear(timeout):
                pass
        finally:
            os.close(self._ready)
            # It ended when it had forked the runmh proper, long before that had anything to say.
            self._launcher.wait()
        if not self._last:
            raise JobFailed(
                "supervisor_died",
                "The service's supervisor ended without a word.",
                f"Read {self._errors}.",
                lines.last(self._errors, self._before),
            )
        return self._last

    def running(self, timeout: float) -> Running:
        """Return the service once it runs.

        Raises:
            JobFailed: it could not be started.
        """
        state = self.settle(timeout)
        error = state.get("error")
        if error:
            raise JobFailed(error["code"], error["message"], error.get("remedy", ""))
        if state.get("no_scope"):
            _say_once(state["no_scope"])
        return _running(state)


def begin(
    paths: Paths,
    action: str,
    service_id: str,
    tini: str = "",
    *,
    descriptors: Mapping[str, int] | None = None,
    options: Mapping[str, str] | None = None,
    title: str = "",
) -> Supervisor:
    """Order a runmh, and return before it has begun.

    `settle` or `running` must be called on what is returned.

    Args:
        action: ``start``, ``restore`` or ``adopt``.
        tini: the init program; not needed to adopt.
        descriptors: what it inherits, by the names of the options that tell it their numbers.
        options: more words of its command line.
        title: what systemd shall call the service.

    Raises:
        JobFailed: it cannot be started.
    """
    if action != "adopt":
        paths.stopping(service_id).unlink(missing_ok=True)
    listen, ready = os.pipe2(os.O_CLOEXEC)
    words = {
        "state-dir": str(paths.state_dir),
        "run-dir": str(paths.run_dir),
        "log-dir": str(paths.log_dir),
        "tini": tini,
        **({"unit": units.own(), "title": title} if units.own() else {}),
        **(options or {}),
    }
    try:
        file = paths.runtime(service_id) / "runmh.err"
        before = lines.end_of(file)
        with file.open("ab") as errors:
            launcher = spares.order(
                f"{action} {service_id} {paths.run_dir}",
                [action, service_id, *(f"--{name}={value}" for name, value in words.items())],
                {"ready-fd": ready, "errors": errors.fileno(), **(descriptors or {})},
            )
    except OSError as error:
        os.close(listen)
        raise _not_started(error) from None
    except BaseException:
        os.close(listen)
        raise
    finally:
        os.close(ready)
    return Supervisor(file, before, listen, launcher)


def _not_started(error: OSError) -> JobFailed:
    return JobFailed(
        "supervisor_died", f"No supervisor can be started: {describe(error)}.", "Mend what is named."
    )


def launch(paths: Paths, action: str, service_id: str, tini: str, timeout: float, title: str = "") -> Running:
    """Launch a runmh and wait until its service runs.

    Args:
        title: what systemd shall call the service.

    Raises:
        JobFailed: it could not be started.
    """
    return begin(paths, action, service_id, tini, title=title).running(timeout)


@cache
def _say_once(reason: str) -> None:
    log.warning("systemd makes no scopes, services stay in the group of %s: %s", units.own(), reason)


def output_of(found: Running) -> int | None:
    """Return another read end of the pipe that a running service prints to; None if there is none.

    As long as one is open the service may print, though its supervisor be dead: nothing is lost, and nobody
    gets a SIGPIPE. What is printed waits in the pipe.

    Raises:
        OSError: there may be one, but it cannot be opened now.
    """
    path = Path(f"/proc/{found.init.pid}/fd/1")

    def is_its_pipe(status: os.stat_result) -> bool:
        # A file on a disk may have the same number, and the service may have put one there.
        return stat.S_ISFIFO(status.st_mode) and status.st_ino == found.pipe

    try:
        if not is_its_pipe(path.stat()):
            return None
        # A look at a pipe in /proc makes a new end of it (proc(5), "/proc/pid/fd").
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not is_its_pipe(os.fstat(descriptor)) or not found.init.alive():
        os.close(descriptor)
        return None
    return descriptor


def take_over(paths: Paths, service_id: str, output: int | None, timeout: float) -> bool:
    """Give a service whose supervisor was killed another one; False if it is not the time for that.

    Args:
        output: a read end of the service's pipe, as `output_of` returned it; None if none is held. Where the
            pipe is gone, what the service prints is lost, and only its end is watched.
        timeout: seconds that the new supervisor may take.

    Raises:
        JobFailed: that cannot be done.
    """
    with locks.held(paths.job_lock(service_id)) as lock:
        # A job on the service goes first: it may end it, or give it another supervisor.
        if lock is None:
            return False
        found = running(paths, service_id)
        if found is None or found.runmh.alive():
            return False
        try:
            reopened = output_of(found) if output is None else os.dup(output)
            with os.fdopen(_ended_pipe() if reopened is None else reopened, "rb") as pipe:
                _adopt(paths, service_id, pipe.fileno(), timeout)
        except OSError as error:
            raise _not_started(error) from None
    told = {"service": service_id}
    log.warning("service %s is taken over: its supervisor had been killed", service_id, extra=told)
    return True


def take_over_restored(paths: Paths, service_id: str, init: Process, timeout: float) -> Running:
    """Give a service another supervisor whose first was killed between CRIU's last question and its own word.

    Args:
        init: PID 1 of what CRIU has restored.
        timeout: seconds that the new supervisor may take.

    Raises:
        JobFailed: that cannot be done.
    """
    state = read_state(paths, service_id) | {"phase": "starting", "init": init}
    write_json(paths.state(service_id), state, durable=False)
    output = output_of(_running(state))
    if output is None:
        raise JobFailed(
            "supervisor_died",
            "The service's supervisor was killed while CRIU restored it, and the service ended, too.",
            "Restore it again, or start it anew, without its memory (mhctl service start).",
        )
    try:
        return _adopt(paths, service_id, output, timeout)
    finally:
        os.close(output)


def _adopt(paths: Paths, service_id: str, output: int, timeout: float) -> Running:
    return begin(paths, "adopt", service_id, descriptors={"pipe-fd": output}).running(timeout)


def _ended_pipe() -> int:
    """Return the read end of a pipe that nobody will write to."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.close(write)
    return read


def give_up(paths: Paths, service_id: str) -> None:
    """Tell a runmh whose CRIU does not come to an end to end it, and all that it has restored so far."""
    state = read_state(paths, service_id)
    if state.get("phase") == "restoring":
        Process(*state["runmh"]).signal(signal.SIGTERM)


def read_state(paths: Paths, service_id: str) -> dict[str, Any]:
    """Return what a service's runmh wrote last; empty if there is nothing, or nothing that it would write."""
    try:
        state = json.loads(paths.state(service_id).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return state if _is_state(state) else {}


def _is_state(state: object) -> bool:
    """Tell whether a JSON value has the shape of what runmh writes; a disk may have damaged it."""
    if not isinstance(state, dict) or not isinstance(state.get("phase"), str):
        return False
    processes = [state.get("runmh"), state.get("init"), state.get("main")]
    mounts, error = state.get("mounts", []), state.get("error")
    return (
        processes[0] is not None
        and all(each is None or _are(int, each, 2) for each in processes)
        and isinstance(mounts, list)
        and all(_are(str, mount, 2) for mount in mounts)
        and isinstance(state.get("pipe", 0), int)
        and isinstance(state.get("image", ""), str)
        and all(isinstance(state.get(key, 0), int | None) for key in ("exit_code", "exit_signal"))
        and (error is None or isinstance(error, dict))
        and (not state.get("init") or {"mounts", "pipe", "image"} <= set(state))
    )


def _are(kind: type, found: object, count: int) -> bool:
    """Tell whether `found` is a list of so many values of a kind."""
    return isinstance(found, list) and len(found) == count and all(type(each) is kind for each in found)


def running(paths: Paths, service_id: str) -> Running | None:
    """Return the service if it lives now, whatever any row says, and even if its supervisor was killed."""
    state = read_state(paths, service_id)
    if state.get("phase") not in {"starting", "running"} or not state.get("init"):
        return None
    found = _running(state)
    return found if found.init.alive() else None


def is_watched(paths: Paths, service_id: str) -> bool:
    """Tell whether the supervisor that has written of the service last lives."""
    runmh = read_state(paths, service_id).get("runmh")
    return runmh is not None and Process(*runmh).alive()


def living(paths: Paths) -> set[str]:
    """Return the ids of the services of which a process lives now."""
    return {
        folder.name
        for folder in (paths.run_dir / "services").iterdir()
        for state in [read_state(paths, folder.name)]
        if any(name in state and state[name] and Process(*state[name]).alive() for name in ("runmh", "init"))
    }


def is_at_work(paths: Paths, service_id: str) -> bool:
    """Tell whether a supervisor is about to start or restore the service, or to say how it ended."""
    with locks.held(paths.runtime(service_id) / "lock") as free:
        if free is not None or not paths.runtime(service_id).is_dir():
            return False
    found = running(paths, service_id)
    return found is None or not found.runmh.alive()


def end_hung(paths: Paths, service_id: str) -> None:
    """End a supervisor that hangs before its service runs or after it has ended, and what it has launched.

    To be called when it has had its time and nobody waits for it any more: its lock keeps every job off.
    """
    if not is_at_work(paths, service_id):
        return
    for holder in holders(str(paths.runtime(service_id) / "lock")):
        with contextlib.suppress(OSError):
            if b"runmh" not in Path(f"/proc/{holder.pid}/cmdline").read_bytes():
                continue  # who only asks whether the lock is free
            log.warning(
                "service %s: its supervisor hangs and is ended", service_id, extra={"service": service_id}
            )
            # The service first: it must not run on with nobody to watch it.
            for child in children(holder.pid):
                if found := Process.of(child):
                    found.signal(signal.SIGKILL)
            holder.signal(signal.SIGKILL)


def _running(state: Mapping[str, Any]) -> Running:
    main = state.get("main")
    return Running(
        runmh=Process(*state["runmh"]),
        init=Process(*state["init"]),
        main=Process(*main) if main else None,
        mounts=[(target, source) for target, source in state["mounts"]],
        pipe=state["pipe"],
        image=state["image"],
        adopted=bool(state.get("adopted")),
    )
