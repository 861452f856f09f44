"""systemd's scope for a service, a control group of its own below miehisto.slice. Knows nothing of what runs.

A scope holds processes that systemd has not started (systemd.scope(5)), and ends with the last of them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence

from worker import bus

SLICE = "miehisto.slice"
SYSTEMD = "/run/systemd/private"
"""systemctl's own way to systemd, when it is root's: there without a bus, and open to root alone."""
PATIENCE = 2.0
"""Seconds that systemd may take; a service then stays in the worker's control group."""
_AGAIN = 0.02
"""Seconds after which is asked again while the scope of the service's last run still ends."""
_TO_CANCEL = 0.5
"""Seconds more that it gets to take back what it has not done."""
_PATH, _MANAGER = "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"
_EXISTS = "org.freedesktop.systemd1.UnitExists"
_KNOWS_OOM_POLICY = 253
_NO_LIMIT = 2**64 - 1


class NoScope(Exception):
    """systemd has made none; says why."""


def name_of(service: str) -> str:
    """Return the name of a service's scope."""
    return f"miehisto-{service}.scope"


def enter(service: str, pids: Sequence[int], worker: str, title: str) -> str:
    """Put processes, and so what they fork from now on, into a new scope, and return its name.

    Args:
        service: the service's id.
        pids: all that there is of it so far.
        worker: the worker's unit, which is to end before the service does.
        title: what systemctl shall call it; "" for its id.

    Raises:
        NoScope: they stay where they are.
    """
    return _asked(lambda systemd: _start(systemd, service, pids, worker, title))


def follow(service: str, worker: str) -> str:
    """Put the calling process into the scope of a service that runs already, or a new one; return its name.

    Args:
        service, worker: as for `enter`.

    Raises:
        NoScope: it stays where it is.
    """

    def ask(systemd: bus.Connection) -> str:
        name, me = name_of(service), [os.getpid()]
        try:
            systemd.call(_PATH, _MANAGER, "AttachProcessesToUnit", "ssau", name, "", me)
        except bus.ErrorReply:  # there is none, for none could be made, or only its last supervisor was in it
            return _start(systemd, service, me, worker, "")
        return name

    return _asked(ask)


def _asked(ask: Callable[[bus.Connection], str]) -> str:
    try:
        systemd = bus.Connection(SYSTEMD, PATIENCE)
        try:
            return ask(systemd)
        finally:
            systemd.close()
    except bus.ErrorReply as refusal:
        raise NoScope(f"{refusal} ({refusal.name})") from None
    except OSError as error:
        raise NoScope(error.strerror or str(error)) from None


def _start(systemd: bus.Connection, service: str, pids: Sequence[int], worker: str, title: str) -> str:
    name = name_of(service)
    shown = "".join(letter if letter.isprintable() else "?" for letter in title or service)
    properties: list[tuple[str, tuple[str, object]]] = [
        ("Description", ("s", f"Miehistö's service {shown}")),
        ("Slice", ("s", SLICE)),
        ("PIDs", ("au", pids)),
        # Who starts earlier ends later. A drain needs the service alive, and a boot brings back what ran when
        # the worker had last looked.
        ("Before", ("as", [worker, "miehisto-drain.service"])),
        # Its name is wanted again, even if the kernel has killed one of its processes for memory.
        ("CollectMode", ("s", "inactive-or-failed")),
        # Only what is delegated may be followed; it needs no controllers for that.
        ("DelegateControllers", ("as", [])),
        ("TasksMax", ("t", _NO_LIMIT)),
    ]
    if _version(systemd) >= _KNOWS_OOM_POLICY:
        properties.append(("OOMPolicy", ("s", "continue")))
    job = _begun(systemd, name, properties)
    try:
        while True:
            _, ended, _, result = systemd.signal("JobRemoved").arguments("uoss")
            if ended == job:
                break
    except OSError:
        # It waits for another job, such as a stop of the worker; what it would move then must stay.
        _cancel(job)
        raise
    if result != "done":
        raise NoScope(f"Its start ended as {result!r}")
    return name


def _cancel(job: str) -> None:
    """Take a job back, if systemd still hears."""
    with contextlib.suppress(OSError, bus.ErrorReply):
        systemd = bus.Connection(SYSTEMD, _TO_CANCEL)
        try:
            systemd.call(job, "org.freedesktop.systemd1.Job", "Cancel")
        finally:
            systemd.close()


def _begun(systemd: bus.Connection, name: str, properties: object) -> str:
    """Have a scope begun and return the job that does it."""
    while True:
        try:
            asked = systemd.call(
                _PATH, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail", properties, []
            )
            return str(*asked.arguments("o"))
        except bus.ErrorReply as refusal:
            # The service's last run has only just ended, and its scope is about to.
            if refusal.name != _EXISTS or not systemd.left():
                raise
            time.sleep(_AGAIN)


def _version(systemd: bus.Connection) -> int:
    """Return systemd's version, of a text like "252.38-1~deb12u1", "257~rc1" or "v256"."""
    asked = systemd.call(_PATH, "org.freedesktop.DBus.Properties", "Get", "ss", _MANAGER, "Version")
    number = 0
    for letter in str(*asked.arguments("v")).removeprefix("v"):
        if not letter.isdigit():
            break
        number = number * 10 + int(letter)
    return number
