"""JSON to and from bytes without `json`, whose import takes 8 ms, as much as the start of Python.

What is sent is written here, and what comes is read by the part of `json` that is written in C.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def json_text(thing: Any) -> str:
    """Writes a value of plain types as JSON in ASCII.

    Raises:
        TypeError: it is none of str, int, float, bool, None, list, tuple and dict with str keys.
    """
    if thing is None:
        return "null"
    if isinstance(thing, bool):
        return "true" if thing else "false"
    if isinstance(thing, str):
        return '"' + "".join(map(_escaped, thing)) + '"'
    if isinstance(thing, (int, float)):
        return repr(thing)
    if isinstance(thing, (list, tuple)):
        return "[" + ",".join(map(json_text, thing)) + "]"
    if isinstance(thing, dict) and all(isinstance(key, str) for key in thing):
        return "{" + ",".join(f"{json_text(key)}:{json_text(each)}" for key, each in thing.items()) + "}"
    raise TypeError(f"{type(thing).__name__} has no form in JSON")


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if " " <= character <= "~":
        return character
    code = ord(character)
    if code > 0xFFFF:  # two halves, as UTF-16 has it
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"


class _AsJson:
    """What `json` tells the reader that it is made of."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int


def json_value(data: bytes) -> Any:
    """Reads JSON. Raises ValueError: it is none."""
    try:
        from _json import make_scanner

        text = data.decode().strip(" \t\r\n")
        as_json: Any = _AsJson
        found, end = make_scanner(as_json)(text, 0)
        if end == len(text):
            return found
    except Exception:  # noqa: S110 - another Python may have no such reader, and what is no JSON, `json` explains
        pass
    import json

    return json.loads(data)
