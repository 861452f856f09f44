"""The last lines of a text file, as far as they are new. Knows nothing of who writes them."""

from __future__ import annotations

import os
from pathlib import Path


def end_of(log: Path) -> tuple[int, int] | None:
    """Return where a text file ends now, for `last`: its inode and its size; None if it is missing."""
    try:
        found = log.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size


def last(log: Path, before: tuple[int, int] | None = None, count: int = 10) -> list[str]:
    """Return the last `count` lines of a text file; none if it is missing.

    Args:
        before: what `end_of` returned once; only what has been written since is read, also if the file was
            rotated meanwhile.
    """
    try:
        with log.open("rb") as file:
            start = file.seek(0, os.SEEK_END) - 16384
            if before is not None and before[0] == os.fstat(file.fileno()).st_ino:
                start = max(start, before[1])
            file.seek(max(0, start))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []
