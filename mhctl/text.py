"""How values look: tables, sizes, times, command lines, errors; knows no API."""

from __future__ import annotations

import sys

from mhctl.errors import CannotWrite

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mhctl.errors import MhctlError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
UNQUOTED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@%+=:,./-_")


def plain(text: str) -> str:
    """Makes control characters visible, so that no name or message can steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Harmless:
    """Bytes of anybody's, piece by piece, for a terminal: only newlines and tabs are more than letters."""

    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def shown(self, piece: bytes) -> bytes:
        """What to write for a piece; a letter that it cuts in two comes with the next one."""
        text = self._decoder.decode(piece)
        if not text.isprintable():
            text = "".join(c if c in "\n\t" else plain(c) for c in text)
        return text.encode("utf-8")


def quoted(word: str) -> str:
    """One word of a command line as a shell would need it (shlex.quote would show control characters raw)."""
    if word and UNQUOTED.issuperset(word):
        return word
    if word.isprintable():
        return "'" + word.replace("'", "'\"'\"'") + "'"
    return "$'" + plain(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def command_line(args: list[str]) -> str:
    """A command line in one line, ready to be copied into a shell."""
    return " ".join(quoted(str(arg)) for arg in args)


def size(octets: object) -> str:
    """A size in bytes as the seed wrote it: 21.41MiB."""
    if not isinstance(octets, (int, float)):
        return "-"
    value, unit = float(octets), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.2f}{UNITS[unit]}" if unit else f"{int(value)}B"


def moment(stamp: object) -> str:
    """An ISO time as the seed wrote it, in UTC: 2020-11-13 12:37:30 +0000; "-" for none."""
    if not stamp:
        return "-"
    from datetime import UTC, datetime

    try:
        return datetime.fromisoformat(str(stamp)).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S +0000")
    except ValueError:
        return plain(str(stamp))


def value(thing: object) -> str:
    """A field for people: "-" for nothing, yes and no, lists and objects in one line."""
    if thing is None or thing in ("", [], {}):
        return "-"
    if isinstance(thing, bool):
        return "yes" if thing else "no"
    if isinstance(thing, (dict, list)):
        import json

        return json.dumps(thing, ensure_ascii=False)
    return plain(str(thing))


def table(heads: list[str], rows: list[list[str]], *, least: dict[str, int]) -> str:
    """A table whose columns fit their content; the last column is not padded.

    Args:
        least: the seed's column widths, so that an empty table has the known look too.
    """
    widths = [
        max([len(head), least.get(head, 0), *(len(row[column]) for row in rows)])
        for column, head in enumerate(heads)
    ]
    widths[-1] = 0
    lines = (
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [heads, *rows]
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def fields(pairs: list[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    width = max((len(name) for name, _ in pairs), default=0) + 1
    return "".join(f"{name + ':':<{width}} {text}\n" for name, text in pairs)


def put(text: str) -> None:
    """Writes to stdout.

    Raises:
        CannotWrite: it takes no more.
    """
    _or_complain(lambda: sys.stdout.write(text))


def put_bytes(piece: bytes) -> None:
    """Writes bytes to stdout at once; raises what `put` does."""
    _or_complain(lambda: sys.stdout.buffer.write(piece))
    flush()


def flush() -> None:
    """Writes what stdout still holds back; raises what `put` does."""
    _or_complain(sys.stdout.flush)


def _or_complain(write: Callable[[], object]) -> None:
    try:
        write()
    except BrokenPipeError:  # a reader that has had enough is no failure to tell of
        raise
    except OSError as reason:
        raise CannotWrite(reason) from None


def put_json(thing: Any) -> None:
    """Writes one JSON value to stdout; raises what `put` does."""
    import json

    put(json.dumps(thing, indent=2) + "\n")


def complain(error: MhctlError) -> None:
    """Writes an error to stderr: the sentence, notes, other programs' own lines, the remedy."""
    lines = [f"mhctl: {plain(error.message)}"]
    lines += [f"  {plain(note)}" for note in error.notes]
    lines += [f"    {plain(line)}" for line in error.lines]
    if error.remedy:
        lines.append(f"  remedy: {plain(error.remedy)}")
    sys.stderr.write("\n".join(lines) + "\n")
