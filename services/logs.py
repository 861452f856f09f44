"""Reads a service's log: its last lines, and what is added, also across a rotation. It knows no HTTP.

runmh renames ID.log to ID.log.1 when it is full, that to ID.log.2, and begins a new ID.log.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

from django.conf import settings

CHUNK = 64 * 1024
MOST = 4 * 1024 * 1024  # bytes of old lines that one answer holds
POLL = 0.2  # seconds
KEPT = 3
"""Full files that runmh keeps (worker/runmh/log.py)."""


def path_of(service_id: str) -> Path:
    """Return the path of a service's log; it may not exist."""
    return Path(settings.MIEHISTO_LOG_DIR) / f"{service_id}.log"


def tail(service_id: str, lines: int) -> tuple[bytes, int, int]:
    """Return the last lines (at most 4 MiB), and where to go on: inode and offset of the current file.

    The inode is 0 when there is no file yet.
    """
    path = path_of(service_id)
    text, inode, offset = _end_of(path, lines)
    missing = lines - text.count(b"\n")
    if missing > 0 and len(text) == offset:
        older, _inode, _offset = _end_of(path.with_name(path.name + ".1"), missing)
        text = older + text
    return text, inode, offset


def _end_of(path: Path, lines: int) -> tuple[bytes, int, int]:
    """Read whole chunks from the end of one file until they hold enough lines."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return b"", 0, 0
    with file:
        status = os.fstat(file.fileno())
        begin = status.st_size
        text = b""
        # One newline more than lines: the one that ends the line before the first.
        while begin > 0 and text.count(b"\n") <= lines and len(text) < MOST:
            step = min(CHUNK, begin)
            begin -= step
            file.seek(begin)
            text = file.read(step) + text
    last = text.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(last), status.st_ino, status.st_size


def search(service_id: str, wanted: str, most: int) -> list[str]:
    """Return the last lines of all that is kept that have a text, whatever its case.

    Args:
        most: of them.
    """
    path = path_of(service_id)
    found: deque[str] = deque(maxlen=most)
    for file in (*(path.with_name(f"{path.name}.{number}") for number in range(KEPT, 0, -1)), path):
        with suppress(FileNotFoundError), file.open("rb") as lines:
            read = (line.decode(errors="replace").rstrip("\n") for line in lines)
            found.extend(line for line in read if wanted.lower() in line.lower())
    return list(found)


async def follow(inode: int, offset: int, path: Path) -> AsyncGenerator[bytes, None]:
    """Yield what is added to the log from `offset` of the file `inode` on; b"" when nothing was for a while.

    It ends only when the caller stops asking.
    """
    file = None
    try:
        while True:
            if file is None:
                try:
                    file = path.open("rb")
                except FileNotFoundError:
                    await asyncio.sleep(POLL)
                    yield b""
                    continue
                # Another file than the one that was read: it was rotated in between, so from its beginning.
                file.seek(offset if os.fstat(file.fileno()).st_ino == inode else 0)
            added = file.read(CHUNK)
            if added:
                yield added
                continue
            if _replaced(path, file.fileno()):
                rest = file.read()  # written between the last look and the rotation
                file.close()
                file = None
                if rest:
                    yield rest
                continue
            await asyncio.sleep(POLL)
            yield b""
    finally:
        if file is not None:
            file.close()


def _replaced(path: Path, descriptor: int) -> bool:
    """Tell whether `path` is another file by now, or the open one was cut short."""
    mine = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False  # between rename and new file; or deleted, then there is nothing more to come
    return there.st_ino != mine.st_ino or os.lseek(descriptor, 0, os.SEEK_CUR) > mine.st_size
