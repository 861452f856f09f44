"""A schedule on a real node: its clockwork, its dumps by CRIU, what it keeps; also when parts are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.stack import Stack, eventually, free_port, get_page, living


class Scheduled(Stack):
    """A node with one service that has a schedule."""

    service = ""

    def schedule(self) -> dict[str, Any]:
        """Return the service's schedule."""
        shown: dict[str, Any] = json.loads(self.mhctl("service", "schedule", self.service, "--json").out)
        return shown

    def due(self, ago: float = 0) -> None:
        """Let the schedule be due since so many seconds, for nobody wants to wait here."""
        at = datetime.now(UTC) - timedelta(seconds=ago)
        with closing(sqlite3.connect(self.folder / "state/database/db.sqlite3", timeout=30)) as database:
            database.execute("UPDATE images_schedule SET next_at = ?", (str(at.replace(tzinfo=None)),))
            database.commit()

    def asked(self) -> list[dict[str, Any]]:
        """Return the dumps that the schedule has asked for, the newest first."""
        chosen = ("--limit", "500", "--source", "schedule", "--kind", "dump")
        jobs = json.loads(self.mhctl("job", "list", *chosen, "--json").out)
        return [job for job in jobs if job["service"] == self.service]

    def dumped(self, count: int) -> dict[str, Any]:
        """Wait for so many dumps of the schedule to have ended and return the newest."""
        jobs = eventually(
            lambda: found if len(found := self.asked()) >= count and found[0]["finished"] else [], 40
        )
        assert [job["status"] for job in jobs] == ["succeeded"] * count, jobs[:1]
        return dict(jobs[0])

    def images(self) -> set[str]:
        """Return the images that are there."""
        return {image["object_id"] for image in self.api("GET", "images").body}


@pytest.fixture
def node_of_one() -> Iterator[Scheduled]:
    """The node, which can be stopped and killed."""
    with living(Scheduled, "scheduled") as made:
        yield made


def test_a_schedule_from_the_first_dump_to_the_last(node_of_one: Scheduled) -> None:
    node = node_of_one
    port = free_port()
    server = [
        sys.executable,
        "-m",
        "http.server",
        str(port),
        "--bind",
        "127.0.0.1",
        "--directory",
        "/srv",
    ]
    web = node.service = node.create(*server, options=("--user", "nobody", "--name", "web"))
    assert node.mhctl("service", "schedule", "web", check=False).code == 4
    assert node.mhctl("service", "schedule", "web", "--every", "9s", check=False).code == 2
    pid = node.show("service", web)["pid"]
    by_hand = node.dump(web, "--leave-running")

    # The first comes by the clock alone, from a schedule that was made while the scheduler ran.
    assert node.mhctl("service", "schedule", "web", "--every", "10s", "--keep", "2").out.strip() == web
    began = datetime.now(UTC)
    first = node.dumped(1)
    assert 9 <= (datetime.fromisoformat(first["queued"]) - began).total_seconds() <= 14
    assert node.show("service", web)["pid"] == pid
    assert get_page(port)
    shown = node.mhctl("job", "show", first["object_id"]).out
    assert re.search(r"^source: +schedule$", shown, re.M)
    assert f"the schedule that {node.schedule()['made_by']} made: every 10s" in shown
    assert re.search(r"^outcome: +succeeded$", node.mhctl("service", "schedule", "web").out, re.M)

    # From here on time is helped along; each hour, so that it does nothing of itself.
    assert node.manage("schedule", "web", "--every", "1h", "--keep", "2").out.strip() == web
    assert node.schedule()["made_by"] == "root"
    made = [first]
    for number in range(2, 5):
        node.due()
        made.append(node.dumped(number))
    kept = {by_hand, *(job["image"] for job in made[-2:])}
    assert eventually(lambda: node.images() == kept), node.images()

    # Stopped: nothing is asked for, and that is shown.
    node.mhctl("service", "stop", web)
    node.due()
    assert eventually(lambda: node.schedule()["outcome"] == "skipped")
    assert "is stopped, not running" in node.schedule()["reason"]
    assert len(node.asked()) == 4
    # What it made can be gone back to, and it goes on then.
    node.restore(made[-1]["image"])
    assert get_page(port)

    # A scheduler that is killed comes back and forgets nothing.
    killed = node.part("scheduler")
    os.kill(killed, signal.SIGKILL)
    node.due()
    node.dumped(5)
    assert node.part("scheduler") != killed

    # Nobody was there at several times: one dump makes up for them.
    node.mhctl("service", "schedule", "web", "--every", "60s", "--keep", "2")
    node.stop()
    node.due(ago=300)
    node.start()
    last = node.dumped(6)
    assert datetime.fromisoformat(node.schedule()["next"]) > datetime.now(UTC)
    assert last["object_id"] == node.schedule()["job"]
    assert eventually(lambda: len(node.images()) == 3), node.images()

    assert node.mhctl("service", "schedule", "web", "--off").out.strip() == web
    assert node.api("GET", f"services/{web}/schedule").status == 404
