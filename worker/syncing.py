"""A folder's files made to survive a power cut, all together. Knows nothing of what is in them."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worker.durable import sync_folder

_AT_ONCE = 8
_LITTLE = 64 << 20
"""Bytes that a disk writes so fast that nobody minds if most of them are others'."""

_libc = ctypes.CDLL(None, use_errno=True)


def sync_files(folder: Path) -> None:
    """Let the files in a folder and their names survive a power cut.

    Where little waits to be written on this host, one syncfs(2) does it: a third of the time that an fsync of
    each takes on ext4. Where much does, it would wait for what others have written, and each file is synced
    by itself, many at a time, so that the file system's journal takes them in few writes.

    Raises:
        OSError: the disk is full or broken.
    """
    if _waiting() <= _LITTLE:
        _sync_file_system(folder)
        return
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sync") as threads:
        list(threads.map(_sync_file, folder.iterdir()))
    sync_folder(folder)


def _waiting() -> int:
    """Return the bytes that this host has not yet written to its disks (proc_meminfo(5))."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        said = dict(line.split(":", 1) for line in file)
    return sum(int(said[name].split()[0]) * 1024 for name in ("Dirty", "Writeback"))


def _sync_file_system(folder: Path) -> None:
    """Sync the file system that holds a folder; since Linux 5.8 it tells of an error (syncfs(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
