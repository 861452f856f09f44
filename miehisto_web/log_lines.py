"""Log lines that nobody outside can forge: what was sent begins no line and moves no terminal's cursor."""

import logging
import re

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
