"""Log lines that nobody outside can forge: what was sent begins no line and moves no terminal's cursor."""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from services.concerning import ids_of

# miehistod cuts lines of more than 8 KiB, and half a line is no JSON.
_LONGEST = 2000
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def plain(text: str) -> str:
    """Return text with its control characters written out, but for the newline."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Formatter(logging.Formatter):
    """One line an entry; a traceback follows it indented."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n  ".join(plain(super().format(record)).split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = record.message.replace("\n", "\\n")
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object an entry, in ASCII and on one line, with the ids of what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_LONGEST],
            **ids_of(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)[-_LONGEST:]
        return json.dumps(entry)
