"""What of the disk a service's memory believes: recorded at a dump, compared before a restore.

An image holds memory, not files. A program that wakes up where it was believes its files to be as they were.
Knows no image format of CRIU's but one, and nothing of services or jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pycriu.images

from worker import held
from worker.errors import JobFailed
from worker.places import on_host
from worker.trees import TreeRefused, walk

NAME = "disk.json"
"""The file of an image that holds the record."""
_OPEN_FILES = "files.img"
"""CRIU's own file of what is open."""
MOST_LINES = 100
LARGEST_LIST = 256 << 20
"""Bytes of a list of files in an image: some hundred for each of a million."""

Record = dict[str, Any]


class Change(NamedTuple):
    """One file that is not as the memory believes.

    Attributes:
        path: as the service sees it.
        what: what is different, in words.
        missing: it is not there, or no regular file.
    """

    path: str
    what: str
    missing: bool = False


def record(init: int, data: Sequence[str], mounts: Iterable[Sequence[str]], *, runs_on: bool) -> Record:
    """Return what a frozen service believes of the disk.

    Args:
        init: PID of the first process of its tree.
        data: files and folders that are declared to be its data, as it sees them.
        mounts: as for `on_host`.
        runs_on: it will run on after this moment, so that what it writes later must show in the files' times.

    Returns:
        For JSON: `open`, a list of the regular files that the tree has open or maps shared and writable;
        `data`, for each declared path its regular files. Times are nanoseconds since 1970.

    Raises:
        OSError: a declared path cannot be read.
        TreeRefused: it is a link, or no place that is looked at.
    """
    mounts = list(mounts)
    found: dict[tuple[int, int, str], dict[str, Any]] = {}
    for path, status, writes, appends in held.by_tree(init, sync=runs_on):
        # CRIU keeps a deleted file in the image, or a link to it, and all of a private /tmp.
        if not held.lies_at(on_host(mounts, path), status):
            continue
        known = found.setdefault(
            (status.st_dev, status.st_ino, path),
            {"path": path, **_facts(status), "writes": False, "appends": True},
        )
        known["writes"] |= writes
        known["appends"] &= appends or not writes
    return {
        "open": sorted(found.values(), key=lambda each: str(each["path"])),
        "data": {path: _content(on_host(mounts, path)) for path in data},
    }


def _facts(status: os.stat_result) -> dict[str, int]:
    return {
        "size": status.st_size,
        "mtime": status.st_mtime_ns,
        "mode": status.st_mode,
        "inode": status.st_ino,
        "device": status.st_dev,
    }


def _content(place: str) -> dict[str, list[int]]:
    """Return size, mtime and inode of each regular file at or below `place`, by its path below it."""
    return {
        entry.path: [entry.status.st_size, entry.status.st_mtime_ns, entry.status.st_ino]
        for entry in walk(place)
        if stat.S_ISREG(entry.status.st_mode)
    }


def content_of(path: Path) -> bytes:
    """Return the content of a list of files in an image, of any kind; an image may come from a stranger.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is larger than any that we write.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > LARGEST_LIST:
            raise ValueError("it is too large")
        return file.read(LARGEST_LIST)


def require_readable(path: Path) -> None:
    """Refuse a list that has just been written and that no restore would read.

    Raises:
        TreeRefused: there are too many files in it.
    """
    size = path.stat().st_size
    if size > LARGEST_LIST:
        raise TreeRefused(f"There are too many files in it: their list takes {size >> 20} MiB.")


def read(image: Path) -> Record:
    """Return the record of an image; an empty one for an image without.

    Raises:
        JobFailed: it is none that `record` has made; an imported image may hold anything.
    """
    try:
        found = json.loads(content_of(image / NAME))
    except FileNotFoundError:
        return {"open": [], "data": {}}
    except (ValueError, RecursionError):
        found = None
    if not _is_record(found):
        raise JobFailed(
            "image_damaged",
            f"The image {image.name} does not say what its memory believes of the disk: {NAME} is damaged.",
            "Restore another image of this service.",
        )
    return dict(found)


def _is_record(found: Any) -> bool:
    """Tell whether a JSON value has the shape of what `record` returns."""
    return (
        isinstance(found, dict)
        and isinstance(found.get("open"), list)
        and isinstance(found.get("data"), dict)
        and all(isinstance(each, dict) and _is_open(each) for each in found["open"])
        and all(
            _is_path(path)
            and isinstance(content, dict)
            and all(
                isinstance(each, list) and len(each) == 3 and _are_numbers(each) for each in content.values()
            )
            for path, content in found["data"].items()
        )
    )


def _is_open(known: Mapping[str, Any]) -> bool:
    return (
        _is_path(known.get("path"))
        and _are_numbers([known.get(key) for key in ("size", "mtime", "mode", "inode", "device")])
        and all(isinstance(known.get(key), bool) for key in ("writes", "appends"))
    )


def _is_path(found: object) -> bool:
    return isinstance(found, str) and found.startswith("/") and "\0" not in found


def _are_numbers(found: Sequence[object]) -> bool:
    # A time of that many nanoseconds is in the year 2262; beyond, datetime has no year.
    return all(type(each) is int and -(2**63) <= each < 2**64 for each in found)


def changes(
    record: Mapping[str, Any], mounts: Iterable[Sequence[str]], restored: Sequence[str] = ()
) -> list[Change]:
    """Return what of the disk is not as it was recorded; empty if memory and disk agree.

    What is told by size and time to the nanosecond is the content: a file that was copied here with its time
    is the same file. One that was and is empty has no content that could differ.

    Args:
        record: what `record` returned.
        mounts: as for `on_host`; of the image.
        restored: paths, as the service sees them, that are put back from the image anyway.
    """
    mounts = list(mounts)
    found = {}
    for known in record["open"]:
        if not _is_below(known["path"], restored):
            change = _change(known, on_host(mounts, known["path"]))
            if change is not None:
                found[change.path] = change
    for path, content in record["data"].items():
        if not _is_below(path, restored):
            for change in _changes_below(path, content, on_host(mounts, path)):
                if not _is_below(change.path, restored):
                    found.setdefault(change.path, change)
    return list(found.values())


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _change(known: Mapping[str, Any], place: str) -> Change | None:
    """Return how a file that was open is different now, if it is."""
    path = known["path"]
    try:
        status = os.lstat(place)
    except OSError:
        return Change(path, "is not there any more", missing=True)
    if not stat.S_ISREG(status.st_mode):
        return Change(path, "is not a regular file any more", missing=True)
    was, now = (known["size"], known["mtime"]), (status.st_size, status.st_mtime_ns)
    # Who only reads a file goes on with what is there; CRIU wants the size that it knows.
    if was != now if known["writes"] and max(was[0], now[0]) else was[0] != now[0]:
        replaced = (status.st_dev, status.st_ino) != (known["device"], known["inode"])
        if replaced:
            note = ", another file by now"
        else:
            note = ", only ever appended to by the service" if _only_grew(known, status) else ""
        return Change(path, _was_is(was, now) + note)
    if stat.S_IMODE(status.st_mode) != stat.S_IMODE(known["mode"]):
        modes = [f"{stat.S_IMODE(mode):04o}" for mode in (known["mode"], status.st_mode)]
        return Change(path, f"had the permissions {modes[0]}, has {modes[1]}")
    return None


def _only_grew(known: Mapping[str, Any], status: os.stat_result) -> bool:
    return bool(known["writes"] and known["appends"] and status.st_size >= known["size"])


def _changes_below(path: str, content: Mapping[str, Sequence[int]], place: str) -> Iterator[Change]:
    try:
        present = _content(place)
    except (OSError, TreeRefused):
        yield Change(path, "is not there any more", missing=True)
        return
    for name in sorted({*content, *present}):
        whole = f"{path.rstrip('/')}/{name}" if name else path
        was, now = content.get(name), present.get(name)
        if was is None:
            yield Change(whole, "is new")
        elif now is None:
            yield Change(whole, "is not there any more")
        elif was[:2] != now[:2] and max(was[0], now[0]):
            yield Change(whole, _was_is(was, now))


def _was_is(was: Sequence[int], now: Sequence[int]) -> str:
    return f"was {was[0]} bytes of {_moment(was[1])}, is {now[0]} bytes of {_moment(now[1])}"


def _moment(nanoseconds: int) -> str:
    whole, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%d %H:%M:%S}.{rest // 10**6:03d}Z"


def refuse(found: Sequence[Change], *, accepted: bool) -> None:
    """Refuse a restore that would wake a service up beside files that it does not know.

    Args:
        found: what `changes` returned.
        accepted: an operator has said, by name, that this may be.

    Raises:
        JobFailed: there are changes that are not accepted, or a file is missing, which nobody can accept.
    """
    missing = [change for change in found if change.missing]
    if accepted and missing:
        raise JobFailed(
            "file_missing",
            f"{shown(missing[0].path)}, which the service had open, {missing[0].what}{_more(missing)}.",
            "Copy it back to where it was, then restore again.",
            _lines(missing),
        )
    if found and not accepted:
        raise JobFailed(
            "files_changed",
            "The files on the disk have moved on since the dump, which the memory in the image does not know:"
            f" {shown(found[0].path)}{_more(found)}.",
            "Put the files back, or restore an image that carries its data (--carry). If the service can live"
            " with them as they are, restore with --accept-changed-files.",
            _lines(found),
        )


def _more(changes: Sequence[Change]) -> str:
    return f", and {len(changes) - 1} more" if len(changes) > 1 else ""


def shown(path: str) -> str:
    """Return a path as text for a database and a terminal: a service may name a file as it likes."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in path)


def _lines(changes: Sequence[Change]) -> list[str]:
    lines = [f"{shown(change.path)} {change.what}" for change in changes[:MOST_LINES]]
    return lines + ([f"and {len(changes) - MOST_LINES} more"] if len(changes) > MOST_LINES else [])


@contextlib.contextmanager
def waived(image: Path, changes: Sequence[Change], beside: Path) -> Iterator[Path]:
    """Make a folder that CRIU reads instead of `image`, in which it has nothing to say of these files.

    CRIU compares size and mode of each file that was open with `files.img`; the entry of a file may leave
    them out. The sealed image stays as it is.

    Args:
        beside: the folder to make; it is deleted afterwards.

    Yields:
        `image` itself if there is nothing to waive.
    """
    paths = {change.path for change in changes}
    if not paths:
        yield image
        return
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(mode=0o700)
    try:
        for path in image.iterdir():
            if path.name != _OPEN_FILES:
                (beside / path.name).symlink_to(path)
        with (image / _OPEN_FILES).open("rb") as file:
            content = pycriu.images.load(file)
        for entry in content["entries"]:
            known = entry.get("reg", {})
            if known.get("name") in paths:
                known.pop("size", None)
                known.pop("mode", None)
        with (beside / _OPEN_FILES).open("wb") as file:
            pycriu.images.dump(content, file)
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
