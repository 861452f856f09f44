"""Restores whose supervisor was killed before it said how they went: what they restored is found, and judged.

CRIU makes a service's init long before it lets it run, and the supervisor writes down which one it is only
when CRIU has ended. So the worker does it, who hears it from CRIU, while CRIU goes on. Knows no jobs.
"""

from __future__ import annotations

import logging
import signal
from typing import Any

from worker import criu, mending, supervision
from worker.durable import write_json
from worker.paths import Paths
from worker.process import Process

log = logging.getLogger(__name__)

_DIES_WITHIN = 1.0
_BROKEN_OFF = {"message": "Its restore was broken off, and nothing of it is left."}


def note(paths: Paths, service_id: str, init: Process) -> None:
    """Write, beside what its supervisor has written, which init CRIU has made. That overwrites it in the end.

    Raises:
        OSError: there is no room for it, so there would be none for the supervisor's word, either.
    """
    state = supervision.read_state(paths, service_id)
    if state.get("phase") == "restoring":
        write_json(paths.state(service_id), state | {"init": init}, durable=False)


def settle(paths: Paths, service_id: str) -> bool:
    """Let what was restored be taken over if CRIU came to its end, and end it if not.

    To be called by who holds the service's job lock: no CRIU is at work, and no worker waits for one.

    Returns:
        False if it was killed and has not ended yet.
    """
    init = _left(paths, service_id)
    if init is None:
        return True
    log_file = paths.runtime(service_id) / "criu" / "restore.log"
    found: dict[str, Any] = {"phase": "starting"}
    if not criu.has_restored(log_file):
        log.warning("service %s was half restored, and is ended", service_id, extra={"service": service_id})
        if init.signal(signal.SIGKILL) and not init.wait(_DIES_WITHIN):
            return False
        mending.remove_scratch(log_file)
        found = {"phase": "failed", "error": _BROKEN_OFF}
    write_json(paths.state(service_id), supervision.read_state(paths, service_id) | found, durable=False)
    return True


def end(paths: Paths, service_id: str, timeout: float) -> None:
    """End what was restored, and the CRIU that may still work on it; for the worker whose restore has failed.

    Args:
        timeout: seconds to wait for its end.
    """
    init = _left(paths, service_id)
    if init is not None:
        criu.kill_holder(paths.job_lock(service_id))
        if init.signal(signal.SIGKILL):
            init.wait(timeout)


def _left(paths: Paths, service_id: str) -> Process | None:
    """Return the init of a restore whose supervisor was killed; None if there is no such one."""
    state = supervision.read_state(paths, service_id)
    if state.get("phase") != "restoring" or not state.get("init"):
        return None
    # One that was killed lets go of locks and pipes, by which that is noticed, a moment before it is dead.
    if not Process(*state["runmh"]).wait(_DIES_WITHIN):
        return None
    return Process(*state["init"])
