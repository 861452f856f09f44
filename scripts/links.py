"""`make install` and `make uninstall`: links to the commands; replaces and removes only its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts.command import SetupError, say

COMMANDS = ("miehistod", "mhctl", "runmh")
ROOT = Path(__file__).resolve().parent.parent


def is_own(link: Path) -> bool:
    """Tell whether `link` is a link to the command of the same name in some checkout's .venv."""
    if not link.is_symlink():
        return False
    target = link.readlink()
    return target.name == link.name and target.parent.name == "bin" and target.parent.parent.name == ".venv"


def install(source: Path, goal: Path) -> None:
    """Link the commands of `source` into `goal`, all of them or none.

    Raises:
        SetupError: a command is not built yet, or a foreign file has its name.
    """
    for name in COMMANDS:
        link = goal / name
        if not (source / name).exists():
            raise SetupError(f"{source / name} is missing: run `make setup` first.")
        if (link.exists() or link.is_symlink()) and not is_own(link):
            raise SetupError(
                f"{link} is not Miehistö's, so it stays: move it away, or install with BINDIR=FOLDER."
            )
    goal.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        fresh = goal / f".{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(source / name)
        fresh.replace(goal / name)


def uninstall(goal: Path) -> list[str]:
    """Remove the links that `install` made and return their names; foreign files stay."""
    own = [name for name in COMMANDS if is_own(goal / name)]
    for name in own:
        (goal / name).unlink()
    return own


def main() -> int:
    """Install or uninstall the links; the exit status is 0, or 1 after a sentence that says why not."""
    parser = argparse.ArgumentParser(
        prog="scripts.links", description="Link Miehistö's commands into a folder."
    )
    parser.add_argument("verb", choices=["install", "uninstall"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        if options.verb == "install":
            install(ROOT / ".venv/bin", options.folder)
            say(f"{', '.join(COMMANDS)} are linked into {options.folder}.")
        else:
            removed = uninstall(options.folder)
            say(f"{', '.join(removed) or 'nothing'} removed from {options.folder}; services and images stay.")
    except (SetupError, OSError) as error:
        say(f"cannot {options.verb}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
