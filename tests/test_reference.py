"""The pages of docs/reference are what the code says, and pages lead to pages that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.reference import outdated

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def test_the_reference_is_up_to_date() -> None:
    assert not [path.name for path in outdated()], "run `make docs`"


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings have as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for name, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{name} is not there"
        if anchor:
            assert anchor in anchors(target), f"{name}#{anchor}"


def test_every_page_is_reached_from_the_way_in() -> None:
    way_in = ROOT / "docs/README.md"
    found = {(way_in.parent / name).resolve() for name, _ in LINK.findall(way_in.read_text(encoding="utf-8"))}
    assert set(ROOT.glob("docs/**/*.md")) <= found | {way_in}
