"""Walks a folder that its owner may change meanwhile: by descriptors, and no link is ever followed.

Knows nothing of what is done with what it finds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

MOST_LEVELS = 128
"""Folders within folders; each holds a descriptor open. A tree built to exhaust them is refused."""

OURS = ".miehisto-"
"""How the names of what we put beside a service's data begin."""
_SKIPPED = (OURS, "link_remap.")
"""Not the service's: ours, and the links by which CRIU finds files that have no name any more."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TreeRefused(Exception):
    """A path or a tree that is not touched; its text says why, in a sentence."""


class Entry(NamedTuple):
    """One thing in a tree.

    Attributes:
        path: relative to the walk's root; empty for the root itself.
        folder: a descriptor of the folder that holds it, good until the walk goes on.
        name: its name in there.
        status: what lstat(2) says of it; of a folder, what fstat(2) says of the one that is walked.
    """

    path: str
    folder: int
    name: str
    status: os.stat_result


@contextmanager
def parent_of(path: str) -> Iterator[tuple[int, str]]:
    """Open the folder that holds `path`, an absolute path without links in it.

    Yields:
        A descriptor of the folder, and the last name of `path`.

    Raises:
        TreeRefused: `path` is not absolute, is /, or leads over a link or what is no folder.
        FileNotFoundError: a folder on the way does not exist.
    """
    *folders, name = [part for part in path.split("/") if part] or [""]
    if not path.startswith("/") or not name or ".." in (*folders, name):
        raise TreeRefused(f"{path} is not an absolute path of a file or folder.")
    here = os.open("/", _FOLDER)
    try:
        for depth, folder in enumerate(folders, 1):
            try:
                inner = os.open(folder, _FOLDER, dir_fd=here)
            except NotADirectoryError:
                wrong = "/" + "/".join(folders[:depth])
                raise TreeRefused(
                    f"{wrong} is a link or no folder; name the place that {path} is really at."
                ) from None
            os.close(here)
            here = inner
        yield here, name
    finally:
        os.close(here)


def walk(path: str, *, leave_out: tuple[str, ...] = _SKIPPED) -> Iterator[Entry]:
    """Yield `path` and all below it on the same file system, a folder before what is in it.

    Args:
        path: an absolute path without links in it.
        leave_out: beginnings of names that are passed over.

    Raises:
        TreeRefused: as for `parent_of`, or the tree is too deep, or another file system is mounted in it.
        OSError: `path` is gone, or cannot be read.
    """
    with parent_of(path) as (folder, name):
        yield from _walk(folder, name, "", None, 0, leave_out)


def _walk(
    folder: int, name: str, path: str, device: int | None, level: int, leave_out: tuple[str, ...]
) -> Iterator[Entry]:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            yield Entry(path, folder, name, status)
            return
        inner = os.open(name, _FOLDER, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        if not path:
            raise
        return  # somebody has taken it away since its folder was read
    try:
        status = os.fstat(inner)
        if level > MOST_LEVELS:
            raise TreeRefused(f"{path[:200]}… has more than {MOST_LEVELS} folders within folders.")
        if device is not None and status.st_dev != device:
            raise TreeRefused(
                f"Another file system is mounted on {path}, inside it: name that one by itself."
            )
        yield Entry(path, folder, name, status)
        with os.scandir(inner) as found:
            names = sorted(entry.name for entry in found if not entry.name.startswith(leave_out))
        for each in names:
            below = f"{path}/{each}" if path else each
            yield from _walk(inner, each, below, status.st_dev, level + 1, leave_out)
    finally:
        os.close(inner)
