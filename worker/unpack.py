"""Makes files from what an image carries, in a folder that nobody else gets into. Knows no place for them."""

from __future__ import annotations

import base64
import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from worker.blocks import BLOCK, copy, share
from worker.carry import xattrs

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make(new: int, items: Sequence[Mapping[str, Any]], content: int, *, alone: str | None) -> None:
    """Make what the items say in the folder `new`, which nobody else gets into.

    Links to elsewhere are made last, so that no path of the list can lead over one.

    Args:
        new: a descriptor of the folder.
        items: of one root, as `carry_index.read` returns them.
        content: a descriptor of the pack.
        alone: the name of the root if it is a file.

    Raises:
        OSError: the disk is full, or the list makes no sense.
    """
    folders, links = [], []
    end = os.fstat(content).st_size
    for item in items:
        path = alone or item["path"]
        if item["kind"] == "folder":
            if path:
                os.mkdir(path, 0o700, dir_fd=new)
                folders.append(item)
        elif item["kind"] == "link":
            links.append(item)
        elif "same_as" in item:
            os.link(item["same_as"], path, src_dir_fd=new, dst_dir_fd=new, follow_symlinks=False)
        elif item["kind"] == "fifo":
            os.mkfifo(path, 0o600, dir_fd=new)
            os.chown(path, item["uid"], item["gid"], dir_fd=new)
            os.chmod(path, item["mode"], dir_fd=new)
            os.utime(path, ns=(item["mtime"], item["mtime"]), dir_fd=new)
        else:
            _make_file(new, path, item, content, end)
    for item in links:
        os.symlink(item["target"], item["path"], dir_fd=new)
        os.chown(item["path"], item["uid"], item["gid"], dir_fd=new, follow_symlinks=False)
        os.utime(item["path"], ns=(item["mtime"], item["mtime"]), dir_fd=new, follow_symlinks=False)
    for item in reversed(folders):
        descriptor = os.open(item["path"], _FOLDER, dir_fd=new)
        try:
            give(descriptor, item)
        finally:
            os.close(descriptor)


def _make_file(new: int, path: str, item: Mapping[str, Any], content: int, end: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o600, dir_fd=new)
    try:
        os.ftruncate(file, item["size"])
        for at, begin, length in item["pieces"]:
            # Blocks are shared as a whole; what is too much is cut off below.
            whole = min(length + -length % BLOCK, end - begin)
            if not share(content, begin, file, at, whole):
                copy(content, begin, file, at, length)
        os.ftruncate(file, item["size"])
        give(file, item)
    finally:
        os.close(file)


def give(descriptor: int, known: Mapping[str, Any]) -> None:
    """Give a file or folder its owner, permissions, attributes and time, in the order in which they last."""
    os.fchown(descriptor, known["uid"], known["gid"])
    os.fchmod(descriptor, known["mode"])
    for name in xattrs(descriptor).keys() - known["xattrs"].keys():
        os.removexattr(descriptor, name)
    for name, value in known["xattrs"].items():
        with contextlib.suppress(OSError):  # a file system without
            os.setxattr(descriptor, name, base64.b64decode(value))
    os.utime(descriptor, ns=(known["mtime"], known["mtime"]))


def attributes(descriptor: int) -> dict[str, Any]:
    """Return of a file or folder what `give` can give back."""
    status = os.fstat(descriptor)
    return {
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime_ns,
        "xattrs": xattrs(descriptor),
    }
