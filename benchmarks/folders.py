"""A folder of its own for a measurement, and the end of those that killed ones have left. Knows no node."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "miehisto-bench-"
_OWNER = "owner"


@contextlib.contextmanager
def own_folder() -> Iterator[tuple[Path, int]]:
    """Make a folder for the block, after deleting those in which nobody works any more.

    Yields:
        The folder, and a descriptor to pass on to daemons that work in it. While anybody has it open no other
        run deletes the folder: it is a lock, for a PID may be another namespace's, or somebody else's by now.
    """
    _delete_left()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    folder.chmod(0o755)
    try:
        with (folder / "new").open("wb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _OWNER)  # never seen without its lock
            yield folder, owner.fileno()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _delete_left() -> None:
    """Delete the folders of runs that were killed, unless a daemon or a service of theirs still lives."""
    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{_OWNER}"):
        services = owner.parent.glob("run/services/*/lock")  # held by the supervisor of each
        if not any(map(_is_held, [owner, *services])):
            shutil.rmtree(owner.parent, ignore_errors=True)


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is held, or has just gone
        return True
    return False
