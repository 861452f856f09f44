"""Copies a service's data into an image while the service is frozen. Knows nothing of putting it back.

carry_index.py says how it lies there.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from worker.blocks import BLOCK, Short, copy, data, share
from worker.carry_index import INDEX, KINDS, PACK, XATTRS, Item
from worker.durable import write_json
from worker.errors import JobFailed, describe
from worker.files import require_readable, shown
from worker.places import on_host
from worker.supervision import Running
from worker.trees import OURS, Entry, TreeRefused, walk

SHARED_MEMORY = "/dev/shm/"  # noqa: S108 (shm_overview(7))
MOST_ENTRIES = 1_000_000


class Figures(NamedTuple):
    """What was carried.

    Attributes:
        carry_time: microseconds.
        carried_files: number of regular files.
        carried_bytes: of their content, holes left out.
        shared_bytes: of these, what takes no room in the pool, for its blocks are shared.
        carry_skipped: number of sockets and devices that were left out.
    """

    carry_time: int = 0
    carried_files: int = 0
    carried_bytes: int = 0
    shared_bytes: int = 0
    carry_skipped: int = 0


class Data(NamedTuple):
    """What of the disk belongs to a service, in paths as it sees them.

    Attributes:
        compared: what a restore compares with what it was.
        carried: what the image holds, none inside another.
        owner: uid of the service's user.
    """

    compared: list[str]
    carried: list[str]
    owner: int


def outermost(paths: Iterable[str]) -> list[str]:
    """Return `paths` without those that lie in another of them."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(other + "/") for other in found):
            found.append(path)
    return found


def shared_memory(record: Mapping[str, Any], mounts: Iterable[Sequence[str]], data: Data) -> list[str]:
    """Return the files of POSIX shared memory that a service holds: memory in truth, so its image holds them.

    Args:
        record: what `files.record` returned.
        mounts: (target, source) of what the service sees.
        data: of the service.
    """
    mounts = list(mounts)
    return [
        known["path"]
        for known in record["open"]
        if known["path"].startswith(SHARED_MEMORY)
        and known["writes"]
        and outermost([*data.carried, known["path"]]) != data.carried
        and data.owner in (0, os.lstat(on_host(mounts, known["path"])).st_uid)
    ]


def check(running: Running, path: str, owner: int, forbidden: Iterable[Path]) -> int:
    """Make sure that a declared path may be looked at and carried, and return the bytes it takes on its disk.

    Whoever may make services must not read or replace by way of root what the service's own user may not.

    Args:
        running: the service.
        path: as it sees it.
        owner: uid of the service's user.
        forbidden: folders of our own.

    Raises:
        JobFailed: it is missing, belongs to somebody else, leads over a link, or is ours.
    """
    place = on_host(running.mounts, path)
    for ours in map(str, forbidden):
        if f"{ours}/".startswith(f"{place}/") or f"{place}/".startswith(f"{ours}/"):
            raise _refused(f"{shown(path)} holds files of Miehistö's own.")
    try:
        size = 0
        for number, entry in enumerate(walk(place)):
            if number > MOST_ENTRIES:
                raise _refused(f"{shown(path)} holds more than {MOST_ENTRIES} files and folders.")
            if not entry.path:
                _check_root(path, entry.status)
                _require_seen(running, path, entry.status)
            _check_owner(path, entry, owner)
            if stat.S_ISREG(entry.status.st_mode):
                size += entry.status.st_blocks * 512
    except FileNotFoundError:
        raise JobFailed(
            "data_missing",
            f"{shown(path)}, which was declared to be the service's data, is not there.",
            "Create it, or declare its data anew (mhctl service create --data, --carry).",
        ) from None
    except TreeRefused as refusal:
        raise _refused(shown(str(refusal))) from None
    except OSError as error:
        raise _refused(f"{shown(path)} cannot be read: {shown(describe(error))}.") from None
    return size


def _check_root(path: str, status: os.stat_result) -> None:
    if KINDS.get(stat.S_IFMT(status.st_mode)) not in {"folder", "file"}:
        raise _refused(f"{shown(path)} is neither a folder nor a regular file.")


def _check_owner(path: str, entry: Entry, owner: int) -> None:
    """Refuse what its user could neither read nor make again, but what is not carried anyway."""
    if owner not in (0, entry.status.st_uid) and stat.S_IFMT(entry.status.st_mode) in KINDS:
        place = shown(f"{path}/{entry.path}".rstrip("/"))
        raise TreeRefused(f"{place} does not belong to the service's user.")


def _require_seen(running: Running, path: str, status: os.stat_result) -> None:
    """A service may have a /tmp of its own, or may have mounted something."""
    seen = os.stat(f"/proc/{running.init.pid}/root{path}")
    if (seen.st_dev, seen.st_ino) != (status.st_dev, status.st_ino):
        raise _refused(f"The service sees another {shown(path)} than the host.")


def _refused(why: str) -> JobFailed:
    return JobFailed("data_refused", why, "Name a folder or file of the service's own (--data, --carry).")


def pack(image: Path, paths: Sequence[str], mounts: Iterable[Sequence[str]], owner: int) -> Figures:
    """Copy data of a frozen service into the folder of its image.

    Args:
        image: the folder, which has nothing of the kind yet.
        paths: absolute paths as the service sees them, none inside another.
        mounts: (target, source) of what the service sees.
        owner: uid of the service's user.

    Raises:
        TreeRefused: what is found there is not carried; its text says why.
        OSError: the pool is full, or a file cannot be read.
    """
    began = time.monotonic()
    mounts = list(mounts)
    roots = []
    with _Pack(image / PACK) as content:
        for path in paths:
            place = on_host(mounts, path)
            roots.append({"path": path, "items": list(_items(place, path, owner, content))})
        figures = content.figures
    write_json(image / INDEX, {"roots": roots}, durable=False)
    require_readable(image / INDEX)
    return figures._replace(carry_time=round((time.monotonic() - began) * 1e6))


def _items(place: str, path: str, owner: int, content: _Pack) -> Iterator[Item]:
    linked: dict[tuple[int, int], str] = {}
    for number, entry in enumerate(walk(place, leave_out=(OURS,))):
        if number > MOST_ENTRIES:
            raise TreeRefused(f"{shown(path)} holds more than {MOST_ENTRIES} files and folders.")
        status = entry.status
        _check_owner(path, entry, owner)
        kind = KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            content.skip()
            continue
        item: Item = {
            "path": entry.path,
            "kind": kind,
            "mode": stat.S_IMODE(status.st_mode),
            "uid": status.st_uid,
            "gid": status.st_gid,
            "mtime": status.st_mtime_ns,
            "ctime": status.st_ctime_ns,
            "inode": status.st_ino,
        }
        same = (status.st_dev, status.st_ino)
        if kind == "link":
            with contextlib.suppress(FileNotFoundError):
                yield {**item, "target": os.readlink(entry.name, dir_fd=entry.folder)}
            continue
        if kind == "file" and status.st_nlink > 1:
            if same in linked:
                yield {**item, "same_as": linked[same]}
                continue
            linked[same] = entry.path
        if kind == "file":
            item |= _file(entry, content)
        elif kind == "folder":
            descriptor = os.open(
                entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.folder
            )
            try:
                item["xattrs"] = xattrs(descriptor)
            finally:
                os.close(descriptor)
        yield item


def _file(entry: Entry, content: _Pack) -> Item:
    """Add the content of a regular file to the pack, which must be what was looked at and stand still."""
    # O_NONBLOCK: should it be a FIFO by now, this must not wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        source = os.open(entry.name, flags | os.O_NOATIME, dir_fd=entry.folder)
    except PermissionError:
        source = os.open(entry.name, flags, dir_fd=entry.folder)
    try:
        if not _is_same(entry.status, os.fstat(source)):
            raise _moving(entry)
        pieces = content.add(source, entry.status.st_size)
        found = {"size": entry.status.st_size, "pieces": pieces, "xattrs": xattrs(source)}
        if not _is_same(entry.status, os.fstat(source)):
            raise _moving(entry)
        return found
    except Short:
        raise _moving(entry) from None
    finally:
        os.close(source)


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("st_mode", "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    )


def _moving(entry: Entry) -> TreeRefused:
    name = shown(entry.path or entry.name)
    return TreeRefused(f"{name} was changed while it was copied, by a process outside the service.")


def xattrs(descriptor: int) -> dict[str, str]:
    """Return the extended attributes that mean something to programs, in base64."""
    found = {}
    with contextlib.suppress(OSError):  # a file system without
        for name in os.listxattr(descriptor):
            if name.startswith(XATTRS):
                found[name] = base64.b64encode(os.getxattr(descriptor, name)).decode()
    return found


class _Pack:
    """The file that content is added to."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._end = 0
        self.figures = Figures()

    def __enter__(self) -> _Pack:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def skip(self) -> None:
        """Count what is left out."""
        self.figures = self.figures._replace(carry_skipped=self.figures.carry_skipped + 1)

    def add(self, source: int, size: int) -> list[list[int]]:
        """Add a file's content and return its pieces: where in the file, where in the pack, how long."""
        pieces = []
        copied = shared = 0
        for at, length in data(source, size):
            self._end += -self._end % BLOCK
            whole = not length % BLOCK or at + length == size
            if whole and share(source, at, self._file, self._end, length):
                shared += length
            else:
                copy(source, at, self._file, self._end, length)
            pieces.append([at, self._end, length])
            self._end += length
            copied += length
        known = self.figures
        self.figures = known._replace(
            carried_files=known.carried_files + 1,
            carried_bytes=known.carried_bytes + copied,
            shared_bytes=known.shared_bytes + shared,
        )
        return pieces
