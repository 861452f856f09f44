"""Archives made by hand: sound ones, and those that somebody has shaped."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blake3 import blake3

from worker import manifest
from worker.errors import JobFailed
from worker.importing import Import, Imported
from worker.paths import Paths

IMAGE = "a" * 32
SERVICE = "b" * 32
FILES = {"core-1.img": b"core", "pages-1.img": b"memory" * 300, "empty.img": b""}

Change = Callable[[dict[str, Any]], None]


def node_in(folder: Path) -> Paths:
    """Return the folders of a node without anything on it."""
    paths = Paths(folder / "state", folder / "run", folder / "log")
    for made in (paths.images, paths.archives):
        made.mkdir(parents=True, mode=0o700)
    return paths


def facts_of(files: dict[str, bytes], change: Change = lambda _: None) -> bytes:
    """Return the manifest of these files, summed after `change` has been at it."""
    facts: dict[str, Any] = {
        "version": manifest.VERSION,
        "image": IMAGE,
        "service": SERVICE,
        "spec": {"argv": ["/bin/true"], "user": "root", "group": "", "cwd": "/", "env": {}, "binds": []},
        "mounts": [["/", "/"]],
        "pipe": 7,
        "comm": "true",
        "files": {
            name: {"size": len(content), "blake3": blake3(content).hexdigest()}
            for name, content in files.items()
        },
    }
    change(facts)
    return json.dumps(manifest._summed(facts)).encode()


def tar_of(*members: tuple[tarfile.TarInfo | str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar stream as Python's tarfile writes it; a name stands for a plain file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if isinstance(member, str):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def compressed(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


def sound_members(files: dict[str, bytes] | None = None) -> list[tuple[tarfile.TarInfo | str, bytes]]:
    """Return the members of an archive that nobody has been at."""
    files = FILES if files is None else files
    return [(manifest.NAME, facts_of(files)), *files.items()]


def do_import(paths: Paths, archive: bytes, **options: Any) -> Imported:
    """Import an archive of these bytes."""
    file = paths.archives / "x.tar.zst"
    file.write_bytes(archive)
    return import_file(paths, file, **options)


def import_file(paths: Paths, file: Path, **options: Any) -> Imported:
    given: dict[str, Any] = {
        "identity": None,
        "check": lambda _: None,
        "notes": {"imported_by": "root"},
        "step": lambda _: None,
        **options,
    }
    return Import(paths, file, **given).run()


def refused(paths: Paths, archive: bytes) -> JobFailed:
    """Return why an archive is refused; nothing of it may be in the pool, or beside it."""
    try:
        done = do_import(paths, archive)
    except JobFailed as failure:
        assert list(paths.images.iterdir()) == []
        assert {path.name for path in paths.state_dir.iterdir()} == {"images", "archives"}
        return failure
    raise AssertionError(f"it was taken: {done}")
