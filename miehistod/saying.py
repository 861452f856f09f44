"""How miehistod writes a line: as it is, or as one JSON object. Knows nothing of who reads it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime

MARK = " | "


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
    entry = {"time": now, "part": part.strip(), **(said if isinstance(said, dict) else {"message": message})}
    say(json.dumps(entry))


SAYING: dict[str, Callable[[str], None]] = {"text": say, "json": say_json}
"""What MIEHISTO_LOG_FORMAT may be."""
