"""What a CRIU or a worker leaves that is killed or stopped at its work: nothing that harms a service.

CRIU is stopped at a moment that its own log shows, so that it dies there and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.isolation import FOLDER
from tests.servers import Connection, Redis, connected, started
from tests.stack import Answer, Stack, eventually, living
from tests.stopping import stopped_at
from worker import connections, criu, process
from worker.durable import write_json
from worker.paths import Paths

DEATHS_IN_A_ROW = 3
"""So often a worker is killed before its node is begun anew."""

PATIENCE = 2
"""Seconds that CRIU may be silent on this node."""

WEIGHT = 200_000_000
"""Bytes that the service holds: sealing and restoring them takes long enough for this process to come in."""


class Hasty(Stack):
    """A node that has little patience with CRIU, and whose worker is killed now and then."""

    deaths = 0

    def kill_worker(self) -> None:
        """Kill the worker's main process."""
        os.kill(self.part("worker"), signal.SIGKILL)
        self.deaths += 1

    def calm(self) -> None:
        """Begin a new life of miehistod before it gives up, at the fifth death in a minute."""
        if self.deaths >= DEATHS_IN_A_ROW:
            self.stop()
            self.start()
            self.deaths = 0


@pytest.fixture(scope="module")
def hasty_node() -> Iterator[Hasty]:
    """Such a node."""
    with living(Hasty, "hasty-node", MIEHISTO_JOB_TIMEOUT=str(PATIENCE)) as made:
        yield made


@pytest.fixture
def hasty(hasty_node: Hasty) -> Iterator[Hasty]:
    """That node with nothing on it."""
    yield hasty_node
    hasty_node.clear()
    hasty_node.calm()


@pytest.fixture
def client(hasty: Hasty, folder: Path) -> Iterator[tuple[str, Connection]]:
    """A Redis, its id, and a client that is connected to it all the while."""
    server = Redis(folder)
    service = started(hasty, server)
    with connected(server.port) as connection:
        assert connection.ask("SET told nobody") == "+OK"
        assert connection.ask(f"SETRANGE weight {WEIGHT} x") == f":{WEIGHT + 1}"
        yield service, connection


def tables(connection: Connection) -> set[str]:
    """Return the firewall tables of this host that are about a server's port."""
    port = connection.address[1]
    shown = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    parts = re.split(r"^(?=table )", shown.stdout, flags=re.MULTILINE)
    return {part.partition(" {")[0] for part in parts if re.search(rf"\b{port}\b", part)}


def in_namespaces() -> set[str]:
    """Return the command lines of all that this run has begun and that has a PID namespace of its own.

    What loses its parent becomes a child of miehistod's, or of this process.
    """
    here = os.stat("/proc/self/ns/pid").st_ino
    found = set()
    for folder in (Path(f"/proc/{pid}") for pid in process.tree(os.getpid())):
        with contextlib.suppress(OSError):
            if (folder / "ns/pid").stat().st_ino != here:
                found.add((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def mounts() -> set[str]:
    """Return what is mounted on this host, but for what lies in the folders of other runs."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line for line in lines if "/miehisto-tests" not in line or str(FOLDER) in line}


def in_background(work: Callable[[], Answer]) -> Future[Answer]:
    """Begin a command and return its answer to come."""
    pool = ThreadPoolExecutor(max_workers=1)
    answer = pool.submit(work)
    pool.shutdown(wait=False)
    return answer


@pytest.mark.parametrize("hangs", [False, True], ids=["killed", "hanging"])
def test_a_dump_that_is_broken_off_leaves_the_service_with_its_clients(
    hasty: Hasty, client: tuple[str, Connection], hangs: bool
) -> None:
    """A CRIU that says nothing any more is killed after MIEHISTO_JOB_TIMEOUT."""
    service, connection = client
    before, pid = tables(connection), hasty.show("service", service)["pid"]
    for _attempt in range(5):
        answer = in_background(lambda: hasty.mhctl("service", "dump", service, check=False))
        # One that hangs when the image is sealed ends the service once it is woken, as it should.
        words = "Dumping TCP connection" if hangs else "Running post-dump scripts"
        criu = stopped_at(hasty, service, "dump.log", words)
        if not hangs:
            criu.signal(signal.SIGKILL)
        done = answer.result(60)
        if done.code != 0:
            break
        # The machine was so busy that the image was sealed before this process came to stop CRIU.
        image = done.out.strip().rpartition("/")[2]
        hasty.restore(image)
        hasty.mhctl("image", "delete", image)
        pid = hasty.show("service", service)["pid"]

    assert done.code == 1
    assert ("did not answer" if hangs else "Look at CRIU's log") in done.err
    assert not criu.alive()
    shown = hasty.show("service", service)
    assert (shown["status"], shown["pid"]) == ("running", pid)
    assert connection.ask("GET told", lines=2) == "nobody"
    assert tables(connection) == before
    assert list((hasty.folder / "state/images").iterdir()) == []


@pytest.mark.parametrize("hangs", [False, True], ids=["killed", "hanging"])
def test_a_restore_that_is_broken_off_leaves_nothing_but_the_image(
    hasty: Hasty, client: tuple[str, Connection], hangs: bool
) -> None:
    """And its clients go on waiting: the next restore answers them."""
    service, connection = client
    image = hasty.dump(service)
    others = in_namespaces()
    held, mounted = tables(connection), mounts()
    assert held
    connection.send("GET told")
    answer = in_background(lambda: hasty.mhctl("service", "restore", "--from", image, check=False))
    criu = stopped_at(hasty, service, "restore.log", "Running setup-namespaces scripts")
    if not hangs:
        criu.signal(signal.SIGKILL)
    done = answer.result(60)

    assert done.code == 1
    assert "its clients' connections are still held for the image" in done.err
    assert "mhctl service start" in done.err
    assert hasty.show("service", service)["status"] == "dumped"
    # But for who reads what is in an image, for a moment.
    assert eventually(lambda: in_namespaces() <= others)
    assert tables(connection) == held
    assert eventually(lambda: mounts() <= mounted)
    hasty.mhctl("image", "verify", image)

    hasty.restore(image)
    assert connection.answer() == "$6"
    assert connection.answer() == "nobody"


def test_a_restore_says_when_clients_are_not_held_any_more(
    hasty: Hasty, client: tuple[str, Connection]
) -> None:
    """A firewall whose rules are loaded anew forgets CRIU's, too."""
    service, connection = client
    image = hasty.dump(service)
    (table,) = tables(connection)
    subprocess.run(["nft", "delete", *table.split()], check=True)
    with socket.create_server(connection.address):
        done = hasty.mhctl("service", "restore", "--from", image, check=False)
    assert "its clients' connections are no longer held for the image" in done.err

    hasty.restore(image)  # this client has not been told that nobody was there
    assert connection.ask("GET told", lines=2) == "nobody"


@pytest.mark.parametrize("with_worker", [False, True], ids=["criu killed", "criu and worker killed"])
@pytest.mark.parametrize(
    ("words", "asks_first"),
    [("Running post-restore scripts", True), ("Unlock network", True), ("Unlock network", False)],
    ids=["before it lets go", "as it lets go", "and the client asks later"],
)
def test_clients_that_a_restore_has_let_go_of_are_told(
    hasty: Hasty, client: tuple[str, Connection], words: str, asks_first: bool, with_worker: bool
) -> None:
    """Broken off too late to be taken back: no later restore picks up connections that have ended."""
    service, connection = client
    image = hasty.dump(service)
    assert tables(connection)
    answer = in_background(lambda: hasty.mhctl("service", "restore", "--from", image, check=False))
    criu = stopped_at(hasty, service, "restore.log", words)
    present = hasty.folder / f"state/services/{service}/present.json"
    assert eventually(lambda: "let_go" in present.read_text(), PATIENCE), "it is noted before CRIU goes on"
    if with_worker:
        for pid in hasty.pool():
            os.kill(pid, signal.SIGKILL)
        hasty.kill_worker()
    criu.signal(signal.SIGKILL)
    done = answer.result(60)
    assert "connections are no longer held for the image" in done.err
    assert hasty.show("service", service)["status"] == "dumped"
    assert not tables(connection)

    def is_told() -> None:
        with pytest.raises(ConnectionError):  # not TimeoutError: nobody hangs
            assert connection.ask("GET told") == ""
            raise ConnectionResetError

    if asks_first:
        is_told()
    job = hasty.mhctl("service", "restore", "--from", image, "--no-wait").out.strip()
    shown = eventually(lambda: (now := hasty.show("job", job))["finished"] and now)
    assert shown["status"] == "succeeded"
    assert "restoring, with its connections closed" in {event["step"] for event in shown["events"]}
    if not asks_first:
        is_told()
    with connected(connection.address[1]) as another:
        assert another.ask("GET told", lines=2) == "nobody"


def test_what_a_restore_was_about_to_let_go_of_is_gone_after_a_start(folder: Path) -> None:
    """Also where nobody came to say that it was broken off."""
    paths = Paths(folder / "state", folder / "run", folder / "log")
    service, image, run = (uuid.uuid4().hex for _ in range(3))
    paths.spec(service).parent.mkdir(parents=True)
    write_json(paths.spec(service).with_name("present.json"), {"image": image, "run": run})
    subprocess.run(["nft", "add", "table", "inet", f"CRIU-{run[:21]}"], check=True)
    try:
        connections.about_to_go(paths, service, image)
        assert connections._nft("list", run)
        connections.service_runs(paths, service, "")
        assert not connections._nft("list", run)
    finally:
        connections.release(run)


def test_a_criu_that_hangs_and_has_lost_its_worker_is_ended_too(
    hasty: Hasty, client: tuple[str, Connection]
) -> None:
    """It would hold the service, frozen, and its job for ever."""
    service, connection = client
    before, pid = tables(connection), hasty.show("service", service)["pid"]
    job = hasty.mhctl("service", "dump", service, "--no-wait").out.strip()
    criu = stopped_at(hasty, service, "dump.log", "Running post-dump scripts")
    hasty.kill_worker()

    ended = eventually(lambda: (now := hasty.show("job", job))["finished"] and now, 30)
    assert ended and ended["status"] == "lost"
    assert not criu.alive()
    shown = hasty.show("service", service)
    assert (shown["status"], shown["pid"]) == ("running", pid)
    assert connection.ask("GET told", lines=2) == "nobody"
    assert tables(connection) == before


@pytest.mark.parametrize("with_worker", [False, True], ids=["service", "service and worker"])
def test_a_criu_that_hangs_over_a_service_that_was_killed_is_ended(
    stack: Stack, hasty: Hasty, folder: Path, with_worker: bool
) -> None:
    """A killed init is not dead as long as CRIU, which traces its children, doesn't look at them."""
    node = hasty if with_worker else stack  # which has all patience with CRIU
    server = Redis(folder)
    service = started(node, server)
    log = node.folder / f"run/services/{service}/criu/dump.log"
    with connected(server.port) as connection:
        assert connection.ask(f"SETRANGE weight {WEIGHT} x") == f":{WEIGHT + 1}"
        for _attempt in range(5):
            (init,) = process.children(node.show("service", service)["ppid"])
            job = node.mhctl("service", "dump", service, "--no-wait").out.strip()
            hangs = stopped_at(node, service, "dump.log", "Dumping TCP connection")
            if "post-dump" not in log.read_text(errors="replace"):
                break
            # The machine was so busy that the image was sealed before this process came to stop CRIU.
            hangs.signal(signal.SIGCONT)
            node.restore(node.mhctl("job", "wait", job).out.strip().rpartition("/")[2])
        # At once, for one of the nodes has no patience.
        os.kill(init, signal.SIGKILL)
        if with_worker:
            hasty.kill_worker()
        run = criu.run_id(log)
        assert connections._nft("list", run)
        ended = eventually(lambda: (now := node.show("job", job))["finished"] and now, 60)
        assert ended["status"] == ("lost" if with_worker else "failed")
        assert with_worker or ended["error"]["code"] == "service_ended"
        assert not hangs.alive()
        assert eventually(lambda: node.show("service", service)["status"] == "exited")
        assert not connections._nft("list", run)


def test_a_worker_that_dies_between_deed_and_word_has_dumped(
    hasty: Hasty, client: tuple[str, Connection]
) -> None:
    """The image is sealed and the service ended, yet its row cannot be written: the next worker does that."""
    service, connection = client
    hasty.restore(hasty.dump(service))  # the row still names this older image
    job = hasty.mhctl("service", "dump", service, "--no-wait").out.strip()
    criu = stopped_at(hasty, service, "dump.log", "Running post-dump scripts")
    assert hasty.daemon
    with sqlite3.connect(hasty.folder / "state/database/db.sqlite3", isolation_level=None) as rows:
        rows.execute("BEGIN IMMEDIATE")
        criu.signal(signal.SIGCONT)
        image = hasty.show("job", job)["image"]
        assert eventually((hasty.state / "images" / image / "manifest.json").exists)
        assert eventually(lambda: not (hasty.folder / f"run/services/{service}/state.json").exists())
        pool = hasty.pool()
        hasty.kill_worker()
        # The one that waits for the rows dies a moment later, and would write them until then.
        assert eventually(lambda: not any(map(process.Process.of, pool)))
        rows.execute("ROLLBACK")
    rows.close()

    ended = eventually(lambda: (now := hasty.show("job", job))["finished"] and now, 30)
    assert ended and ended["status"] == "lost"
    assert "had been sealed and is good" in ended["error"]["message"]
    shown = hasty.show("service", service)
    assert (shown["status"], shown["image"]) == ("dumped", image)
    hasty.restore(image)
    assert connection.ask("GET told", lines=2) == "nobody"
