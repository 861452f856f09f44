"""Runs a command with the settings of /etc/miehisto/miehisto.env, as systemd's units have them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

FILE = Path("/etc/miehisto/miehisto.env")


def settings_in(text: str) -> dict[str, str]:
    """Return the variables of an EnvironmentFile (systemd.exec(5)), one a line, perhaps in quotes."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else value
    return found


def main() -> NoReturn:
    """Become the command that the arguments are."""
    try:
        text = FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        sys.exit(f"{FILE} cannot be read: {error.strerror}; try with sudo.")
    command = sys.argv[1:]
    os.execvpe(command[0], command, {**settings_in(text), **os.environ})  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
