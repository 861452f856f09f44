"""One export, from a sealed image to an archive. Knows nothing of jobs.

An archive is a tar stream, compressed and perhaps encrypted: the manifest first, then where it comes from,
then each file that the manifest names. It appears under its name only when it is whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from worker import digests, encryption, manifest, programs, tarstream
from worker.durable import sync_folder
from worker.errors import JobFailed

ORIGIN = "origin.json"
"""The member that says where an archive comes from: text for people, believed by nobody."""

_CHUNK = 1 << 20
_SAY_EVERY = 2.0
_STAGED_FOR = 24 * 3600.0
_SURELY_LOCKED = 60.0
"""Seconds after which whoever made a file has locked it."""


class Exported(NamedTuple):
    """An archive: its file and its length in bytes."""

    path: Path
    size: int


class Progress:
    """Says every few seconds how much of something is done.

    Args:
        step: is told.
        doing: what is done, "writing archive".
        total: bytes.
    """

    def __init__(self, step: Callable[[str], None], doing: str, total: int) -> None:
        self._step, self._doing, self._total = step, doing, total
        self._done = 0
        self._said = time.monotonic()
        step(doing)

    def add(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said >= _SAY_EVERY:
            self._said = time.monotonic()
            self._step(f"{self._doing}: {self._done >> 20} of {self._total >> 20} MiB")


def export(
    image: Path,
    target: Path,
    *,
    origin: dict[str, Any],
    recipients: Sequence[str],
    gpg_recipients: Sequence[str],
    step: Callable[[str], None],
) -> Exported:
    """Write an archive of an image.

    Every byte is compared with the manifest while it is written.

    Args:
        image: the image's folder.
        target: the archive, in a folder that only root may enter; nothing may be there yet.
        origin: where it comes from, for whoever imports it.
        recipients, gpg_recipients: who may read it; nobody for "anybody who has it".

    Raises:
        JobFailed: the image is damaged, the file exists, a program failed; then there is no archive.
    """
    facts = manifest.read(image)
    row = encryption.to_write(recipients, gpg_recipients)
    if os.path.lexists(target):
        raise _exists(target)
    with _new_file(target) as (file, temporary):
        progress = Progress(
            step, "writing archive", sum(int(entry["size"]) for entry in facts["files"].values())
        )
        with programs.into(file, row) as running:
            try:
                _write(running.end, image, facts, origin, progress)
            except BrokenPipeError:
                failures = running.kill()
                raise _not_written(failures) from None
            failures = running.finish()
        if failures:
            raise _not_written(failures)
        step("syncing archive")
        os.fsync(file)
        try:
            os.link(temporary, target)  # unlike a rename it never replaces a file
        except FileExistsError:
            raise _exists(target) from None
        sync_folder(target.parent)
        return Exported(target, os.fstat(file).st_size)


def _write(
    stream: IO[bytes], image: Path, facts: dict[str, Any], origin: dict[str, Any], progress: Progress
) -> None:
    for name, content in (
        (manifest.NAME, (image / manifest.NAME).read_bytes()),
        (ORIGIN, json.dumps(origin).encode()),
    ):
        stream.write(tarstream.header(name, len(content)) + content + tarstream.padding(len(content)))
    for name, recorded in facts["files"].items():
        size, sealed = int(recorded["size"]), digests.recorded(recorded)
        if sealed is None:
            raise manifest.damaged(image, [f"{name}: has no sum"])
        found = sealed.begin()
        stream.write(tarstream.header(name, size))
        for data in _content(image / name, size):
            found.update(data)
            stream.write(data)
            progress.add(len(data))
        stream.write(tarstream.padding(size))
        if not sealed.agrees(found):
            raise manifest.damaged(image, [f"{name}: its content has changed"])
    stream.write(tarstream.END)
    stream.flush()


def _content(path: Path, size: int) -> Iterator[bytes]:
    """Yield a file of an image, which must be a plain file of `size` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise manifest.damaged(path.parent, [f"{path.name}: {error.strerror}"]) from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if os.fstat(descriptor).st_size != size:
            raise manifest.damaged(path.parent, [f"{path.name}: has not the {size} bytes expected"])
        left = size
        while left:
            data = file.read(min(_CHUNK, left))
            if not data:
                raise manifest.damaged(path.parent, [f"{path.name}: ends too early"])
            left -= len(data)
            yield data


@contextmanager
def _new_file(target: Path) -> Iterator[tuple[int, Path]]:
    """Open a file beside `target` that is gone after the block, or with the worker's next sweep.

    Yields:
        Its descriptor, and its name. Its lock says that somebody writes it.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(file)


def sweep(folder: Path) -> None:
    """Remove what an export has left that was killed, or a client that was."""
    for path in folder.glob("staged-*"):
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > _STAGED_FOR:
                path.unlink()
    for path in folder.glob(".*.new"):
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if time.time() - os.fstat(file).st_mtime > _SURELY_LOCKED:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(file)


def _exists(target: Path) -> JobFailed:
    return JobFailed(
        "archive_exists", f"The file {target} exists already.", "Choose another name, or move it away."
    )


def _not_written(lines: list[str]) -> JobFailed:
    return JobFailed(
        "export_failed",
        "The archive could not be written.",
        "See what the program said; make room if the disk is full (df -h).",
        lines,
    )
