"""Reads CRIU's image files as if an enemy had written them: regular files only, bounded, one kind of error.

Knows their shape (CRIU's images/*.proto, through pycriu) and nothing of what they mean.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

import pycriu.images

LARGEST = 64 << 20
"""Bytes of one file that are read; CRIU's largest, pagemap of a process with 100 GiB, has less."""

Entry = dict[str, Any]


class Unreadable(Exception):
    """A file of an image cannot be read: missing, damaged, not of the kind that its name says, too large."""


class Held:
    """The files of an image, opened by who may before that right is given up.

    Args:
        folder: of the image.

    Raises:
        Unreadable: there is no such folder, a file is none, or there are more than can be open at once.
    """

    def __init__(self, folder: Path) -> None:
        try:
            names = [path.name for path in folder.iterdir() if path.suffix == ".img"]
        except OSError as error:
            raise Unreadable(f"{folder.name}: {error.strerror}") from None
        self.files = {name: opened(folder, name) for name in sorted(names)}


Image = Path | Held
"""The folder of an image, or what was opened of it."""


def names(image: Image, start: str) -> list[str]:
    """Return the names of an image's files that begin so, sorted."""
    found = image.files if isinstance(image, Held) else (path.name for path in image.glob("*.img"))
    return sorted(name for name in found if name.startswith(start))


def opened(image: Image, name: str) -> io.BufferedReader:
    """Open a regular file of an image, and no other.

    Raises:
        Unreadable: there is none.
    """
    if isinstance(image, Held):
        if name not in image.files:
            raise Unreadable(f"{name}: No such file or directory")
        again = os.fdopen(os.dup(image.files[name].fileno()), "rb")
        again.seek(0)
        return again
    try:
        descriptor = os.open(image / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable(f"{name}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable(f"{name}: is not a regular file")
    return os.fdopen(descriptor, "rb")


def entries(image: Image, name: str) -> list[Entry]:
    """Return the decoded entries of one of CRIU's files.

    Raises:
        Unreadable: it is missing, damaged or too large.
    """
    with opened(image, name) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise Unreadable(f"{name}: is too large to be looked into")
        try:
            found = pycriu.images.load(file, no_payload=True)["entries"]
        except MemoryError:
            raise
        except Exception as error:  # pycriu raises what its decoder or struct raises, plain Exception too
            raise Unreadable(f"{name}: {type(error).__name__} while it was decoded") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise Unreadable(f"{name}: holds no entries")
    return found


def some_entries(image: Image, name: str) -> list[Entry]:
    """Return the entries of a file that an image may do without; none if it is missing.

    Raises:
        Unreadable: it is there and damaged.
    """
    return entries(image, name) if name in names(image, name) else []


def part(entry: Entry, name: str) -> Entry:
    """Return a message inside an entry; empty if it is not there."""
    found = entry.get(name)
    return found if isinstance(found, dict) else {}


def number(entry: Entry, name: str, otherwise: int = 0) -> int:
    """Return a number of an entry; `otherwise` if it is not there or none."""
    found = entry.get(name)
    return found if isinstance(found, int) else otherwise


def text(value: object, most: int = 1024) -> str:
    """Return text for a row: bounded, without what a database or JSON cannot hold."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return str(value)[:most].replace("\0", "").encode("utf-8", "backslashreplace").decode() if value else ""
