"""One import, from an archive to a sealed image. Knows nothing of jobs.

An archive may come from anybody: nothing in it is believed but what its own manifest, which comes first,
accounts for, and nothing is written but files that the manifest names, below one folder, as root's. The
folder becomes an image by the code that seals a dump. What an import that was interrupted leaves is filled by
the next import of that image, file by file; one that was refused leaves nothing.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from worker import alone, claims, digests, encryption, locks, manifest, preflight, programs
from worker.errors import JobFailed, describe
from worker.exporting import ORIGIN, Progress
from worker.paths import Paths, checked_id
from worker.sums import GrowingSums
from worker.tarstream import BadStream, CutOff, Member, Reader

_LARGEST_MANIFEST = 8 << 20  # of brackets alone it takes half a gigabyte of memory
_LARGEST_ORIGIN = 64 << 10
_MOST_FILES = 50_000
_LONGEST_NAME = 255
_LONGEST_WORD = 64  # a column's width
_RESERVE = 16 << 20
_KEPT_FOR = 24 * 3600.0
_FOR_A_LOOK = 0.5
"""Seconds to wait for who has the lock only to see whether anybody else has."""
_ABSENT = object()


class Imported(NamedTuple):
    """An image in the pool.

    Attributes:
        image_id: its id.
        was_there: nothing was done, for this very image was in the pool.
        resumed: the files that an earlier import had written already.
    """

    image_id: str
    was_there: bool = False
    resumed: int = 0


class Import:
    """One import in its steps.

    Args:
        paths: the node's folders.
        archive: the file, in the folder of archives.
        identity: the file of age's secret key, there too; None if there is none.
        check: is given the manifest's spec and raises JobFailed for one that no service could have.
        notes: what the manifest shall say of this import: by whom, when.
        most: bytes that all images together may take, by root's policy; None for no such rule.
        step: is told each step.
    """

    def __init__(
        self,
        paths: Paths,
        archive: Path,
        *,
        identity: Path | None,
        check: Callable[[dict[str, Any]], None],
        notes: dict[str, Any],
        step: Callable[[str], None],
        most: int | None = None,
    ) -> None:
        self._paths = paths
        self._archive = archive
        self._identity = identity
        self._check = check
        self._notes = notes
        self._most = most
        self._step = step
        self._resumed = 0
        self._failures: list[str] = []

    def run(self) -> Imported:
        """Import the archive.

        Raises:
            JobFailed: the archive is damaged or hostile, or there is no room; nothing of it is left, but what
                was right of one that is cut off.
        """
        file = _open(self._archive)
        try:
            row = encryption.to_read(os.pread(file, encryption.MAGIC_BYTES, 0), self._identity)
            with programs.out_of(file, row) as running:
                reader = Reader(running.end.read1)  # type: ignore[attr-defined]  # a BufferedReader
                try:
                    return self._read(reader, running)
                except BadStream as bad:
                    lines = running.kill() or self._failures
                    if refusal := alone.refusal(lines):
                        raise _not_alone(refusal) from None
                    raise self._bad(str(bad), lines, cut_off=isinstance(bad, CutOff)) from None
        finally:
            os.close(file)

    def _read(self, reader: Reader, running: programs.Row) -> Imported:
        self._step("reading manifest")
        facts = self._manifest(reader)
        image_id = facts["image"]
        final = self._paths.image(image_id)
        with _alone(self._paths, image_id) as lock:
            if final.exists():
                self._require_same(final, facts)
                running.kill()
                return Imported(image_id, was_there=True)
            folder = self._paths.importing(image_id)
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                os.utime(folder)
                _clear(folder, facts["files"])
                need = partial(self._need, folder, facts["files"])
                with claims.claimed(self._paths, lock, image_id, self._most, need):
                    origin = self._fill(reader, folder, facts)
                    self._failures = running.finish()
                    if self._failures:
                        raise CutOff("cannot be read to its end")
                    self._seal(folder, final, facts, origin)
            except Exception as error:
                if not _may_go_on(error) or self._is_short_of_room(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                raise
        return Imported(image_id, resumed=self._resumed)

    def _seal(self, folder: Path, final: Path, facts: dict[str, Any], origin: dict[str, Any]) -> None:
        self._step("sealing image")
        said = {key: value for key, value in facts.items() if key not in ("version", "files", "sum")}
        notes = {**self._notes, "archive": self._archive.name, "sum": facts["sum"], "from": origin}
        with GrowingSums(folder) as sums:
            manifest.seal(folder, final, {**said, "origin": notes}, sums)

    def _manifest(self, reader: Reader) -> dict[str, Any]:
        member = reader.next()
        if member is None or member.name != manifest.NAME:
            raise BadStream(f"does not begin with {manifest.NAME}")
        text = self._small(reader, member, _LARGEST_MANIFEST)
        try:
            facts = manifest.parse(self._archive, text)
        except JobFailed as failure:
            if failure.code != "image_damaged":
                raise
            raise self._bad("has a damaged manifest", failure.lines) from None
        wrong = next(faults_of(facts), None)
        if wrong:
            raise BadStream(f"has a manifest in which {wrong}")
        self._check(facts["spec"])
        return facts

    def _small(self, reader: Reader, member: Member, most: int) -> bytes:
        if member.size > most:
            raise BadStream(f"has {member.size} bytes of {member.name}")
        return b"".join(reader.content())

    def _require_same(self, final: Path, facts: dict[str, Any]) -> None:
        present = manifest.read(final)
        origin = present.get("origin")
        sums = {present["sum"], origin.get("sum") if isinstance(origin, dict) else None}
        if facts["sum"] not in sums:
            raise JobFailed(
                "image_exists",
                f"Another image with the id {final.name} is in the pool.",
                "Delete that one first, if the one in the archive shall take its place.",
            )

    def _need(self, folder: Path, files: dict[str, Any], claimed: int) -> int:
        """Return the bytes that an image takes, if the pool has room for what is not there yet."""
        size: int = sum(entry["size"] for entry in files.values()) + _RESERVE
        missing = size - sum(min(entry["size"], _size(folder / name)) for name, entry in files.items())
        available = preflight.room_in(self._paths.images, self._most) - claimed
        if missing > available:
            raise preflight.no_room("import", available, missing, self._paths.images, self._most)
        return size

    def _is_short_of_room(self, folder: Path) -> bool:
        """Tell whether keeping what was written would take more room than it leaves."""
        return preflight.room_in(self._paths.images, self._most) < preflight.size_of(folder)

    def _fill(self, reader: Reader, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the files of an image; return what the archive says of where it comes from."""
        files = facts["files"]
        progress = Progress(self._step, "writing files", sum(entry["size"] for entry in files.values()))
        origin: dict[str, Any] = {}
        expected = dict(files)
        while (member := reader.next()) is not None:
            if member.name == ORIGIN and len(expected) == len(files):
                origin = _origin(self._small(reader, member, _LARGEST_ORIGIN))
                continue
            entry = expected.pop(member.name, None)
            if entry is None:
                again = "twice" if member.name in files else "which its manifest does not name"
                raise BadStream(f"has {member.name[:200]!r}, {again}")
            if member.size != entry["size"]:
                raise BadStream(f"has {member.size} bytes of {member.name[:200]!r}, not {entry['size']}")
            self._write(reader, folder / member.name, entry, progress)
        if expected:
            raise BadStream(f"lacks {min(expected)[:200]!r}, which its manifest names")
        return origin

    def _write(self, reader: Reader, path: Path, entry: dict[str, Any], progress: Progress) -> None:
        sealed = digests.recorded(entry)
        assert sealed is not None  # faults_of has seen it
        if _size(path) and sealed.is_of(path):
            self._resumed += 1
            for data in reader.content():
                progress.add(len(data))
            return
        try:
            self._write_anew(reader, path, sealed, progress)
        except Exception:
            path.unlink(missing_ok=True)  # half a file is of no use to a next import
            raise

    def _write_anew(self, reader: Reader, path: Path, sealed: digests.Recorded, progress: Progress) -> None:
        found = sealed.begin()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            for data in reader.content():
                found.update(data)
                file.write(data)
                progress.add(len(data))
        if not sealed.agrees(found):
            raise BadStream(f"has other bytes in {path.name[:200]!r} than its manifest says")

    def _bad(self, what: str, lines: list[str], *, cut_off: bool = False) -> JobFailed:
        return JobFailed(
            "archive_damaged",
            f"The archive {self._archive.name} {what}.",
            "Fetch the whole of it and import that: what was kept of it is not written again."
            if cut_off
            else "Nothing of it was kept: fetch it again, from somebody you trust.",
            lines,
        )


def _not_alone(refusal: str) -> JobFailed:
    return JobFailed(
        "program_refused",
        "This host does not let the archive be read by a program without rights.",
        "Let the worker make namespaces (CAP_SYS_ADMIN, no seccomp filter); the archive may be good.",
        [refusal],
    )


def _may_go_on(error: Exception) -> bool:
    """Tell whether a next import may go on with what is there: not if it was refused, or the pool is full."""
    if isinstance(error, OSError):
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, CutOff) or not isinstance(error, BadStream | JobFailed)


def faults_of(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong in a manifest that a stranger has made, as the rest of "in which …".

    Args:
        facts: what `manifest.parse` returned.
    """
    if not _is_text(facts):
        yield "there are texts that are none"
        return
    for key in ("image", "service"):
        try:
            checked_id(facts[key])
        except ValueError:
            yield f"{key} is no id"
    yield from _faults_of_files(facts["files"])
    if not all(
        isinstance(mount, list)
        and len(mount) == 2
        and all(isinstance(path, str) and path.startswith("/") and "\0" not in path for path in mount)
        for mount in facts["mounts"]
    ):
        yield "mounts are no pairs of absolute paths"
    if facts["version"] < 1 or facts["pipe"] < 0 or isinstance(facts["pipe"], bool):
        yield "version or pipe is no such number"
    for key, kind in _OPTIONAL.items():
        found = facts.get(key, _ABSENT)
        if found is not _ABSENT and (
            not isinstance(found, kind) or isinstance(found, bool) != (kind is bool)
        ):
            yield f"{key} is of the wrong type"
        elif isinstance(found, str) and len(found) > _LONGEST_WORD:
            yield f"{key} is too long"
    for key in ("data", "carried", "shared_memory"):
        paths = facts.get(key, [])
        if isinstance(paths, list) and not all(isinstance(path, str) and path[:1] == "/" for path in paths):
            yield f"{key} is no list of absolute paths"
    created = facts.get("created", 0)
    if isinstance(created, int | float) and not (math.isfinite(created) and 0 <= created < 2**33):
        yield "created is no time"
    pages = facts.get("pages_bytes", 0)
    if isinstance(pages, int) and not 0 <= pages < 2**62:
        yield "pages_bytes is no size"


_OPTIONAL: dict[str, Any] = {
    "created": int | float,
    "leave_running": bool,
    "data": list,
    "carried": list,
    "shared_memory": list,
    "criu": str,
    "kernel": str,
    "machine": str,
    "comm": str,
    "pages_bytes": int,
}


def _is_text(value: object) -> bool:
    """Tell whether every text in a JSON value is one that a database and a kernel can hold."""
    match value:
        case dict():
            return all(_is_text(key) and _is_text(item) for key, item in value.items())
        case list():
            return all(map(_is_text, value))
        case str():
            return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, float) or math.isfinite(value)


def _faults_of_files(files: dict[str, Any]) -> Iterator[str]:
    if not files or len(files) > _MOST_FILES:
        yield f"{len(files)} files are named"
    for name, entry in files.items():
        if not _is_plain_name(name) or name in (manifest.NAME, manifest.FIGURES, ORIGIN):
            yield f"the name {name[:80]!r} stands"
        elif not isinstance(entry, dict) or type(entry.get("size")) is not int:
            yield f"{name[:80]!r} has no size"
        elif not 0 <= entry["size"] < 2**62:
            yield f"{name[:80]!r} has the size {entry['size']}"
        elif digests.recorded(entry) is None:
            yield f"{name[:80]!r} has no sum"


def _is_plain_name(name: str) -> bool:
    """Tell whether a file of this name lies in the folder that it is written to, wherever that is."""
    return (
        name not in ("", ".", "..")
        and "/" not in name
        and len(os.fsencode(name)) <= _LONGEST_NAME
        and name.isprintable()
    )


def sweep(paths: Paths, kept_for: float = _KEPT_FOR) -> bool:
    """Remove what imports have left that were interrupted; tell whether there was any.

    Args:
        kept_for: seconds for which nobody has gone on with it.
    """
    swept = False
    for folder in paths.images.glob(".import-*"):
        image_id = folder.name.removeprefix(".import-")
        with suppress(JobFailed, FileNotFoundError, ValueError), _alone(paths, image_id):
            if time.time() - folder.stat().st_mtime >= kept_for:
                shutil.rmtree(folder)
                swept = True
    return swept


@contextmanager
def _alone(paths: Paths, image_id: str) -> Iterator[Path]:
    """Hold an image against other imports for the block, by the lock that it yields."""
    lock = paths.import_lock(image_id)
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locks.held(lock, _FOR_A_LOOK) as mine:
        if mine is None:
            raise JobFailed(
                "image_busy", "Another import works on this image.", "Wait for it (mhctl job list)."
            )
        yield lock


def _open(path: Path) -> int:
    """Open a plain file of the folder of archives."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise JobFailed(
            "archive_missing",
            f"The archive cannot be opened: {describe(error)}.",
            "Put it into the folder of archives; a link is not followed.",
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise JobFailed("archive_missing", f"{path} is no plain file.", "Give an archive.")
    return descriptor


def _origin(text: bytes) -> dict[str, Any]:
    """Return the texts that an archive says of where it comes from; anything else in it is dropped."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadStream(f"has a damaged {ORIGIN}") from None
    if not isinstance(found, dict):
        raise BadStream(f"has a damaged {ORIGIN}")
    return {
        key: value[:200]
        for key, value in list(found.items())[:20]
        if isinstance(value, str) and key.isidentifier() and value.isprintable()
    }


def _clear(folder: Path, files: dict[str, Any]) -> None:
    """Remove what another archive of this id has left, and a manifest that was never the image's."""
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
