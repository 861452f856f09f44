"""The tutorial and the how-to pages do what they say: each of their commands is run on a real node."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.isolation import POLICY
from tests.pages import Page, Reader
from tests.stack import CHECKOUT, Stack, free_port

DOCS = CHECKOUT / "docs"
PAGES = [Page(path) for path in [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]]
NOT_RUN = {"it is for another machine", "it changes the host", "it starts a node"}
MOST_NOT_RUN = 7


@pytest.fixture
def reader(stack: Stack, folder: Path) -> Iterator[Reader]:
    """A reader at the node; what services show and write is below `folder`."""
    places = {
        "/srv": str(folder),
        "/var/lib/miehisto": str(stack.folder / "state"),
        "/run/miehisto": str(stack.folder / "run"),
        "/etc/miehisto/policy.toml": str(POLICY),
        "14444": str(stack.port),
        "8080": str(free_port()),
    }
    someone = Reader(folder, stack.environment, places)
    yield someone
    someone.leave()
    POLICY.write_text("")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_a_page_does_what_it_says(page: Page, reader: Reader) -> None:
    assert shutil.which("curl"), "the pages use curl: run `make setup-dev`"
    assert page.steps or page.not_run
    reader.follow(page)


def test_few_blocks_are_not_run_and_all_say_why() -> None:
    reasons = [reason for page in PAGES for reason in page.not_run]
    assert set(reasons) <= NOT_RUN
    assert len(reasons) <= MOST_NOT_RUN
