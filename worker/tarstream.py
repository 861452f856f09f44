"""A tar stream of plain files: writing one, and reading one that somebody else has shaped.

The reader takes what the writer makes and nothing else: regular files, with at most one extended header
(POSIX pax, for a long name or 8 GiB and more) before each. Python's tarfile would read extended headers of
any size into memory and knows links, devices and sparse files. Knows nothing of images.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
CHUNK = 1 << 20
END = bytes(2 * BLOCK)
_LARGEST_PAX = 16 * 1024
_LONGEST_PADDING = 1 << 20
_MAGIC = b"ustar\x0000"
_OCTAL = re.compile(rb" *([0-7]{1,11})[ \0]*\Z")
_RECORD = re.compile(rb"([1-9][0-9]{0,4}) ")
_REGULAR, _EXTENDED = b"0", b"x"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a FIFO",
}


class BadStream(ValueError):
    """The stream is none of ours; the text says what is wrong with it, as the rest of a sentence."""


class CutOff(BadStream):
    """The stream ends before its end; what came of it so far may be right."""


class Member(NamedTuple):
    """One file of a stream; its size is in bytes."""

    name: str
    size: int


def header(name: str, size: int) -> bytes:
    """Return what stands before the content of a file: mode 0600, owner root, no time.

    Raises:
        UnicodeEncodeError: the name is not text.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o600, "root", "root"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """Return what stands after the content of a file of `size` bytes."""
    return bytes(-size % BLOCK)


class Reader:
    """Reads a stream once, member by member.

    Args:
        read: returns at most so many bytes, b"" at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = 0
        self._padding = 0

    def next(self) -> Member | None:
        """Return the next file, or None after the last; what is left of the present one is passed over.

        Raises:
            BadStream: what comes is no plain file.
        """
        for _ in self.content():
            pass
        self._exactly(self._padding)
        self._padding = 0
        block = self._exactly(BLOCK)
        if block == bytes(BLOCK):
            self._end()
            return None
        extended: dict[bytes, bytes] = {}
        if _kind(block) == _EXTENDED:
            size = _octal(block[124:136], "size")
            if size > _LARGEST_PAX:
                raise BadStream(f"has an extended header of {size} bytes")
            extended = _records(self._exactly(size))
            self._exactly(-size % BLOCK)
            block = self._exactly(BLOCK)
        member = _member(block, extended)
        self._left, self._padding = member.size, -member.size % BLOCK
        return member

    def content(self) -> Iterator[bytes]:
        """Yield what is left of the present file.

        Raises:
            CutOff: the stream ends in it.
        """
        while self._left:
            data = self._read(min(self._left, CHUNK))
            if not data:
                raise CutOff("ends too early")
            self._left -= len(data)
            yield data

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            data = self._read(count)
            if not data:
                raise CutOff("ends too early")
            parts.append(data)
            count -= len(data)
        return b"".join(parts)

    def _end(self) -> None:
        """Refuse anything but a second block of zeros, and some more of them to fill up, behind the first."""
        if self._exactly(BLOCK) != bytes(BLOCK):
            raise BadStream("has something behind its end")
        read = 0
        while data := self._read(CHUNK):
            read += len(data)
            if read > _LONGEST_PADDING or data.strip(b"\0"):
                raise BadStream("has something behind its end")


def _kind(block: bytes) -> bytes:
    """Return the kind of member that a header block begins; refuse what is no header of POSIX' (pax(1))."""
    expected = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if block[257:265] != _MAGIC or _octal(block[148:156], "checksum") != expected:
        raise BadStream("has a damaged header")
    return block[156:157]


def _member(block: bytes, extended: dict[bytes, bytes]) -> Member:
    kind = _kind(block)
    path = block[:100].rstrip(b"\0")
    prefix = block[345:500].rstrip(b"\0")
    raw = extended.get(b"path") or (prefix + b"/" + path if prefix else path)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise BadStream(f"has the name {raw[:80]!r}") from None
    if kind != _REGULAR:
        raise BadStream(f"has {_KINDS.get(kind, 'something that is no file')}, {name[:80]!r}")
    if block[157:257].strip(b"\0"):
        raise BadStream(f"has a link's target at {name[:80]!r}")
    size = extended.get(b"size")
    if size is None:
        return Member(name, _octal(block[124:136], "size"))
    if not re.fullmatch(rb"[0-9]{1,18}", size):
        raise BadStream(f"has a bad size at {name[:80]!r}")
    return Member(name, int(size))


def _octal(field: bytes, what: str) -> int:
    found = _OCTAL.match(field)
    if found is None:
        raise BadStream(f"has a bad {what} in a header")
    return int(found[1], 8)


def _records(data: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header, `LENGTH KEY=VALUE\\n` each; only path and size are known."""
    found: dict[bytes, bytes] = {}
    while data:
        length = _RECORD.match(data)
        end = int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise BadStream("has a damaged extended header")
        key, equals, text = data[length.end() : end - 1].partition(b"=")
        if not equals or key not in (b"path", b"size") or key in found or not text:
            raise BadStream(f"has an extended header with {key[:40]!r}")
        found[key] = text
        data = data[end:]
    return found
