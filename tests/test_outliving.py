"""Services outlive what watches over them: a restart of miehistod, and the sudden death of its worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.isolation import FOLDER
from tests.servers import Redis, connected, started
from tests.stack import Stack, eventually
from worker import orphans, process


@pytest.fixture(scope="module")
def second_node() -> Iterator[Stack]:
    """A node of its own beside the run's, so that it can be stopped and killed."""
    orphans.adopt()
    folder = FOLDER / "second-node"
    folder.mkdir(mode=0o755)
    made = Stack(folder)
    made.start()
    yield made
    made.clear()
    made.stop()
    orphans.reap()


def worker_of(node: Stack) -> int | None:
    """Return the PID of the node's worker, if it is there at the moment."""
    assert node.daemon
    for pid in process.children(node.daemon.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"worker" in words and b"celery" in words:
            return pid
    return None


def test_services_outlive_miehistod_and_its_worker(second_node: Stack, folder: Path) -> None:
    node = second_node
    server = Redis(folder)
    service = started(node, server)
    doomed = node.create("sleep", "3600")
    running = node.show("service", service)
    ends = node.show("service", doomed)["pid"]

    with connected(server.port) as client:
        assert client.ask("SELECT 5") == "+OK"

        # miehistod ends, and nothing happens to its services; what they do meanwhile is found out afterwards.
        node.stop()
        assert client.ask("SET told nobody") == "+OK"
        os.kill(ends, signal.SIGKILL)
        node.start()
        found = node.show("service", service)
        assert (found["status"], found["pid"], found["ppid"]) == ("running", running["pid"], running["ppid"])
        ended = eventually(lambda: (shown := node.show("service", doomed))["status"] == "exited" and shown)
        assert (ended["exit_code"], ended["exit_signal"]) == (None, signal.SIGKILL)

        # The worker is killed; another takes its place, and dumps and restores what the first had started.
        killed = worker_of(node)
        assert killed
        os.kill(killed, signal.SIGKILL)
        assert client.ask("GET told", lines=2) == "nobody"
        assert eventually(lambda: worker_of(node) not in {None, killed})
        node.restore(node.dump(service))
        assert client.ask("GET told", lines=2) == "nobody"
        assert node.show("service", service)["pid"] != running["pid"]


def test_a_service_outlives_its_supervisor(second_node: Stack, folder: Path) -> None:
    """It is neither taken for dead nor started a second time, and a dump and a restore give it another."""
    node = second_node
    server = Redis(folder)
    service = started(node, server)
    with connected(server.port) as client:
        assert client.ask("SET told nobody") == "+OK"
    before = node.show("service", service)

    os.kill(before["ppid"], signal.SIGKILL)
    shown = eventually(lambda: (now := node.show("service", service))["status_reason"] and now)
    assert (shown["status"], shown["pid"]) == ("running", before["pid"])
    assert "supervisor was killed" in shown["status_reason"]
    refused = node.mhctl("service", "start", service, check=False)
    assert (refused.code, "running" in refused.err) == (1, True)

    node.restore(node.dump(service))
    with connected(server.port) as client:
        assert client.ask("GET told", lines=2) == "nobody"
    after = node.show("service", service)
    assert (after["status"], after["status_reason"]) == ("running", "")
    assert process.Process.of(after["ppid"])

    # One that nobody watches can be stopped, too.
    os.kill(after["ppid"], signal.SIGKILL)
    node.mhctl("service", "stop", service)
    assert process.Process.of(after["pid"]) is None
