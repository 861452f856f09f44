"""Manual pages for the Debian package, made from what each command says of itself."""

from __future__ import annotations

import gzip
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from django.core.management.base import BaseCommand

from mhctl import __version__
from mhctl.commandline import ALIASES, NOUNS, Verb
from mhctl.help import EXIT_CODES, usage

ROOT = Path(__file__).resolve().parent.parent
# Apart from --help, which Django gives each of them.
_COMMANDS = ("services", "images", "worker")
MANAGE = (
    "Django's manage.py with the settings of /etc/miehisto/miehisto.env: the verbs of the server's own "
    "shell. Django's own commands serve too, such as createsuperuser and changepassword."
)


def text(said: str) -> str:
    """Return text as roff(7) takes it: hyphens to be copied, no line that begins with a request."""
    lines = said.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def page(name: str, section: int, about: str, body: Iterable[str]) -> str:
    """Return a manual page.

    Args:
        about: what the command is, a phrase without a full stop.
        body: lines of roff(7) that follow NAME.
    """
    head = f'.TH {name.upper()} {section} "" "Miehistö {__version__}" "Miehistö"'
    return "\n".join([head, ".SH NAME", f"{text(name)} \\- {text(about)}", *body]) + "\n"


def _said(said: str) -> list[str]:
    """Return a usage and what follows it, as they stand."""
    synopsis, _, rest = said.strip().removeprefix("usage: ").partition("\n\n")
    lines = [".SH SYNOPSIS", ".nf", text(synopsis.replace("\n       ", "\n")), ".fi"]
    return [*lines, ".SH DESCRIPTION", ".nf", text(rest), ".fi"] if rest else lines


def _verb(noun: str, verb: Verb) -> list[str]:
    lines = [
        ".TP",
        f".B {text(usage(noun, verb))}",
        text(f"{verb.help_text[:1].upper()}{verb.help_text[1:]}."),
    ]
    lines.append(".RS")
    for option in verb.options:
        names = ", ".join(option.names) + (f" {option.metavar}" if option.metavar else "")
        lines += [".TP", f".B {text(names)}", text(option.help_text)]
    return [*lines, ".RE"]


def mhctl() -> str:
    """The page of mhctl, from its table of verbs."""
    body = [".SH SYNOPSIS", ".B mhctl", text("NOUN VERB …"), ".SH DESCRIPTION"]
    body.append(
        text("Asks the Miehistö of a node. An id's unique beginning or a name serves wherever an id does.")
    )
    body.append(
        text("Short forms: " + ", ".join(f"{short} ({noun})" for short, noun in ALIASES.items()) + ".")
    )
    for noun, verbs in NOUNS.items():
        body.append(f".SH {text(f'mhctl {noun}'.upper())}")
        for verb in verbs:
            body += _verb(noun, verb)
    body += [".SH EXIT STATUS", text(EXIT_CODES.strip().removeprefix("exit codes: "))]
    body += [".SH SEE ALSO", ".BR miehistod (8)"]
    return page("mhctl", 1, "create, dump and restore services", body)


def manage() -> str:
    """The page of miehisto-manage, from the commands that Django finds."""
    body = [".SH SYNOPSIS", ".B miehisto\\-manage", text("COMMAND [ARG…]"), ".SH DESCRIPTION", text(MANAGE)]
    body.append(".SH COMMANDS")
    for name, command in manage_commands().items():
        body += [".TP", f".B {text(name)}", text(command.help)]
    body.append(text("COMMAND --help tells more."))
    return page("miehisto-manage", 8, "the verbs of Miehistö in the server's own shell", body)


def manage_commands() -> dict[str, type[BaseCommand]]:
    """Return our own commands of manage.py by their names, sorted; Django must be set up."""
    commands = {}
    for package in _COMMANDS:
        module = importlib.import_module(f"{package}.management.commands")
        for found in pkgutil.iter_modules(module.__path__):
            commands[found.name] = importlib.import_module(f"{module.__name__}.{found.name}").Command
    return dict(sorted(commands.items()))


def pages() -> dict[tuple[str, int], str]:
    """Return the page of each command of the package, by name and section."""
    import django

    from miehistod.main import USAGE
    from worker.runmh.order import USAGE as RUNMH

    django.setup()
    setup = [sys.executable, "-m", "scripts.setup_package", "--help"]
    help_of_setup = subprocess.run(
        setup, cwd=ROOT, env={"COLUMNS": "79"}, capture_output=True, text=True, check=True
    ).stdout
    see = [".SH SEE ALSO", ".BR mhctl (1)"]
    runmh = "Started by the worker, one for each service, whose parent it is. Nobody types it."
    return {
        ("mhctl", 1): mhctl(),
        ("miehistod", 8): page("miehistod", 8, "run everything of one node", [*_said(USAGE), *see]),
        ("miehisto-setup", 8): page("miehisto-setup", 8, "find a CRIU that works", _said(help_of_setup)),
        ("miehisto-manage", 8): manage(),
        ("runmh", 1): page("runmh", 1, "supervise one service", _said(f"{RUNMH}\n\n{runmh}")),
    }


def write(folder: Path) -> None:
    """Write all pages below a folder man/, packed as Debian's policy has them (section 12.1)."""
    for (name, section), said in pages().items():
        path = folder / f"man{section}/{name}.{section}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(said.encode(), 9, mtime=0))
