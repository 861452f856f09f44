"""The command `mhctl`: reads the command line, calls one verb, turns errors into exit codes."""

from __future__ import annotations

import os
import sys

from mhctl import __version__
from mhctl.commandline import parse
from mhctl.errors import DONE, INTERRUPTED, JOB_FAILED, MhctlError
from mhctl.text import complain, flush, put, put_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from mhctl.commandline import Parsed


def verbs_of(noun: str) -> dict[str, Callable[[Parsed], None]]:
    """The functions of a noun's verbs; only the noun's own module is loaded."""
    if noun == "service":
        from mhctl.services import VERBS
    elif noun == "image":
        from mhctl.images import VERBS
    else:
        from mhctl.jobs import VERBS
    return VERBS


def run(words: list[str]) -> None:
    """Does what a command line asks for.

    Raises:
        MhctlError: every expected failure.
    """
    parsed = parse(words)
    if parsed.options.get("version"):
        put(f"mhctl {__version__}\n")
    elif parsed.options.get("help") or parsed.verb is None:
        from mhctl.help import help_for

        put(help_for(parsed.noun, parsed.verb))
    else:
        try:
            verbs_of(parsed.noun)[parsed.verb.name](parsed)
        except MhctlError as error:
            if parsed.options["json"] and not error.shown:
                put_json(error.as_dict())
            raise


def main(words: list[str] | None = None) -> int:
    """The entry point.

    Args:
        words: the command line without the program's name; sys.argv's by default.

    Returns:
        the exit code.
    """
    words = sys.argv[1:] if words is None else words
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # an argument that is no UTF-8 must not break a table
    code = DONE
    try:
        run(words)
        flush()
    except MhctlError as error:
        complain(error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = JOB_FAILED
    try:
        sys.stdout.flush()
    except OSError:
        # The interpreter flushes stdout once more at exit: give it something that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or JOB_FAILED
    return code


def command() -> NoReturn:
    """The command's whole life; ends at once, for taking the interpreter apart takes 3 ms."""
    code = main()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    command()
