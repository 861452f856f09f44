"""The regular files that a tree of processes has open or maps, as /proc shows them. Knows no dumps."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from worker import process

# File systems that show the kernel: their files have no content of their own. Where a service sees them is
# our doing (worker/namespaces.py).
_KERNEL = ("/proc/", "/sys/")


class Held(NamedTuple):
    """One descriptor or mapping of a regular file.

    Attributes:
        path: as its process sees it.
        status: of the file itself, whatever lies at the path.
        writes: it was opened, or is mapped, for writing.
        appends: it can only be appended to.
    """

    path: str
    status: os.stat_result
    writes: bool
    appends: bool


def by_tree(init: int, *, sync: bool) -> Iterator[Held]:
    """Yield what a frozen tree holds, a file as often as it is held.

    Args:
        init: PID of the tree's first process.
        sync: let a later write to a mapped file show in its mtime.
    """
    for pid in process.tree(init):
        yield from _opened(pid)
        yield from _mapped(pid, sync=sync)


def _opened(pid: int) -> Iterator[Held]:
    """Yield each regular file that `pid` has open."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return  # it has ended
    for number in numbers:
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/{pid}/fd/{number}")
            if not path.startswith("/") or path.startswith(_KERNEL):
                continue
            status = os.stat(f"/proc/{pid}/fd/{number}")
            if not stat.S_ISREG(status.st_mode):
                continue
            with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
                flags = next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))
            writes = flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)
            appends = bool(flags & os.O_APPEND) and flags & os.O_ACCMODE == os.O_WRONLY
            yield Held(path, status, writes, appends)


def _mapped(pid: int, *, sync: bool) -> Iterator[Held]:
    """Yield each file that `pid` maps shared and writable, its descriptor perhaps long closed."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            if b"s " not in line:
                continue
            place, mode, _, _, inode, *_ = line.split(None, 5)
            if mode[1:4:2] != b"ws" or inode == b"0":
                continue
            # The kernel leaves out leading zeros there, but not here (proc_pid_map_files(5)).
            name = "-".join(f"{int(end, 16):x}" for end in place.split(b"-"))
            link = f"/proc/{pid}/map_files/{name}"
            with contextlib.suppress(OSError):
                path = os.readlink(link)
                if not path.startswith("/") or path.startswith(_KERNEL):
                    continue
                status = os.stat(link)
                if not stat.S_ISREG(status.st_mode):
                    continue
                if sync and status.st_nlink:
                    # A page that is dirty already takes further writes without a change of mtime; a clean
                    # one does not (mmap(2), the note on st_mtime).
                    _sync(link)
                    status = os.stat(link)
                yield Held(path, status, writes=True, appends=False)


def _sync(link: str) -> None:
    descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def lies_at(place: str, status: os.stat_result) -> bool:
    """Tell whether the host has this very file at `place`: neither deleted, nor of a private /tmp."""
    try:
        found = os.lstat(place)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)


def deleted(pids: Iterable[int]) -> dict[tuple[int, int], int]:
    """Return the bytes on the disk of each deleted file that these processes have open: CRIU stores them."""
    found = {}
    for pid in pids:
        for _, status, _, _ in _opened(pid):
            if status.st_nlink == 0:
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
