"""A database that is locked or restarted while jobs work, and a clock that was set back."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.faults.verbs import BEGINS_FROM, after, under_way
from tests.stack import eventually, living
from tests.test_locked_database import held
from tests.test_postgresql import Database, database

__all__ = ["database"]

TABLES = ("services_node", "services_service", "services_job", "services_jobevent", "images_image")
AN_HOUR = timedelta(hours=1)


def test_a_database_that_is_locked_for_long(lab: Lab, campaign: Campaign) -> None:
    seconds = 20 if campaign.long else 2
    what = f"Another program holds the SQLite database for {seconds} s, from a random moment of a job on"
    with campaign.fault("database locked", what) as fault:
        service = Kept(lab)
        before = promise.host(lab)
        for _ in range(campaign.rounds(1, 8)):
            with fault.round() as chances:
                verb, job = under_way(service, chances)
                with held(lab.folder / "state/database/db.sqlite3"):
                    time.sleep(seconds)
                promise.settle(lab)
                after(service, verb)
                promise.holds(lab, [service], before=before, may_end=verb == "stop")
                ended = lab.api("GET", f"jobs/{job['object_id']}").body
                if ended["status"] != "succeeded":
                    raise Broken(f"the {verb} ended as {ended['status']}: {ended['error']}")
        service.bring_to("running")
        service.delete()


@pytest.fixture
def elsewhere(database: Database, campaign: Campaign) -> Iterator[tuple[Lab, Database]]:
    """A node whose rows are in a PostgreSQL, and that."""
    if not campaign.long:
        pytest.skip("the long form restarts a PostgreSQL (--long)")
    with living(Lab, "lab-on-postgresql", DATABASE_URL=database.url) as node:
        yield node, database


def test_a_postgresql_that_is_restarted(elsewhere: tuple[Lab, Database], campaign: Campaign) -> None:
    node, server = elsewhere
    what = "PostgreSQL, which holds the rows, is restarted at a random moment of a job, its connections cut"
    with campaign.fault("PostgreSQL restarted", what) as fault:
        service = Kept(node)
        before = promise.host(node)
        for _ in range(campaign.rounds(1, 15)):
            with fault.round() as chances:
                verb, _ = under_way(service, chances)
                server.restart()
                eventually(lambda: node.api("GET", "node").status == 200, 30)
                promise.settle(node)
                after(service, verb)
                promise.holds(node, [service], before=before, may_end=verb in {"stop", "start"})
        service.bring_to("running")
        service.delete()


def into_the_future(rows: Path) -> None:
    """Move every time in the rows an hour ahead, as they look after a clock was set back by one."""
    with contextlib.closing(sqlite3.connect(rows, timeout=30)) as connection, connection:
        for table in TABLES:
            columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
            for column in [name for _, name, kind, *_ in columns if kind == "datetime"]:
                query = f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL"
                for row, value in connection.execute(query).fetchall():
                    later = datetime.fromisoformat(value) + AN_HOUR
                    update = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"
                    connection.execute(update, (later.strftime("%Y-%m-%d %H:%M:%S.%f"), row))


def test_a_clock_that_was_set_back(lab: Lab, campaign: Campaign) -> None:
    what = (
        "While jobs wait in a queue that is then lost, every time in the rows is moved an hour ahead,"
        " which is what a clock set back leaves (the kernel's own clock is the same for all of the host)"
    )
    with campaign.fault("clock set back", what) as fault:
        service = Kept(lab)
        before = promise.host(lab)
        for _ in range(campaign.rounds(1, 5)):
            with fault.round() as chances:
                verb = chances.choice(list(BEGINS_FROM))
                service.bring_to(BEGINS_FROM[verb])
                held_up = [lab.part("worker"), *lab.pool()]
                assert eventually(lambda held_up=held_up: _held_up(lab, held_up))  # type: ignore[misc]
                try:
                    job = service.begin(verb)
                    lab.kill_part("redis")
                    into_the_future(lab.folder / "state/database/db.sqlite3")
                finally:
                    for pid in held_up:
                        os.kill(pid, signal.SIGCONT)
                service.wait(job["object_id"])
                after(service, verb)
                promise.holds(lab, [service], before=before)
                # And it goes on from there.
                service.bring_to("running")
                service.bring_to("dumped")
                service.bring_to("running")
                promise.holds(lab, [service], before=before)
                service.forget_images()
                if not eventually(lambda: _heartbeat_is_now(lab), 20):
                    raise Broken("the node's heartbeat is not written any more")
            lab.calm()
        service.bring_to("running")
        service.delete()


def _held_up(lab: Lab, pids: list[int]) -> bool:
    """Stop these processes, unless one of them holds the database at this very moment."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    database = lab.folder / "state/database/db.sqlite3"
    with contextlib.closing(sqlite3.connect(database, timeout=0.5, isolation_level=None)) as rows:
        try:
            rows.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            return False
        rows.execute("ROLLBACK")
    return True


def _heartbeat_is_now(lab: Lab) -> bool:
    seen = datetime.fromisoformat(lab.api("GET", "node").body["last_seen"])
    return seen < datetime.now(seen.tzinfo) + AN_HOUR / 2
