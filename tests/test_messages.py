"""How Miehistö speaks: a refusal is a whole sentence, and so is its remedy. Read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.reference import texts
from worker.failures import TABLE

ROOT = Path(__file__).parent.parent
PACKAGES = ("services", "images", "dashboard", "metrics", "miehisto_web", "worker", "mhctl", "miehistod")
# Which arguments are the message and the remedy, if they are not named.
REFUSALS = {
    "Problem": (1, 2),
    "bad_input": (0, 1),
    "not_allowed": (0, 1),
    "JobFailed": (1, 2),
    "Refused": (1, 2),
    "CannotRun": (0, 1),
    "UsageError": (0, None),
    "MhctlError": (0, None),
    "Unreachable": (0, None),
    "ConnectionLost": (0, None),
}
PROGRAMS = ("miehistod ", "redis-server ")
# mhctl has a remedy of its own where a UsageError brings none.
MAY_LACK_A_REMEDY = {"UsageError"}


def said(package: str) -> Iterator[tuple[str, str, str | None]]:
    """Yield where something is said, the name of what says it, and its text; None for a missing remedy."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", "")
            if name not in REFUSALS or not node.args:
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            message, remedy = REFUSALS[name]
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            for text in texts(node.args[message]) if len(node.args) > message else ():
                yield where, name, text
            given = named.get("remedy")
            if given is None and remedy is not None and len(node.args) > remedy:
                given = node.args[remedy]
            if given is not None:
                for text in texts(given):
                    yield where, name, text
            elif name not in MAY_LACK_A_REMEDY:
                yield where, name, None


def is_sentence(text: str) -> bool:
    """Tell whether a text begins with a capital letter and ends with a full stop.

    What is filled in is trusted, and paths and programs keep the names that they have.
    """
    begins = text[:1].isupper() or text.startswith(("/", "…", *PROGRAMS))
    return begins and text.endswith((".", "…"))


@pytest.mark.parametrize("package", PACKAGES)
def test_refusals_are_sentences_with_a_remedy(package: str) -> None:
    found = list(said(package))
    assert found
    assert [(where, text) for where, _, text in found if text is None or not is_sentence(text)] == []


def test_explanations_of_criu_are_sentences_with_a_remedy() -> None:
    for row in TABLE:
        for text in (row.cause, row.remedy):
            assert is_sentence(text.replace("{", "…") if text.startswith("{") else text), text
