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
        self._descriptor = _opened(path)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append `data`, rotating first if the file is over its limit."""
        if self._size >= self._limit:
            with contextlib.suppress(OSError):  # the old one goes on
                self._rotate()
        with contextlib.suppress(OSError):
            self._size += os.write(self._descriptor, data)

    def _rotate(self) -> None:
        fresh = f"{self._path}.0"
        # First: where no file can be made, none of the old ones is moved out.
        descriptor = _opened(fresh)
        try:
            for number in range(self._kept, 0, -1):
                newer = f"{self._path}.{number - 1}" if number > 1 else self._path
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, f"{self._path}.{number}")
            os.replace(fresh, self._path)
        except OSError:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, 0


def _opened(path: str) -> int:
    """Return a descriptor of the log `path`, which the site reads through the group of the folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    with contextlib.suppress(OSError):
        os.fchown(descriptor, -1, os.stat(os.path.dirname(path)).st_gid)
    return descriptor
