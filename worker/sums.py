"""Sums and syncs files that still grow, so that a large image is sealed soon after its last byte.

Knows nothing of images, but that files named `pages-*.img` only grow at their end.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from worker import digests, syncing

_CHUNK, _LEAST = 1 << 20, 64 << 10
_PAUSE = 0.01
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class _Growing:
    """One file, summed up to where it has been read."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb", buffering=0)
        self.sum = digests.begin()
        self.length = 0

    def catch_up(self) -> None:
        """Read what has been added."""
        there = os.fstat(self.file.fileno()).st_size - self.length
        # One that grows while it is read is not read on in as small pieces as it began with.
        data = memoryview(bytearray(min(max(there, _LEAST), _CHUNK)))
        while count := self.file.readinto(data):
            self.sum.update(data[:count])
            # The disk begins to write what is summed, so that the sync at the end has little left to do.
            _libc.sync_file_range(self.file.fileno(), self.length, count, _SYNC_FILE_RANGE_WRITE)
            self.length += count


class GrowingSums:
    """Sums the pages in `folder` in a thread of its own while the block writes them.

    Args:
        folder: where the files appear.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1
        self._files: dict[str, _Growing] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sums", daemon=True)

    def __enter__(self) -> GrowingSums:
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        os.close(self._descriptor)
        for growing in self._files.values():
            growing.file.close()

    def _stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE):
            self._look()

    def _look(self) -> None:
        for path in self._folder.glob("pages-*.img"):
            if path.name not in self._files:
                self._files[path.name] = _Growing(path)
            self._files[path.name].catch_up()

    def settle(self, paths: Sequence[Path]) -> dict[str, str]:
        """Return by name the sums of files of the folder that are complete.

        Raises:
            OSError: one cannot be read.
        """
        self._stop()
        for path in paths:
            if path.name not in self._files:
                self._files[path.name] = _Growing(path)
            self._files[path.name].catch_up()
        return {path.name: self._files[path.name].sum.hexdigest() for path in paths}

    def sync(self) -> None:
        """Let all that is in the folder survive a power cut.

        Raises:
            OSError: the disk is full or broken.
        """
        syncing.sync_files(self._descriptor)
