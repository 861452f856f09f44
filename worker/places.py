"""Paths followed step by step, and who could make them lead elsewhere. Knows nothing of what lies there."""

from __future__ import annotations

import errno
import grp
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from worker.users import user_name

_MOST_LINKS = 40  # as the kernel's, path_resolution(7)


class Step(NamedTuple):
    """One name that is looked up in one folder on the way."""

    folder: str
    name: str

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name)


def follow(path: str) -> tuple[str, list[Step]]:
    """Follow an absolute path as the kernel does (path_resolution(7)).

    Returns:
        The path without any link, and every step on the way there, those through links too.

    Raises:
        OSError: something on the way is missing, or the links lead in a circle.
    """
    here = "/"
    steps = []
    links = 0
    ahead = _names(path)
    while ahead:
        name = ahead.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        step = Step(here, name)
        steps.append(step)
        if stat.S_ISLNK(os.lstat(step.path).st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(step.path)
            ahead += _names(target)
            here = "/" if target.startswith("/") else here
        else:
            here = step.path
    return here, steps


def _names(path: str) -> list[str]:
    """Return the names in a path, last first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def on_host(mounts: Iterable[Sequence[str]], path: str) -> str:
    """Return where the host has what a service sees at `path`.

    Args:
        mounts: (target, source) of each file system and bind that the service sees.
        path: absolute.
    """
    best, place = "", path
    for target, source in mounts:
        if len(target) > len(best) and (path == target or path.startswith(target.rstrip("/") + "/")):
            best, place = target, source.rstrip("/") + path[len(target.rstrip("/")) :]
    return place or "/"


def is_within(path: str, folders: tuple[str, ...]) -> bool:
    """Tell whether `path` is one of these folders or files, or lies below one."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def changers(steps: list[Step]) -> Iterator[tuple[str, str]]:
    """Yield (folder, who) for each step that somebody but root could make lead elsewhere."""
    for step in steps:
        folder = os.stat(step.folder)
        writable = folder.st_mode & (stat.S_IWGRP if folder.st_gid else 0) or folder.st_mode & stat.S_IWOTH
        # In a sticky folder an entry is its owner's (unlink(2), EPERM).
        if writable and folder.st_mode & stat.S_ISVTX:
            writable = os.lstat(step.path).st_uid != 0
        if folder.st_uid != 0:
            yield step.folder, f"user {_user(folder.st_uid)}"
        elif writable:
            yield step.folder, "others than root"


def changers_of_file(path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, who) for the file and each step to it that somebody but root could change."""
    found = os.stat(path)
    if found.st_uid != 0:
        yield path, f"user {_user(found.st_uid)}"
    elif found.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if found.st_gid else 0)):
        yield path, "others than root"
    yield from changers(follow(path)[1])


def _user(uid: int) -> str:
    return user_name(uid) or str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group, or its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
