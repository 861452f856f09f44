"""The file that receives what a service prints, rotated by size. Knows nothing of who prints it."""

from __future__ import annotations

import contextlib
import os

LIMIT = 10 * 1024 * 1024
KEPT = 3


class RotatedLog:
    """Append bytes to `path`; past `limit` bytes it becomes `path.1`, that `path.2`, up to `kept` old files.

    A full disk loses lines, never the service: what can't be written is dropped.
    """

    def __init__(self, path: str, limit: int = LIMIT, kept: int = KEPT) -> None:
        self._path = path
        self._limit = limit
        self._kept = kept
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._descriptor).st_size
        # The site reads logs as its own unprivileged user, through the group of the folder.
        group = os.stat(os.path.dirname(self._path)).st_gid
        with contextlib.suppress(OSError):
            os.fchown(self._descriptor, -1, group)

    def write(self, data: bytes) -> None:
        """Append `data`, rotating first if the file is over its limit."""
        try:
            if self._size >= self._limit:
                self._rotate()
            self._size += os.write(self._descriptor, data)
        except OSError:
            return

    def _rotate(self) -> None:
        for number in range(self._kept, 0, -1):
            older = f"{self._path}.{number}"
            newer = f"{self._path}.{number - 1}" if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        # Only now: where no new file can be made, the old one goes on under its new name.
        full = self._descriptor
        self._open()
        os.close(full)
