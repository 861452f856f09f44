"""How miehistod writes a line: as it is, or as one JSON object. Knows nothing of who reads it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

MARK = " | "
# What programs that know no JSON write: the access log (parts.site_part), gunicorn's own lines, and Redis'
# (redis.c, serverLogRaw), whose signs are levels.
_SHAPES = {
    "site": (
        re.compile(r"(?P<status>\d{3}) (?P<method>\S+) (?P<path>.*) (?P<milliseconds>\d+)ms"),
        re.compile(r"\[[^]]*\] \[\d+\] \[(?P<level>[A-Z]+)\] (?P<message>.*)"),
    ),
    "redis": (
        re.compile(r"\d+:\w \d+ \w+ \d{4} [\d:.]+ (?P<level>[-.*#]) (?P<message>.*)"),
        re.compile(r"\d+:signal-handler \(\d+\) (?P<message>.*)"),
    ),
}
_SIGNS = {".": "debug", "-": "debug", "*": "info", "#": "warning"}
_NUMBERS = ("status", "milliseconds")


def say(line: str) -> None:
    """Writes a line to stdout; a reader that has left is no reason to end services' manager."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError:
        # Also for Python's own flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_json(line: str) -> None:
    """Writes a line to stdout as an object with time, part and message.

    Args:
        line: a part's name, MARK and what it said; without a part's name it is miehistod's own. What the part
            said as an object stays one.
    """
    part, mark, message = line.partition(MARK)
    if not mark or not part.strip().isalpha():
        part, message = "miehistod", line
    try:
        said = json.loads(message) if message.startswith("{") else None
    except ValueError:
        said = None
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    part = part.strip()
    say(
        json.dumps(
            {"time": now, "part": part, **(said if isinstance(said, dict) else _taken_apart(part, message))}
        )
    )


def _taken_apart(part: str, message: str) -> dict[str, Any]:
    """Returns the fields of a line that is no object; `message` alone where its shape is not known."""
    found = next(filter(None, (shape.fullmatch(message) for shape in _SHAPES.get(part, ()))), None)
    if found is None:
        return {"message": message}
    entry: dict[str, Any] = {"level": "info", "message": message, **found.groupdict()}
    entry["level"] = _SIGNS.get(entry["level"], entry["level"].lower())
    return entry | {name: int(entry[name]) for name in _NUMBERS if name in entry}


SAYING: dict[str, Callable[[str], None]] = {"text": say, "json": say_json}
"""What MIEHISTO_LOG_FORMAT may be."""
