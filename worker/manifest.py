"""The manifest of an image: what seals it and what it must still hold. Knows nothing of how it was dumped.

A folder of the pool is an image if, and only if, it has a manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worker import digests
from worker.durable import sync_folder, write_json
from worker.errors import JobFailed
from worker.sums import GrowingSums

NAME = "manifest.json"
FIGURES = "statistics.json"
VERSION = 2
"""1 had SHA-256 sums of the files."""
LARGE = 4 << 20
_DOOMED = ".deleted-"
_SURELY_LEFT = 3600.0
"""Seconds for which nothing has gone from a doomed folder that nobody deletes any more."""
FIELDS: dict[str, tuple[type, str]] = {
    "version": (int, "of the manifest itself"),
    "image": (str, "the image's id, which is the name of its folder"),
    "service": (str, "the id of the service that was dumped"),
    "spec": (dict, "how the service was started: command, user, folder, environment, binds, limits"),
    "created": (float, "when it was dumped, in seconds since 1970"),
    "leave_running": (bool, "whether the service ran on"),
    "options": (dict, "of the dump; its restore repeats what must be the same"),
    "criu": (str, "the version of CRIU"),
    "kernel": (str, "the release of the kernel"),
    "machine": (str, "the architecture, x86_64 say"),
    "data": (list, "the files and folders of its data that a restore compares"),
    "carried": (list, "those of which the image holds a copy"),
    "shared_memory": (list, "files in memory that it holds a copy of, as POSIX shared memory is"),
    "mounts": (list, "what a restore has to mount, each as path and source"),
    "pipe": (int, "the inode of the pipe that the service prints to"),
    "comm": (str, "the name of its first process"),
    "pages_bytes": (int, "how many bytes are pages of memory"),
    "files": (
        dict,
        "each file but this one: `size` in bytes, and its sum `blake3` (version 1: `sha256`)",
    ),
    "sum": (str, "the SHA-256 of all else in the manifest"),
}
"""What a manifest says, field by field; docs/reference/manifest.md is made of it."""

_REQUIRED = ("version", "image", "service", "spec", "files", "mounts", "pipe", "sum")


def seal(partial: Path, final: Path, facts: dict[str, Any], sums: GrowingSums) -> dict[str, Any]:
    """Make the files in `partial` an image at `final` that survives a power cut.

    Args:
        partial: the folder that CRIU has written.
        final: where the image shall be, in the same file system.
        facts: all of the manifest but `version`, `files` and `sum`.
        sums: what has been summed of `partial` so far.

    Returns:
        The manifest.

    Raises:
        OSError: the disk is full or broken; `partial` is then as it was, but for a manifest.
    """
    paths = sorted(partial.iterdir())
    for path in paths:
        os.chown(path, 0, 0)
        path.chmod(0o600)
    found = sums.settle(paths)
    files = {path.name: {"size": path.stat().st_size, digests.ALGORITHM: found[path.name]} for path in paths}
    manifest = _summed({"version": VERSION, **facts, "files": files})
    os.chown(partial, 0, 0)
    write_json(partial / NAME, manifest, durable=False)
    # Nothing in it is an image before the name is, so the manifest need not come last.
    sums.sync()
    partial.rename(final)
    sync_folder(final.parent)
    return manifest


def add_figures(image: Path, figures: dict[str, int]) -> None:
    """Keep CRIU's figures beside the manifest: it tells them only after the sealing. They may be lost."""
    with contextlib.suppress(OSError):  # a pool that is full by now loses the figures, not the image
        write_json(image / FIGURES, figures, durable=False)


def figures(image: Path) -> dict[str, int]:
    """Return what `add_figures` kept; nothing if that was lost."""
    try:
        found = json.loads((image / FIGURES).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _summed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the sum of all else that it says: it tells CRIU what to mount and where."""
    said = {name: value for name, value in manifest.items() if name != "sum"}
    return said | {"sum": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


def read(image: Path) -> dict[str, Any]:
    """Return the manifest of the image in the folder `image`.

    Raises:
        JobFailed: there is no such image, its manifest is damaged, or it is another image's.
    """
    try:
        text = (image / NAME).read_bytes()
    except FileNotFoundError:
        if image.is_dir():
            raise damaged(image, [f"{NAME}: is missing"]) from None
        raise JobFailed(
            "image_missing",
            f"The image {image.name} is not in this node's pool.",
            "See `mhctl image list`; if it was removed by hand, delete it here too.",
        ) from None
    except OSError as error:
        raise damaged(image, [f"{NAME}: {error}"]) from None
    manifest = parse(image, text)
    if manifest["image"] != image.name:
        raise JobFailed(
            "image_misplaced",
            f"The folder of the image {image.name} holds another image, {manifest['image']}.",
            "Give each image's folder its own name again (`image` in its manifest.json); until then restore"
            " another image of this service.",
        )
    return manifest


def parse(image: Path, text: bytes) -> dict[str, Any]:
    """Return the manifest that `text` is; `image` is the folder that it is of, or will be.

    Raises:
        JobFailed: it is damaged, or newer than this code.
    """
    try:
        manifest = json.loads(text, parse_constant=_no_number)
        intact = isinstance(manifest, dict) and manifest == _summed(manifest)
    except (ValueError, RecursionError) as error:
        raise damaged(image, [f"{NAME}: {error}"]) from None
    if not isinstance(manifest, dict):
        raise damaged(image, [f"{NAME}: is not an object"])
    wrong = [name for name in _REQUIRED if not isinstance(manifest.get(name), FIELDS[name][0])]
    if wrong:
        raise damaged(image, [f"{NAME}: {name} is missing or of the wrong type" for name in wrong])
    if manifest["version"] > VERSION:
        raise JobFailed(
            "manifest_too_new",
            f"The image {image.name} was made by a newer Miehistö (manifest {manifest['version']}).",
            "Restore it on a node with that version, or upgrade this one.",
        )
    if not intact:
        raise damaged(image, [f"{NAME}: its content has changed"])
    return manifest


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def faults(image: Path, manifest: dict[str, Any]) -> list[str]:
    """Return what differs between an image's files and its manifest, a line a file; empty if nothing does.

    Every byte is read, but for files of at least `LARGE` bytes, whose names and sizes are compared: those are
    pages of memory, which CRIU copies without looking, and `changed` reads them.

    Args:
        image: the image's folder.
        manifest: what `read` returned.
    """
    found = []
    present = {path.name for path in image.iterdir()} - {NAME, FIGURES}
    for name, recorded in manifest["files"].items():
        path = image / name
        if Path(name).name != name or not isinstance(recorded, dict):
            found.append(f"{NAME}: bad entry {name!r}")
        elif name not in present:
            found.append(f"{name}: is missing")
        elif path.is_symlink() or not path.is_file():
            found.append(f"{name}: is not a regular file")
        elif path.stat().st_size != recorded.get("size"):
            found.append(f"{name}: has {path.stat().st_size} bytes, {recorded.get('size')} expected")
        elif path.stat().st_size < LARGE:
            found += changed(image, manifest, [name])
    found += [f"{name}: does not belong to the image" for name in sorted(present - set(manifest["files"]))]
    return found


def large_files(manifest: dict[str, Any]) -> list[str]:
    """Return the names of the files whose bytes `faults` does not read."""
    return [name for name, recorded in manifest["files"].items() if recorded["size"] >= LARGE]


def changed(image: Path, manifest: dict[str, Any], names: Iterable[str]) -> list[str]:
    """Return a line for each of these files whose bytes are not those that were sealed."""
    return [
        f"{name}: its content has changed"
        for name in names
        if not _is_sealed(image / name, manifest["files"][name])
    ]


def _is_sealed(path: Path, entry: object) -> bool:
    sealed = digests.recorded(entry)
    return sealed is not None and sealed.is_of(path)


def damaged(image: Path, lines: list[str]) -> JobFailed:
    """Return the failure that says that an image is not what was sealed."""
    return JobFailed(
        "image_damaged",
        f"The image {image.name} is damaged: {lines[0]}"
        + (f", and {len(lines) - 1} more." if len(lines) > 1 else "."),
        "Restore another image of this service; put the damaged files back from a backup if there is one.",
        lines,
    )


def remove(image: Path) -> None:
    """Delete an image: first its name in the pool goes, so that half an image is never found there."""
    doomed = image.with_name(_DOOMED + image.name.lstrip("."))
    if doomed.exists():  # whoever began with it was killed
        shutil.rmtree(doomed)
    try:
        image.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed)


def sweep(pool: Path, left_for: float = _SURELY_LEFT) -> None:
    """Delete what is left of images whose deletion was killed: it is memory, passwords included.

    Args:
        pool: the image pool.
        left_for: seconds for which nothing may have gone from it, as it does while somebody deletes it.
    """
    for folder in pool.glob(f"{_DOOMED}*"):
        with contextlib.suppress(FileNotFoundError):
            # A rename changes it, too (inode(7), "ctime").
            if time.time() - folder.stat().st_ctime >= left_for:
                shutil.rmtree(folder)
