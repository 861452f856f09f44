"""A short form of `make fuzz`: a moment for each target, and what was found before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzz import run, targets

ROOT = Path(__file__).parent.parent
FINDINGS = sorted((ROOT / "tests/fuzz/findings").glob("*"))


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.name)
def test_what_was_found_once_is_mended(path: Path) -> None:
    """Each file is an input that broke a target, whose name is the first part of its own."""
    targets.TARGETS[path.name.partition("-")[0]](path.read_bytes())


@pytest.mark.parametrize("name", targets.TARGETS)
def test_nothing_new_is_found_in_a_second(name: str) -> None:
    """Without atheris, which needs longer to begin than this takes."""
    run.without_coverage(name, seconds=1, seed=int.from_bytes(os.urandom(3)))
