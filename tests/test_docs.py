"""The tutorial and the how-to pages do what they say: each of their commands is run on a real node."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian_root import run
from tests.isolation import FOLDER, POLICY
from tests.pages import Page, Reader
from tests.servers import Redis, started
from tests.stack import CHECKOUT, READY_WITHIN, Stack, eventually, free_port, get_page
from worker import orphans, process

DOCS = CHECKOUT / "docs"
BESIDE = ("tutorial.md", "install.md", "compose.md", "metrics.md")
IMAGE, SERVICE = "742e79e9de83a9091424edb0fa463235", "9491c63874fac947cc46d437b028b189"
"""What the pages call them."""
PAGES = [Page(path) for path in [*(DOCS / name for name in BESIDE), *sorted((DOCS / "how-to").glob("*.md"))]]
# The tests that type the blocks which a page shows without what they print, and how many each.
RUN_BY = {"make test-deb": 9, "make test-compose": 4, "tests/test_docs.py": 2, "tests/test_upgrades.py": 2}


class TypedNode(Stack):
    """A second node, on folders of its own, where a page's lines for another machine are typed."""

    def __init__(self, name: str) -> None:
        folder = FOLDER / name
        folder.mkdir(mode=0o755)
        super().__init__(folder)
        shell = folder / "shell"
        shell.mkdir()
        known = places(self, folder) | {"/var/log/miehistod.log": str(self.output)}
        self.reader = Reader(shell, self.environment, known)
        self.home = shell / "home"

    def type(self, block: str) -> str:
        """Type lines, each of which must work, and return what they printed."""
        said = ""
        for line in block.splitlines():
            printed, code = self.reader.type(self.reader.here(line))
            said += f"{printed}\n"
            assert code == 0, f"{line}\n{said}"
            if "miehistod >" in line:  # the pages say to wait for this
                assert eventually(lambda: "\nready: " in self.said(), READY_WITHIN), self.said()
        return said

    def end(self) -> None:
        """Leave nothing of it, whoever has started it."""
        self.reader.leave()
        if self.daemon:
            self.clear()
            self.stop()
        for pid in process.children(os.getpid()):  # a shell's background process, which this one adopts
            daemon = process.Process.of(pid)
            if daemon and f"MIEHISTO_STATE_DIR={self.folder}/state".encode() in _environment(pid):
                self.clear()
                daemon.signal(signal.SIGTERM)
                assert daemon.wait(30)
        orphans.reap()


def _environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


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
    settings, programs = folder / "etc/miehisto", folder / "opt/miehisto/bin"
    settings.mkdir(parents=True)
    shutil.copytree("/opt/miehisto/bin", programs, symlinks=True)
    return {
        "/etc/miehisto": str(settings),
        "/opt/miehisto/bin": str(programs),
        "/srv": str(folder),
        "/var/lib/miehisto": str(stack.folder / "state"),
        "/run/miehisto": str(stack.folder / "run"),
        "/etc/miehisto/policy.toml": str(POLICY),
        "https://node.example": f"http://127.0.0.1:{stack.port}",
        "14444": str(stack.port),
        "8080": str(free_port()),
        "80": str(_privileged_port()),
    }


def _privileged_port() -> int:
    """Return a port that nobody listens on, and that not every user may listen on."""
    first_for_all = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    for port in range(first_for_all - 1, 0, -1):
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port
    return 80  # of a host that lets all users have all of them


@pytest.mark.parametrize("page", [page for page in PAGES if page.steps], ids=lambda page: page.path.stem)
def test_a_page_does_what_it_says(page: Page, reader: Reader, stack: Stack, folder: Path) -> None:
    assert shutil.which("curl"), "the pages use curl: run `make setup-dev`"
    if page.path.stem == "install":  # what a laptop has before
        (folder / "home/token").write_text(stack.token())
        run("make", "-C", CHECKOUT, "wheel-mhctl")
        for wheel in (CHECKOUT / "dist").glob("miehisto_mhctl-*.whl"):
            shutil.copy(wheel, folder / "home")
    reader.follow(page)


def test_each_block_is_typed_by_a_test() -> None:
    assert Counter(command for page in PAGES for command, _ in page.run_by) == RUN_BY
    # Their tests find them.
    for place, command in (("deb", "make test-deb"), ("compose", "make test-compose")):
        tests = [path.read_text(encoding="utf-8") for path in (CHECKOUT / "tests" / place).glob("test_*.py")]
        assert any(command in text for text in tests)


def blocks(page: Page) -> list[str]:
    """Return a page's blocks for another machine."""
    return [text for command, text in page.run_by if command == "tests/test_docs.py"]


@pytest.fixture
def other(reader: Reader) -> Iterator[TypedNode]:
    """Another machine; its reader knows nothing of what the first one's has seen."""
    node = TypedNode(f"another-node-{uuid.uuid4().hex[:6]}")
    yield node
    node.end()


def test_a_backup_comes_to_life_on_a_new_node(
    reader: Reader, stack: Stack, folder: Path, other: TypedNode
) -> None:
    """The page about backups, to its end."""
    page = Page(DOCS / "how-to/back-up.md")
    server = Redis(folder)
    kept = started(stack, server, "--name", "kept")
    held = server.state()
    image = stack.dump(kept)
    stack.mhctl("image", "rename", image, "good")
    lost = stack.create("sleep", "1000", options=("--name", "lost"))
    (folder / "etc/miehisto/miehisto.env").write_text("MIEHISTO_JOB_TIMEOUT=601\n")
    reader.follow(page)
    later = stack.dump(lost)  # after the database was copied, and not in the copy of the pool

    other.reader.places["/srv"] = str(folder)  # where the backup was brought
    (tini,) = (folder / "opt/miehisto/bin").glob("tini-*")
    own = other.folder / "opt/miehisto/bin" / tini.name
    own.write_bytes(b"of another build")
    (block,) = blocks(page)
    assert other.type(block).endswith("rows and disk agree\n")
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
    assert (other.folder / secret).read_bytes() == (stack.folder / secret).read_bytes()
    assert own.read_bytes() == tini.read_bytes()
    settings = other.folder / "etc/miehisto/miehisto.env"
    assert settings.read_text() == "MIEHISTO_JOB_TIMEOUT=601\n"


def test_an_image_goes_to_another_node(reader: Reader, stack: Stack, folder: Path, other: TypedNode) -> None:
    """The page about archives, to its end."""
    page = Page(DOCS / "how-to/move-an-image.md")
    reader.follow(page)
    image, service = reader.places[IMAGE], reader.places[SERVICE]
    stack.mhctl("service", "stop", service)  # both nodes are on one host here
    port = reader.places["8080"]
    for path in (folder / "web.tar.zst.age", folder / "home/key.txt"):
        brought = other.home / path.name
        shutil.copy(path, brought)
        os.chown(brought, other.home.stat().st_uid, other.home.stat().st_gid)
    other.start()
    other.reader.places[IMAGE] = image
    (block,) = blocks(page)
    assert other.type(block) == f"{image}\n{image}\n"
    shown = other.show("service", service)
    assert (shown["status"], shown["name"]) == ("running", "web"), shown
    assert b"Directory listing" in get_page(int(port))
