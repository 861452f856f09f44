"""Control groups of services: one for each controller that a limit needs (cgroups(7), versions 1 and 2).

Each is made beside the others in a folder that this process may use, and is removed when its service has
ended. CRIU knows nothing of them: what it restores is born in them, for it runs in them itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from worker.namespaces import lines_of

_PREFIX = "miehisto-"
_OTHERS = "init"
"""The group of a container's processes that have no limits."""
_CONTROLLERS = {"memory": "memory", "tasks": "pids"}
_FILES = {
    ("memory", 1): "memory.limit_in_bytes",
    ("memory", 2): "memory.max",
    ("tasks", 1): "pids.max",
    ("tasks", 2): "pids.max",
}
# CRIU itself, and what it runs, is in the group while it restores: bytes and tasks.
_FOR_CRIU = {"memory": 64 << 20, "tasks": 32}
_TIMES_SWEPT = 20
_GONE = {errno.ENOENT, errno.ENODEV}
"""What the kernel says of a group that is removed before, and while, one of its files is opened."""
_EMPTY_WITHIN = 2.0
"""Seconds that the kernel may take to forget the last process of a group."""


class Home(NamedTuple):
    """Where groups of services with one kind of limit are made."""

    folder: str
    version: int


def home(limit: str, mounts: str | None = None, own: str | None = None) -> Home | None:
    """Find where groups for a limit can be made; None if this host has no such place.

    Args:
        limit: ``memory`` or ``tasks``.
        mounts, own: what to read instead of /proc/self/mountinfo and /proc/self/cgroup.
    """
    controller = _CONTROLLERS[limit]
    groups = _own_groups(_read("/proc/self/cgroup") if own is None else own)
    for line in lines_of("/proc/self/mountinfo") if mounts is None else mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, point = fields.split(" ")[3:5]
        if kind == "cgroup" and controller in options.split(","):
            folder = _seen_at(point, root, groups.get(controller, "/"))
            if os.access(folder, os.W_OK):
                return Home(folder, 1)
        elif kind == "cgroup2":
            # Its own group mostly has processes, and then may not have groups with limits below it.
            for folder in (_seen_at(point, root, groups.get("", "/")), point):
                if _gives(folder, controller):
                    return Home(folder, 2)
    return None


def _own_groups(text: str) -> dict[str, str]:
    """Return the present process's group by controller; "" for the one of version 2."""
    rows = (line.split(":", 2) for line in text.splitlines())
    return {name: path for _, names, path in rows for name in names.split(",")}


def _seen_at(point: str, root: str, group: str) -> str:
    """Return the folder of a group, of which `root` and what is below is mounted at `point`."""
    inside = group.removeprefix(root.rstrip("/"))
    folder = point + inside.rstrip("/")
    return folder if os.path.isdir(folder) else point


def _gives(folder: str, controller: str) -> bool:
    """Tell whether groups below a folder of version 2 have a controller; give it to them if possible."""
    if not _is_top(folder) and _read(f"{folder}/cgroup.procs"):
        # The kernel refuses memory below a group with processes. It grants pids, but to groups that then
        # take no process (cgroup-v2.rst, "No Internal Process Constraint" and "Threads").
        return False
    switch = f"{folder}/cgroup.subtree_control"
    if controller in _read(switch).split():
        return os.access(folder, os.W_OK)
    if controller not in _read(f"{folder}/cgroup.controllers").split():
        return False
    try:
        _write(switch, f"+{controller}")
    except OSError:
        return False
    return True


def _is_top(folder: str) -> bool:
    """Tell whether a folder of version 2 is the host's top group, which alone has no type."""
    return not os.path.exists(f"{folder}/cgroup.type")


def make_room(mounts: str | None = None, own: str | None = None) -> None:
    """Free a container's top group of processes, so that there may be groups with limits below it.

    A container with a control group namespace sees its own group as the top, with all its processes in it.
    They are moved into a group beside the services' ones, as systemd does when it starts in a container; what
    an engine starts in the container later follows the first process there. Elsewhere nothing is done.

    Args:
        mounts, own: what to read instead of /proc/self/mountinfo and /proc/self/cgroup.
    """
    for line in lines_of("/proc/self/mountinfo") if mounts is None else mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        root, point = fields.split(" ")[3:5]
        groups = _own_groups(_read("/proc/self/cgroup") if own is None else own)
        if rest.startswith("cgroup2 ") and root == groups.get("") == "/" and not _is_top(point):
            wanted = set(_CONTROLLERS.values()) & set(_read(f"{point}/cgroup.controllers").split())
            if wanted:
                _move_all(point, f"{point}/{_OTHERS}")
            for controller in wanted:  # at once: from then on nothing can get in there
                _gives(point, controller)
            return


def _move_all(source: str, goal: str) -> None:
    """Move a group's processes into another, which is made; one that cannot be moved stays."""
    deadline = time.monotonic() + _EMPTY_WITHIN
    with contextlib.suppress(OSError):  # it may not be written in most containers
        os.makedirs(goal, exist_ok=True)
        while (left := _read(f"{source}/cgroup.procs").split()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    _write(f"{goal}/cgroup.procs", pid)


def missing(limits: Mapping[str, int]) -> list[str]:
    """Return which of these limits cannot be set on this host."""
    return [name for name in limits if name in _CONTROLLERS and home(name) is None]


def make(service: str, limits: Mapping[str, int]) -> dict[str, str]:
    """Make the groups of a service.

    Args:
        service: its id.
        limits: memory in bytes, tasks; others are none of ours.

    Returns:
        The folder of each group, by its limit.

    Raises:
        OSError: the kernel refused.
    """
    made: dict[str, str] = {}
    for name in limits:
        if name in _CONTROLLERS:
            place = home(name)
            if place is None:
                raise OSError(f"this host has no control group for {name}")
            made[name] = f"{place.folder}/{_PREFIX}{service}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(made[name])
    return made


def limit(groups: Mapping[str, str], limits: Mapping[str, int], *, room_for_criu: bool = False) -> None:
    """Set the limits of a service's groups.

    Args:
        room_for_criu: set them higher, until `narrow` is called.

    Raises:
        OSError: the kernel refused.
    """
    for name, folder in groups.items():
        version = 2 if os.path.exists(f"{folder}/cgroup.controllers") else 1
        number = limits[name] + (_FOR_CRIU[name] if room_for_criu else 0)
        _write(f"{folder}/{_FILES[name, version]}", str(number))


def narrow(groups: Mapping[str, str], limits: Mapping[str, int]) -> None:
    """Take back the room that CRIU had; what the service itself has taken of it stays its own."""
    deadline = time.monotonic() + _EMPTY_WITHIN
    while True:
        try:
            limit(groups, limits)
        except OSError:
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
        return


def join(groups: Mapping[str, str], pid: int) -> None:
    """Put a process, and so the children that it will have, into a service's groups.

    Raises:
        OSError: the kernel refused.
    """
    for folder in groups.values():
        _write(f"{folder}/cgroup.procs", str(pid))


def put(
    service: str, limits: Mapping[str, int], pid: int = 0, *, room_for_criu: bool = False
) -> dict[str, str]:
    """Make, limit and join at once, and again where a worker that starts has taken the groups for left over.

    Args:
        service, limits: as for `make`.
        pid: who joins; 0 for nobody yet.
        room_for_criu: as for `limit`.

    Returns:
        What `make` does.

    Raises:
        OSError: the kernel refused, and nothing is left of them.
    """
    for left in reversed(range(_TIMES_SWEPT)):
        groups = make(service, limits)
        try:
            limit(groups, limits, room_for_criu=room_for_criu)
            if pid:
                join(groups, pid)
        except OSError as error:
            if not left or error.errno not in _GONE:
                remove(groups.values())
                raise
        else:
            break
    return groups


def killed_for_memory(groups: Mapping[str, str]) -> bool:
    """Tell whether the kernel has killed a process of the service because it had no more memory."""
    folder = groups.get("memory")
    if folder is None:
        return False
    # Version 2 and version 1 (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst).
    told = _read(f"{folder}/memory.events") or _read(f"{folder}/memory.oom_control")
    return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in told.splitlines())


def remove(groups: Iterable[str]) -> None:
    """Remove a service's groups, once their last process is gone; one that is still used stays."""
    deadline = time.monotonic() + _EMPTY_WITHIN
    for folder in groups:
        while os.path.isdir(folder):
            try:
                os.rmdir(folder)
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)


def sweep() -> None:
    """Remove groups that a supervisor which was killed has left; those in use cannot be removed."""
    for name in _CONTROLLERS:
        place = home(name)
        if place is None:
            continue
        for entry in os.listdir(place.folder):
            if entry.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{place.folder}/{entry}")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
