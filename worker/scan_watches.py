"""Looks at what a running process watches (inotify, fanotify): whether CRIU would find it again.

It finds a file by its handle and, where a file system has none, by its number in the folders that it is told.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence

from worker import findings
from worker.findings import Finding

_WATCH = re.compile(r"^(?:inotify|fanotify) .*?(?:ino:(?P<ino>\w+) sdev:(?P<device>\w+)).*", re.MULTILINE)
_HANDLE = re.compile(
    r"fhandle-bytes:(?P<bytes>\w+) fhandle-type:(?P<type>\w+) f_handle:(?P<handle>[0-9a-f]*)"
)
_MOST_SEARCHED, _LONGEST_SEARCH = 20_000, 5.0
"""Files that are looked at in one folder, and seconds for all folders, to find what is watched. CRIU has no
such end, but its service stands still."""
_OF_THE_KERNEL = frozenset({"proc", "sysfs", "cgroup2", "cgroup", "devpts", "mqueue", "debugfs", "tracefs"})
"""File systems whose files cannot be named as a place to search: they are others after a restore."""
_BY_ITSELF = (
    *("/etc", "/var/spool", "/var/log", "/usr/share/dbus-1/system-services"),
    *("/var/lib/polkit-1/localauthority", "/usr/share/polkit-1/actions", "/lib/udev"),
)
"""Where CRIU also searches once it searches at all (criu/irmap.c)."""
_libc = ctypes.CDLL(None, use_errno=True)

Points = Mapping[int, Sequence[tuple[int, str, str]]]
"""Device, as the kernel counts it → the mounts of it: a process that sees it, its place, its kind."""


class Search:
    """Where what is watched lies: walks each folder once, however many watches there are."""

    def __init__(self) -> None:
        self._until: float | None = None
        self._walked: dict[tuple[int, int, str], dict[tuple[int, int], str]] = {}

    def folder_of(self, pid: int, top: str, device: int, inode: int) -> str:
        """Return the folder below `top`, as a process sees it, that has what is watched, or is it; or ""."""
        try:
            root = os.stat(f"/proc/{pid}/root")
        except OSError:
            return ""
        key = (root.st_dev, root.st_ino, top)
        if key not in self._walked:
            self._walked[key] = dict(self._walk(pid, top))
        return self._walked[key].get((os.makedev(device >> 20, device & 0xFFFFF), inode), "")

    def _walk(self, pid: int, top: str) -> Iterator[tuple[tuple[int, int], str]]:
        """Yield what lies in a folder, by device and inode, and where CRIU would have to search for it."""
        if self._until is None:
            self._until = time.monotonic() + _LONGEST_SEARCH
        try:
            here = opened(pid, top)
        except OSError:
            return
        looked_at = 0
        try:
            yield _identity(os.fstat(here)), top
            # By descriptors: whatever the service puts there meanwhile, no link leads out of it.
            for inner, folders, files, descriptor in os.fwalk(".", dir_fd=here):
                folder = os.path.normpath(f"{top}/{inner}")
                for name in (*folders, *files):
                    looked_at += 1
                    try:
                        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    except OSError:
                        continue
                    yield _identity(status), f"{folder}/{name}" if stat.S_ISDIR(status.st_mode) else folder
                if looked_at > _MOST_SEARCHED or time.monotonic() > self._until:
                    return
        except OSError:
            return
        finally:
            os.close(here)


def look(
    pid: int, number: int, about: str, points: Points, folders: Sequence[str], search: Search
) -> Iterator[Finding]:
    """Yield what CRIU would not find again of what a descriptor watches.

    Args:
        about: what /proc says of the descriptor (fdinfo).
        points: the mounts that the service sees.
        folders: where CRIU shall search (option force_irmap).
        search: what was searched of the service so far.
    """
    for watch in _WATCH.finditer(about):
        device, inode = int(watch["device"], 16), int(watch["ino"], 16)
        handle = _HANDLE.search(watch[0])
        if handle and _can_be_opened(points.get(device, []), handle):
            continue
        where = (*folders, *_BY_ITSELF) if folders else ()
        if any(search.folder_of(pid, folder, device, inode) for folder in where):
            continue
        kinds = {kind for _, _, kind in points.get(device, [])}
        place = "" if folders else _place(pid, points.get(device, []), device, inode, search)
        kind = " and ".join(sorted(kinds)) or "a file system outside the service's mounts"
        yield findings.watched_file(pid, number, kind, place, folders)


def _place(pid: int, points: Sequence[tuple[int, str, str]], device: int, inode: int, search: Search) -> str:
    """Return a folder in which CRIU would find what is watched; "" if an option can name none."""
    try:
        likely = [os.readlink(f"/proc/{pid}/cwd")]
    except OSError:
        return ""
    likely += [*_BY_ITSELF, *(point for _, point, kind in points if kind not in _OF_THE_KERNEL)]
    for folder in dict.fromkeys(likely):
        found = search.folder_of(pid, folder, device, inode) if folder != "/" else ""
        if found and found.isprintable():
            return found
    return ""


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _can_be_opened(points: Sequence[tuple[int, str, str]], handle: re.Match[str]) -> bool:
    """Tell whether a file can be found by its handle, as CRIU finds what is watched."""
    data = bytes.fromhex(handle["handle"])
    packed = struct.pack("=Ii", len(data), int(handle["type"], 16)) + data
    for pid, point, _ in points:
        try:
            where = opened(pid, point)
        except OSError:
            continue
        try:
            found = _libc.open_by_handle_at(where, packed, os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(where)
        if found >= 0:
            os.close(found)
            return True
    return False


def opened(pid: int, point: str) -> int:
    """Open the place of a mount, as a process sees it, for reading, if it is a folder or a regular file.

    The service may have put anything there since its mounts were read: no link is followed, which would lead
    out to the host's files, and no fifo or device is opened, which may wait or do something.

    Raises:
        OSError: it is not there any more, or something else.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        for name in filter(None, point.split("/")):
            inner = os.open(name, flags, dir_fd=here)
            os.close(here)
            here = inner
        if stat.S_IFMT(os.fstat(here).st_mode) not in (stat.S_IFDIR, stat.S_IFREG):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), point)
        # The very thing that was looked at (proc(5)); a handle cannot be found by a descriptor of O_PATH.
        return os.open(f"/proc/self/fd/{here}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(here)
