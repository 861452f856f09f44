"""A database that is locked or restarted while jobs work."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.faults.verbs import after, under_way
from tests.stack import eventually, living
from tests.test_locked_database import held
from tests.test_postgresql import Database, database

__all__ = ["database"]


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
