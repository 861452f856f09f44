"""Puts carried data back where it was, so that a restore that fails leaves the disk as it found it.

The data is built in a folder beside what is there, on the same file system, and swapped in by renames; what
was there stays in that folder until the service runs. A journal, in the service's folder of STATE_DIR, tells
whoever comes after a worker that died, or after a power cut, whether to go on or to go back.

Nobody but root gets into the folder, and everything is done by descriptors: the owner of the place may rename
and replace what he likes meanwhile without leading us astray.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from worker import carry_index, supervision, unpack
from worker.durable import write_json
from worker.errors import JobFailed, describe
from worker.files import shown
from worker.paths import Paths
from worker.places import on_host
from worker.trees import OURS, TreeRefused, parent_of, walk

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)

log = logging.getLogger(__name__)

Root = dict[str, Any]


class PutBack:
    """The data of one restore, as a context: at its end the new data stays, after a failure the old is back.

    Args:
        paths: the node's folders.
        service_id: whose data it is.
        image_id: what it comes from.
    """

    def __init__(self, paths: Paths, service_id: str, image_id: str) -> None:
        self._paths = paths
        self._service_id = service_id
        self._image_id = image_id
        self._roots: list[Root] = []

    def __enter__(self) -> PutBack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        settle(self._paths, self._service_id, ran=error is None)

    def begin(self, carried: Sequence[Mapping[str, Any]], mounts: Sequence[Sequence[str]]) -> None:
        """Build the data beside what is there, then swap the two.

        Args:
            carried: what `carry_index.read` returned, but for what need not be put back.
            mounts: (target, source) of what the service sees.

        Raises:
            JobFailed: it cannot be put there.
        """
        try:
            self._build(carried, mounts)
            self._write("swapping")
            for root in self._roots:
                with _container(root) as folder, _beside(folder, root) as beside:
                    _swap(folder, beside, root)
        except (OSError, TreeRefused) as error:
            reason = describe(error) if isinstance(error, OSError) else str(error)
            raise JobFailed(
                "data_not_put_back",
                f"The data that the image carries could not be put back: {shown(reason)}.",
                "Make room, or mend what is named, then restore again; the disk is as it was before.",
            ) from None

    @property
    def is_in_place(self) -> bool:
        """Whether any data was put back."""
        return bool(self._roots)

    def about_to_run(self) -> None:
        """Note that from now on the service may write to the data; called before anything of it runs."""
        if self._roots:
            self._write("resuming")

    def _build(self, carried: Sequence[Mapping[str, Any]], mounts: Sequence[Sequence[str]]) -> None:
        for root in carried:
            items, place = root["items"], on_host(mounts, root["path"])
            is_file = items[0]["kind"] == "file"
            top = [item["path"] for item in items[1:] if "/" not in item["path"]]
            self._roots.append(
                {
                    "place": place,
                    "folder": not is_file,
                    "beside": OURS + secrets.token_hex(8),
                    "names": [place.rpartition("/")[2]] if is_file else top,
                    "root": {name: items[0][name] for name in ("mode", "uid", "gid", "mtime", "xattrs")},
                }
            )
        self._write("building")
        with (self._paths.image(self._image_id) / carry_index.PACK).open("rb") as content:
            for root, known in zip(self._roots, carried, strict=True):
                with _container(root) as folder:
                    _build(folder, root, known["items"], content.fileno())

    def _write(self, phase: str) -> None:
        write_json(
            _journal(self._paths, self._service_id),
            {"image": self._image_id, "phase": phase, "roots": self._roots},
        )


def settle(paths: Paths, service_id: str, *, ran: bool | None = None) -> None:
    """Bring to its end what a restore has begun with a service's data; nothing happens if there is nothing.

    To be called by who holds the service's job lock, with nothing at work on it.

    Args:
        ran: whether the service has run with the data; None to find out.

    Raises:
        JobFailed: what was there before cannot be brought back; it is kept where it is, and the next to call
            this tries again.
    """
    journal = _journal(paths, service_id)
    try:
        known = json.loads(journal.read_bytes())
    except FileNotFoundError:
        return
    if ran is None:
        ran = _has_run(paths, service_id, known)
    try:
        if not ran:
            if known["phase"] == "resuming":
                # If it fails, the next to call this has to go back, too; by then nobody knows what ran.
                write_json(journal, {**known, "phase": "swapping"})
            for root in known["roots"]:
                _roll_back(root, swapped=known["phase"] != "building")
            # What is beside goes now: whoever has to go on from here must not take that for a swap.
            write_json(journal, {**known, "phase": "building"})
        elif known["phase"] != "done":
            write_json(journal, {**known, "phase": "done"})
        for root in known["roots"]:
            _remove_beside(root)
        journal.unlink()
    except (OSError, TreeRefused) as error:
        if ran:
            log.warning("what data of service %s replaced is left beside it: %s", service_id, error)
            return
        places = ", ".join(f"{root['place']} ({root['beside']})" for root in known["roots"])
        raise JobFailed(
            "data_not_brought_back",
            "A restore that failed had put carried data in place, and what was there before cannot be brought"
            f" back: {shown(str(error))}. It is kept beside: {shown(places)}.",
            f"Mend that, then try again; or bring it back by hand and delete {journal}.",
        ) from None


def _journal(paths: Paths, service_id: str) -> Path:
    return paths.spec(service_id).with_name("putback.json")


def _has_run(paths: Paths, service_id: str, known: Mapping[str, Any]) -> bool:
    """Tell whether the service may have run with the data: what it then wrote is worth more than the old."""
    if known["phase"] != "resuming":
        return bool(known["phase"] == "done")
    state = supervision.read_state(paths, service_id)
    # After a reboot nothing is known but the journal, which says that it was about to.
    return state.get("image") != known["image"] or state.get("phase") not in {"failed", "restoring"}


def is_unchanged(root: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Tell whether what was carried lies there untouched, by inode and times, and need not be put back.

    Args:
        root: one of those that `carry_index.read` returned.
        facts: the image's manifest.
    """
    # What is written through a mapping may not show in any time: never on a tmpfs, and not on a disk if the
    # service went on with pages that were dirty at the dump.
    if facts.get("leave_running") or root["path"] in facts.get("shared_memory", []):
        return False
    wanted = {item["path"]: item for item in root["items"]}
    seen = set()
    try:
        for entry in walk(on_host(facts["mounts"], root["path"]), leave_out=(OURS,)):
            kind = carry_index.KINDS.get(stat.S_IFMT(entry.status.st_mode))
            item = wanted.get(entry.path)
            if kind is None and item is None:
                continue
            if item is None or item["kind"] != kind or item["inode"] != entry.status.st_ino:
                return False
            # A folder's times change when a socket in it is made anew.
            found = [stat.S_IMODE(entry.status.st_mode), entry.status.st_uid, entry.status.st_gid]
            was = [item["mode"], item["uid"], item["gid"]]
            if kind != "folder":
                found += [entry.status.st_mtime_ns, entry.status.st_ctime_ns]
                was += [item["mtime"], item["ctime"]]
            if found != was:
                return False
            seen.add(entry.path)
    except (OSError, TreeRefused):
        return False
    return seen == set(wanted)


@contextmanager
def _container(root: Root) -> Iterator[int]:
    """Open the folder whose names are swapped: the place itself, or the folder of a file."""
    with parent_of(root["place"]) as (parent, name):
        if not root["folder"]:
            try:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                status = os.fstat(parent)
                if not status.st_mode & stat.S_IWOTH:  # its owner could not make it there, so neither do we
                    _require_owner(root, status)
            else:
                if not stat.S_ISREG(status.st_mode):
                    raise TreeRefused(f"{root['place']} is not a regular file any more")
                _require_owner(root, status)
            yield parent
            return
        try:
            folder = os.open(name, _FOLDER, dir_fd=parent)
        except NotADirectoryError:
            raise TreeRefused(f"{root['place']} is not a folder any more") from None
        try:
            _require_owner(root, os.fstat(folder))
            yield folder
        finally:
            os.close(folder)


def _require_owner(root: Root, status: os.stat_result) -> None:
    """Whoever may rename another's folder to the place must not have it emptied by us."""
    if status.st_uid != root["root"]["uid"]:
        raise TreeRefused(f"{root['place']} belongs to another user than at the dump")


@contextmanager
def _beside(folder: int, root: Root) -> Iterator[int]:
    """Open the folder beside, which must be the one that we made."""
    beside = os.open(root["beside"], _FOLDER, dir_fd=folder)
    try:
        found = os.fstat(beside)
        # Whose folder this lies in may have laid another there since: one that he gets into.
        ours = found.st_uid == 0 and stat.S_IMODE(found.st_mode) & 0o777 == 0o700
        if not ours or root.get("inode", found.st_ino) != found.st_ino:
            raise TreeRefused(f"{root['place']}/{root['beside']} is not what was made there")
        yield beside
    finally:
        os.close(beside)


def _build(folder: int, root: Root, items: Sequence[Mapping[str, Any]], content: int) -> None:
    os.mkdir(root["beside"], 0o700, dir_fd=folder)
    with _beside(folder, root) as beside:
        root["inode"] = os.fstat(beside).st_ino
        if root["folder"]:
            root["was"] = unpack.attributes(folder)
            root["were"] = _names(folder)
        for name in ("new", "old"):
            os.mkdir(name, 0o700, dir_fd=beside)
        new = os.open("new", _FOLDER, dir_fd=beside)
        try:
            unpack.make(new, items, content, alone=None if root["folder"] else root["names"][0])
            # It is to outlast a power cut: what was there is deleted afterwards.
            if _libc.syncfs(new) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(new)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as found:
        return [entry.name for entry in found if not entry.name.startswith(OURS)]


@contextmanager
def _halves(beside: int) -> Iterator[tuple[int, int]]:
    with ExitStack() as stack:
        found = []
        for name in ("new", "old"):
            found.append(os.open(name, _FOLDER, dir_fd=beside))
            stack.callback(os.close, found[-1])
        yield found[0], found[1]


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _move(name: str, source: int, target: int) -> None:
    os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)


def _swap(folder: int, beside: int, root: Root) -> None:
    """Let the names in the container be those of the image. Any prefix of this can be gone back on."""
    with _halves(beside) as (new, old):
        for name in _names(folder) if root["folder"] else root["names"]:
            if _exists(name, folder):
                _move(name, folder, old)
        for name in root["names"]:
            _move(name, new, folder)
    if root["folder"]:
        unpack.give(folder, root["root"])


def _roll_back(root: Root, *, swapped: bool) -> None:
    """Let the names in the container be those that were there before. Done twice it does no harm."""
    if not swapped:
        return
    with _container(root) as folder:
        if not _exists(root["beside"], folder):
            return  # this was gone back on already
        with _beside(folder, root) as beside, _halves(beside) as (new, old):
            for name in root["names"]:
                if not _exists(name, new) and _exists(name, folder):
                    _move(name, folder, new)
            away = set(_names(old))
            # What else is there now was made meanwhile, a socket by CRIU, say, but for what never was away.
            for name in _names(folder) if root["folder"] else []:
                if name in away or name not in root["were"]:
                    os.rename(name, secrets.token_hex(8), src_dir_fd=folder, dst_dir_fd=new)
            for name in away:
                _move(name, old, folder)
        if root["folder"]:
            unpack.give(folder, root["was"])


def _remove_beside(root: Root) -> None:
    """Delete the folder beside, with whatever is in it."""
    with _container(root) as folder, contextlib.suppress(FileNotFoundError):
        shutil.rmtree(root["beside"], dir_fd=folder)
