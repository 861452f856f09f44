"""The shape of a service's spec, checked where it comes from outside: a row, an image's manifest, the disk.

The site checks what people send; here it counts that a row may have been written by somebody else, and a
manifest by hand. Knows nothing of what is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worker.errors import JobFailed


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # half a character, which no program can be given
        return False


def _is_folder(value: object) -> bool:
    return _is_text(value) and (value == "" or str(value).startswith("/"))


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value)) and bool(value[0])


def _is_environment(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text(name) and name and "=" not in name and _is_text(text) for name, text in value.items()
    )


def _is_bind(value: object) -> bool:
    parts = str(value).split(":") if _is_text(value) else []
    return (
        len(parts) in (2, 3)
        and parts[2:] in ([], ["ro"])
        and all(part.startswith("/") and ".." not in part.split("/") for part in parts[:2])
    )


def _are_binds(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_bind, value))


def _are_folders(value: object) -> bool:
    return isinstance(value, list) and all(_is_folder(item) and item for item in value)


def _are_privileges(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    names = [value.get("cap_add", []), value.get("cap_drop", [])]
    return (
        all(isinstance(item, list) and all(map(_is_text, item)) for item in names)
        and isinstance(value.get("new_privileges", False), bool)
        and isinstance(value.get("private_tmp", 0), int)
    )


def _are_limits(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(number, int) and not isinstance(number, bool) and number > 0 for number in value.values()
    )


_FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "argv": (_is_command, "a list of texts that begins with the command"),
    "user": (_is_text, "a text"),
    "group": (_is_text, "a text"),
    "cwd": (_is_folder, "an absolute path"),
    "env": (_is_environment, "texts by their names"),
    "data": (_are_folders, "a list of absolute paths"),
    "carry": (_are_folders, "a list of absolute paths"),
    "privileges": (_are_privileges, "cap_add and cap_drop with names of capabilities"),
    "limits": (_are_limits, "numbers by their names"),
    "binds": (_are_binds, "a list of SRC:DST[:ro] with absolute paths"),
}


def checked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec whose every field is what it should be; fields of later versions pass.

    Raises:
        JobFailed: names the field that is not.
    """
    for name, (is_right, wanted) in _FIELDS.items():
        if (name in spec or name == "argv") and not is_right(spec.get(name)):
            raise JobFailed(
                "bad_spec",
                f"What the service is to run is not understood: {name} is not {wanted}.",
                "Create the service anew; if nobody has changed its row or its image by hand, report it.",
            )
    return dict(spec)


def read(path: Path) -> dict[str, Any]:
    """Return the spec that the node keeps of a service since its last start.

    Raises:
        JobFailed: it is gone or damaged.
    """
    try:
        spec = json.loads(path.read_bytes())
        if not isinstance(spec, dict):
            raise ValueError("it is not an object")
        return checked(spec)
    except (OSError, ValueError, RecursionError, JobFailed) as error:
        raise JobFailed(
            "spec_damaged",
            f"What the node keeps of the service is damaged: {path}: {str(error).rstrip('.')}.",
            "Restart the service, which writes it again (its memory is lost), or put the file back.",
        ) from None
