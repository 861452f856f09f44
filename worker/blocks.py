"""Copies a range of one file to another, by sharing blocks where the file system can. Knows no more."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

BLOCK = 4096
WORTH_SHARING = 64 << 10
"""Bytes from which it is: a file system takes longer to share a few blocks than to copy them."""
_FICLONERANGE = 0x4020940D
_CANNOT = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}


class Short(Exception):
    """A file ended before its end."""


def share(source: int, at: int, target: int, to: int, length: int) -> bool:
    """Let `target` have the very blocks of `source` (ioctl_ficlonerange(2)); False if that cannot be.

    Args:
        source, target: descriptors.
        at, to: where in each, in bytes.
        length: bytes; whole blocks, or up to the end of `source`.

    Raises:
        OSError: the disk is full or broken.
    """
    if length < WORTH_SHARING:
        return False
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, at, length, to))
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def copy(source: int, at: int, target: int, to: int, length: int) -> None:
    """Copy bytes; arguments as for `share`.

    Raises:
        Short: `source` has not so many.
        OSError: the disk is full or broken.
    """
    if length < WORTH_SHARING:
        found = os.pread(source, length, at)
        if len(found) < length:
            raise Short
        while found:
            written = os.pwrite(target, found, to)
            to, found = to + written, found[written:]
        return
    os.lseek(target, to, os.SEEK_SET)
    while length:
        count = os.sendfile(target, source, at, min(length, 1 << 30))
        if not count:
            raise Short
        at += count
        length -= count


def data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where in a file of `size` bytes there is content, and how long: holes are left out (lseek(2))."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole to its end
            raise
        at = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        if at > begin:
            yield begin, at - begin
