"""What an image says that it carries of a service's data: the list that carry.py writes, read with distrust.

Two files of the image hold the data: `carried.json` says what there is, `carried.pack` has the content of the
regular files, without their holes, each piece at a whole block so that a file system can share the blocks.
Knows nothing of where the data comes from and goes to.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.errors import JobFailed
from worker.files import content_of
from worker.trees import OURS

INDEX = "carried.json"
PACK = "carried.pack"
XATTRS = ("user.", "system.posix_acl_", "security.capability")
KINDS = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}
"""What is carried; sockets are made anew by who listens on them, and devices are nobody's data."""

Item = dict[str, Any]
_ENDS = {  # of the numbers of an item, each below its own
    "mode": 0o10000,
    "uid": 2**32 - 1,
    "gid": 2**32 - 1,
    "inode": 2**64,
    "mtime": 2**63,
    "ctime": 2**63,
}


def read(image: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what an image carries: a dict a path, with `path` and `items`; empty if it carries nothing.

    Args:
        facts: its manifest.

    Raises:
        JobFailed: the index is not one that `carry.pack` writes.
    """
    names = [*facts.get("carried", []), *facts.get("shared_memory", [])]
    if not names:
        return []
    try:
        roots = json.loads(content_of(image / INDEX))["roots"]
        if [root["path"] for root in roots] != names:
            raise ValueError("the manifest names other paths")
        size = (image / PACK).stat().st_size
        for root in roots:
            _check_root_of_index(root["path"], root["items"])
            contents: set[str] = set()
            folders: set[str] = set()
            for number, item in enumerate(root["items"]):
                _check_item(item, number == 0, contents, folders, size)
        pieces = [piece for root in roots for item in root["items"] for piece in item.get("pieces", [])]
        if sum(length for _, _, length in pieces) > size:
            raise ValueError("a piece is used twice")
    except (AttributeError, IndexError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise JobFailed(
            "image_damaged",
            f"The image's list of carried data ({INDEX}) cannot be used: {error}.",
            "Restore another image of this service.",
        ) from None
    found: list[dict[str, Any]] = roots
    return found


def _check_root_of_index(path: Any, items: list[Item]) -> None:
    if not _text(path).startswith("/"):
        raise ValueError("a path is not absolute")
    if items[0]["kind"] not in {"folder", "file"} or (items[0]["kind"] == "file" and len(items) > 1):
        raise ValueError("a kind is out of place")


def _check_item(item: Item, first: bool, contents: set[str], folders: set[str], size: int) -> None:
    """Refuse, by one of the errors that `read` expects, what `unpack.make` could not make or must not.

    Args:
        contents, folders: the paths of the files and of the folders so far; added to.
        size: of the pack, in bytes.
    """
    path, kind = _text(item["path"]), item["kind"]
    _check_place(path, first, folders)
    if kind not in KINDS.values():
        raise ValueError("a kind is unknown")
    for name, end in _ENDS.items():
        _check_number(abs(item[name]) if name.endswith("time") else item[name], end)
    if kind == "link" and not _text(item["target"]):
        raise ValueError("a link leads nowhere")
    if "same_as" in item:
        if kind != "file" or item["same_as"] not in contents:
            raise ValueError("a hard link leads nowhere")
    elif kind == "file":
        contents.add(path)
        _check_number(item["size"], 2**63)
        for piece in item["pieces"]:
            at, begin, length = (_check_number(value, 2**63) for value in piece)
            if at + length > item["size"] or begin + length > size:
                raise ValueError("a piece is out of bounds")
        _check_attributes(item["xattrs"])
    elif kind == "folder":
        folders.add(path)
        _check_attributes(item["xattrs"])


def _check_attributes(attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if not _text(name).startswith(XATTRS):
            raise ValueError("an attribute is not carried")
        base64.b64decode(value, validate=True)


def _check_place(path: str, first: bool, folders: set[str]) -> None:
    parts = path.split("/")
    if first != (path == "") or parts[0].startswith(OURS):
        raise ValueError("a path is out of place")
    if not first and {"", ".", ".."} & set(parts):
        raise ValueError("a path leads out of its folder")
    # A link would lead anywhere.
    if not first and "/".join(parts[:-1]) not in folders:
        raise ValueError("a path leads over what is no folder")


def _check_number(value: Any, end: int) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError("a number is out of bounds")
    return value


def _text(value: Any) -> str:
    """Return a text that can be a name in a file system."""
    if not isinstance(value, str) or b"\0" in os.fsencode(value):
        raise ValueError("a text is none")
    return value
