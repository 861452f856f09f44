"""Files that are whole or not there at all, whatever dies. Knows nothing of their content."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # runmh, which writes its state with this, stays small without pathlib
    from pathlib import Path


def write_json(path: Path | str, content: Any, *, durable: bool = True, mode: int = 0o600) -> None:
    """Write `content` as JSON so that a reader finds the old file or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        content: what json can write.
        durable: also survive a power cut (two fsyncs); not needed for what a reboot ends anyway.
        mode: the file's permissions.

    Raises:
        OSError: the disk is full, the folder is gone.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # In ASCII, for a file's name need not be UTF-8 (os.fsdecode).
            json.dump(content, file, separators=(",", ":"))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable:
        sync_folder(os.path.dirname(path))


def sync_folder(folder: str | Path) -> None:
    """Make the names in `folder` survive a power cut (fsync(2), the note on directories)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
