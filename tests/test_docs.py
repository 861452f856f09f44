"""The tutorial and the how-to pages do what they say: each of their commands is run on a real node."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian_root import run
from tests.isolation import FOLDER, POLICY
from tests.pages import Page, Reader
from tests.servers import Redis, started
from tests.stack import CHECKOUT, Stack, free_port

DOCS = CHECKOUT / "docs"
BESIDE = ("tutorial.md", "install.md", "compose.md", "metrics.md")
PAGES = [Page(path) for path in [*(DOCS / name for name in BESIDE), *sorted((DOCS / "how-to").glob("*.md"))]]
# What no test types, and what a test of its own does: the reason or the command, and how many blocks.
NOT_RUN = {
    "it is for another machine": 2,
    "it changes the host": 4,
    "it starts a node": 1,
    "it needs systemd": 1,
}
RUN_BY = {"make test-deb": 1, "make test-compose": 1, "tests/test_upgrades.py": 2}


@pytest.fixture
def reader(stack: Stack, folder: Path) -> Iterator[Reader]:
    """A reader at the node; what services show and write is below `folder`."""
    # pip tells of a newer pip where it reaches an index.
    own = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    someone = Reader(folder, stack.environment | own, places(stack, folder))
    yield someone
    someone.leave()
    POLICY.write_text("")


def places(stack: Stack, folder: Path) -> dict[str, str]:
    """Return what of a page is elsewhere at a node under test."""
    return {
        "/srv": str(folder),
        "/var/lib/miehisto": str(stack.folder / "state"),
        "/run/miehisto": str(stack.folder / "run"),
        "/etc/miehisto/policy.toml": str(POLICY),
        "https://node.example": f"http://127.0.0.1:{stack.port}",
        "14444": str(stack.port),
        "8080": str(free_port()),
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page.steps], ids=lambda page: page.path.stem)
def test_a_page_does_what_it_says(page: Page, reader: Reader, stack: Stack, folder: Path) -> None:
    assert shutil.which("curl"), "the pages use curl: run `make setup-dev`"
    if page.path.stem == "install":  # what a laptop has before
        (folder / "home/token").write_text(stack.token())
        run("make", "-C", CHECKOUT, "wheel-mhctl")
        for wheel in (CHECKOUT / "dist").glob("miehisto_mhctl-*.whl"):
            shutil.copy(wheel, folder / "home")
    reader.follow(page)


def test_few_blocks_are_not_run_and_all_say_why() -> None:
    assert Counter(reason for page in PAGES for reason, _ in page.not_run) == NOT_RUN
    assert Counter(command for page in PAGES for command, _ in page.run_by) == RUN_BY
    # Their tests find them.
    for place, command in (("deb", "make test-deb"), ("compose", "make test-compose")):
        assert command in (CHECKOUT / f"tests/{place}/test_{place}.py").read_text(encoding="utf-8")


def test_a_backup_comes_to_life_on_a_new_node(reader: Reader, stack: Stack, folder: Path) -> None:
    """The page about backups, to its end: its block for another machine is typed at a second node."""
    page = Page(DOCS / "how-to/back-up.md")
    server = Redis(folder)
    kept = started(stack, server, "--name", "kept")
    held = server.state()
    image = stack.dump(kept)
    stack.mhctl("image", "rename", image, "good")
    lost = stack.create("sleep", "1000", options=("--name", "lost"))
    reader.follow(page)
    later = stack.dump(lost)  # after the database was copied, and not in the copy of the pool

    new_folder = FOLDER / "node-of-the-backup"
    new_folder.mkdir(mode=0o755)
    other = Stack(new_folder)
    shell = new_folder / "shell"
    shell.mkdir()
    someone = Reader(shell, other.environment, places(other, folder))
    (block,) = [text for _, text in page.not_run if "rescan" in text]
    try:
        for line in block.splitlines():
            if "miehistod >" in line:
                other.start()
                continue
            printed, code = someone.type(someone.here(line))
            assert code == 0, f"{line}\n{printed}"
        names = {row["object_id"]: row["name"] for row in other.api("GET", "services?all=1").body}
        assert names[kept] == "kept" and names[lost] == "lost"
        assert other.mhctl("image", "list").out.count(image) == 1
        assert later not in other.mhctl("image", "list").out
        assert other.show("service", "lost")["status"] == "exited"
        assert "good" in other.show("image", image)["name"]
        other.restore(image)
        assert server.state() == held
        server.grow()
        secret = "state/database/secret_key"
        assert (new_folder / secret).read_bytes() == (stack.folder / secret).read_bytes()
    finally:
        someone.leave()
        if other.daemon:
            other.clear()
            other.stop()
