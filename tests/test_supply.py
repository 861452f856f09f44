"""What is installed is what was chosen: pinned, with the hash of each file, its licence listed."""

import re
from pathlib import Path

import pytest

from scripts.licences import LISTS, PAGE, pinned

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", LISTS)
def test_every_requirement_is_pinned_with_hashes(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", text))
    loose = [
        entry.split()[0]
        for entry in entries
        if entry.strip() and ("==" not in entry.split()[0] or "--hash=sha256:" not in entry)
    ]
    assert loose == []
    assert "://" not in text, "an address would be another place to install from"


def test_every_requirement_has_its_licence_listed() -> None:
    listed = set(re.findall(r"^\| ([^ |]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    wanted = {package for name in LISTS for package in pinned(name)}
    assert wanted - listed == set(), "run `make audit`"
