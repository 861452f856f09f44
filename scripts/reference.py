"""Writes docs/reference from what the code itself says; `--check` only tells which pages are out of date."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs/reference"
PACKAGES = ("services", "images", "dashboard", "miehisto_web", "worker")
CHECKOUT = "A checkout's `.venv/bin/python manage.py` has the same verbs, with the shell's environment."
NOTE = "<!-- Written by `make docs` from the code; change that. -->"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return a table of Markdown, a line a row; a bar within a cell stays one."""
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines]


def words(names: Any) -> str:
    """Return names in backquotes, sorted, with commas; a dash for none."""
    return ", ".join(f"`{name}`" for name in sorted(map(str, names))) or "-"


def states() -> list[str]:
    """The page of states and of what leads from one to another."""
    from services.states import (
        ENDED_JOB,
        JOB_TRANSITIONS,
        KINDS,
        SERVICE_TRANSITIONS,
        WITHOUT_PROCESS,
        JobState,
    )

    lines = ["# States", "", "## Of a service"]
    lines += table(
        ("State", "Has a process", "May become"),
        [
            (f"`{state}`", "no" if state in WITHOUT_PROCESS else "yes", words(after))
            for state, after in SERVICE_TRANSITIONS.items()
        ],
    )
    lines += ["", "## Of a job"]
    lines += table(
        ("State", "Is an end", "May become"),
        [
            (f"`{state}`", "yes" if state in ENDED_JOB else "no", words(JOB_TRANSITIONS[state]))
            for state in JobState
        ],
    )
    lines += ["", "## What each kind of job does to its service"]
    lines += ["`delete_service` leaves no service; a dump with `leave_running` leaves it `running`.", ""]
    lines += table(
        ("Kind", "May be asked for while it is", "It is then", "And in the end"),
        [
            (
                f"`{kind}`",
                words(what.allowed),
                words([what.transient] if what.transient else []),
                words([what.success] if what.success else []),
            )
            for kind, what in KINDS.items()
        ],
    )
    return lines


def command_line() -> list[str]:
    """The page of commands, which is what `--help` says of each of them."""
    from mhctl.commandline import ALIASES, COMMON, NOUNS
    from mhctl.help import EXIT_CODES, usage
    from miehistod.main import USAGE
    from scripts.manpages import MANAGE, manage_commands

    lines = ["# Commands", "", "## miehistod", "", "```text", USAGE.rstrip(), "```", ""]
    lines += ["## miehisto-manage", "", f"{MANAGE} {CHECKOUT}", ""]
    rows: list[tuple[str, ...]] = [
        (_typed(name, command()), command.help) for name, command in manage_commands().items()
    ]
    lines += [*table(("Command", ""), rows), ""]
    lines += ["## mhctl", "", "An id's unique beginning or a name serves wherever an id does.", ""]
    short = ", ".join(f"`{short}` for `{noun}`" for short, noun in ALIASES.items())
    lines += [f"Short forms: {short}. {EXIT_CODES.strip().capitalize()}.", ""]
    lines += ["Every verb has these options:", "", *_options(COMMON)]
    for noun, verbs in NOUNS.items():
        for verb in verbs:
            also = f" (also `{'`, `'.join(verb.aliases)}`)" if verb.aliases else ""
            lines += ["", f"### mhctl {noun} {verb.name}".rstrip(), ""]
            lines += [f"{verb.help_text[:1].upper()}{verb.help_text[1:]}.{also}", ""]
            lines += ["```text", usage(noun, verb), "```"]
            own = [option for option in verb.options if option not in COMMON]
            if own:
                lines += ["", *_options(own)]
    return lines


def _typed(name: str, command: BaseCommand) -> str:
    """Return a command of manage.py with the arguments that are its own."""
    parser = CommandParser(add_help=False)
    command.add_arguments(parser)
    words = [name]
    for action in parser._actions:
        value = str(action.metavar or action.dest.upper()) if action.nargs != 0 else ""
        word = " ".join(filter(None, [*action.option_strings[:1], value]))
        often = "…" if action.default == [] else ""
        words.append(word if action.required else f"[{word}]{often}")
    return f"`{' '.join(words)}`"


def _options(options: Any) -> list[str]:
    return table(
        ("Option", ""),
        [
            (f"`{', '.join(option.names)}{' ' if option.metavar else ''}{option.metavar}`", option.help_text)
            for option in options
        ],
    )


def calls() -> list[str]:
    """The page of the API: its own description, and who may by the table that tests hold it to."""
    from miehisto_web.api import ANY_CALL, api
    from tests.test_matrix import API

    described = api.get_openapi_schema()
    lines = ["# API", "", "All of it is below `/api/v1`; `/api/v1/docs` shows the bodies of requests and"]
    lines += ["answers, and `/api/v1/openapi.json` is for programs. A token goes into the header"]
    lines += ["`Authorization: Bearer TOKEN` ([roles and tokens](../how-to/roles-and-tokens.md)).", ""]
    lines += [f"{described['info']['description']}", ""]
    rows: list[tuple[str, ...]] = []
    for path, methods in described["paths"].items():
        short = path.removeprefix("/api/v1")
        for method, call in methods.items():
            query = [f"`{each['name']}`" for each in call.get("parameters", []) if each["in"] == "query"]
            answers = [str(status) for status in call["responses"] if int(status) < 400]
            does = " ".join(call.get("description", call.get("summary", "")).split("\n\n")[0].split())
            rows.append(
                (
                    f"`{method.upper()} {short}`",
                    does,
                    ", ".join(query),
                    API[f"{method.upper()} {short}"].least,
                    ", ".join(answers),
                )
            )
    lines += table(("Call", "What it does", "Query", "Role", "Answers"), rows)
    lines += ["", "## Errors"]
    lines += ['Every error is `{"error": {"code", "message", "remedy", "details"}}`;']
    lines += ["[errors.md](errors.md) lists the codes.", ""]
    return lines + table(("Status", ""), [(str(status), text) for status, text in ANY_CALL.items()])


def manifest() -> list[str]:
    """The page of an image's manifest."""
    from worker.manifest import FIELDS, NAME, VERSION

    lines = ["# The manifest of an image", ""]
    lines += [f"Each image has a `{NAME}`; a folder of the pool without one is no image. This is version"]
    lines += [f"{VERSION}. An earlier version is restored, a later one is refused (`manifest_too_new`).", ""]
    return lines + table(
        ("Field", "Type", ""),
        [(f"`{name}`", kind.__name__, meaning) for name, (kind, meaning) in FIELDS.items()],
    )


def errors() -> list[str]:
    """The page of codes: CRIU's messages by the table that explains them, all others from the source."""
    from worker.failures import TABLE
    from worker.remedies import ACTIONS

    lines = ["# Codes of errors", "", "`mhctl job show JOB` and the API say the code. What is `…` here is"]
    lines += [
        "filled in. Many failures can be pressed away: `mhctl job retry`, or a button on the job's page.",
        "",
    ]
    lines += ["## What CRIU says", ""]
    criu: dict[str, list[tuple[str, str]]] = {}
    for row in TABLE:
        said = (_holes(row.cause), _holes(row.remedy))
        criu.setdefault(row.code, [])
        if said not in criu[row.code]:
            criu[row.code].append(said)
    lines += table(("Code", "What is wrong", "What to do", "To press"), _code_rows(criu, ACTIONS))
    lines += ["", "## What Miehistö says", ""]
    own: dict[str, list[tuple[str, str]]] = {}
    for code, message, remedy in _raised():
        own.setdefault(code, [])
        if (message, remedy) not in own[code]:
            own[code].append((message, remedy))
    return lines + table(("Code", "What is wrong", "What to do", "To press"), _code_rows(own, ACTIONS))


def _code_rows(found: dict[str, list[tuple[str, str]]], actions: Any) -> list[tuple[str, ...]]:
    return [
        (f"`{code}`", message, remedy, "; ".join(action["label"] for action in actions.get(code, ())))
        for code in sorted(found)
        for message, remedy in sorted(found[code])
    ]


def _holes(text: str) -> str:
    return re.sub(r"\{\w+\}", "…", text)


def _raised() -> Iterator[tuple[str, str, str]]:
    """Yield code, sentence and remedy of each refusal in the source whose code is written there."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                if getattr(node.func, "id", "") not in {"JobFailed", "Problem"} or len(node.args) < 2:
                    continue
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                remedy = node.args[2] if len(node.args) > 2 else named.get("remedy")
                for code in texts(node.args[0]):
                    message = _joined(node.args[1])
                    if re.fullmatch(r"[a-z_]+", code) and message != "…":
                        yield code, message, _joined(remedy) if remedy else ""


def _joined(node: ast.expr) -> str:
    return " / ".join(dict.fromkeys(texts(node)))


def texts(node: ast.expr) -> Iterator[str]:
    """Yield what an expression may say; what is not known before it runs is an ellipsis."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.IfExp(body=one, orelse=other):
            yield from texts(one)
            yield from texts(other)
        case ast.BinOp(left=left, right=right):
            yield "".join([*texts(left)][:1] + [*texts(right)][:1])
        case _:
            yield "…"


def settings() -> list[str]:
    """The page of the environment variables."""
    from miehisto_web.described import OF_MHCTL, SETTINGS

    def rows(described: Any) -> list[tuple[str, ...]]:
        return [(f"`{name}`", setting.default, setting.meaning) for name, setting in described.items()]

    head = ("Name", "Default", "What it is for")
    lines = ["# Settings", "", "All are environment variables; an empty value counts as not set.", ""]
    lines += table(head, rows(SETTINGS))
    return [*lines, "", "## Of mhctl alone", "", *table(head, rows(OF_MHCTL))]


PAGES = {
    "settings.md": settings,
    "states.md": states,
    "command-line.md": command_line,
    "api.md": calls,
    "manifest.md": manifest,
    "errors.md": errors,
}


def outdated() -> dict[Path, str]:
    """Return the pages that are not as they should be, with what they should be."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "miehisto_web.settings")
    import django

    django.setup()
    found = {}
    for name, page in PAGES.items():
        text = "\n".join([NOTE, "", *page()]) + "\n"
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            found[path] = text
    return found


def main() -> int:
    """Write the pages; with --check write none, and exit with 1 if one is out of date."""
    found = outdated()
    for path, text in found.items():
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return int(bool(found) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
