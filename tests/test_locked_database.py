"""A database that somebody else holds: rows wait for it, services don't, and no job is lost by it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.conf import settings
from django.db import IntegrityError, InterfaceError, InternalError, OperationalError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from services import operations
from services.models import Job, JobEvent
from services.writing import Steps, surely
from tests.refusals import Witness
from tests.rows import running_service, taken
from tests.stack import Stack, eventually


@contextlib.contextmanager
def held(database: Path | str) -> Iterator[None]:
    """Hold the right to write for the block, as a backup or another program would."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_dump_goes_on_while_the_database_is_held(stack: Stack) -> None:
    witness = Witness(stack, options=("--name", "unhurried"))
    job = stack.mhctl("service", "dump", "unhurried", "--no-wait").out.strip()
    image = stack.api("GET", f"jobs/{job}").body["image"]
    database = stack.folder / "state" / "database" / "db.sqlite3"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as rows:
        status = "SELECT status FROM services_job WHERE id = ?"
        eventually(lambda: rows.execute(status, [job]).fetchone()[0] != "queued", 20)
    with held(database):
        # Its image is sealed and the service gone, though no step of it could be written.
        assert eventually((stack.folder / "state" / "images" / image / "manifest.json").exists, 8)
        assert eventually(witness.is_silent, 8)
    assert stack.mhctl("job", "wait", job).out.strip() == job
    ended = stack.api("GET", f"jobs/{job}").body
    steps = [event["step"] for event in ended["events"] if event["status"] == "running" and event["step"]]
    assert steps[-2:] == ["sealing image", "ending the dumped process"]
    assert stack.api("GET", "services/unhurried").body["status"] == "dumped"


@pytest.mark.django_db(transaction=True)
def test_a_step_waits_beside_the_work() -> None:
    job = taken(operations.request_dump(running_service(), actor="root", source="manage"))
    with Steps(job) as steps, held(settings.DATABASES["default"]["NAME"]):
        began = time.monotonic()
        steps.enter("freezing")
        steps.enter("sealing")
        assert time.monotonic() - began < 5, "it would wait for the database until it gives up, 20 s"
        assert not JobEvent.objects.filter(job=job).exclude(step="").exists()
    assert [event.step for event in job.events.exclude(step="")] == ["freezing", "sealing"]
    job.refresh_from_db()
    assert job.step == "sealing"


@pytest.mark.django_db(transaction=True)
def test_a_jobs_end_is_written_however_long_the_database_is_held() -> None:
    job = taken(operations.request_dump(running_service(), actor="root", source="manage"))
    connection.cursor().execute("PRAGMA busy_timeout=50")
    free, locked = threading.Event(), threading.Event()

    def hold() -> None:
        with held(settings.DATABASES["default"]["NAME"]):
            locked.set()
            free.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait(10)
    threading.Timer(0.7, free.set).start()
    surely(lambda: operations.succeed(job, service_state=None, result={}, statistics={}))
    holder.join()
    connection.close()  # the short patience goes with it
    job.refresh_from_db()
    assert job.status == "succeeded"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (OperationalError, None),
        (InterfaceError, None),
        (InternalError, psycopg.errors.ReadOnlySqlTransaction()),
        (InternalError, psycopg.errors.IdleInTransactionSessionTimeout()),
    ],
)
def test_a_session_that_the_database_ends_is_no_fault_of_the_job(
    kind: type[Exception], cause: Exception | None
) -> None:
    """PostgreSQL names such ends by three kinds of errors, that of a standby without writes among them."""
    answers: list[Exception | str] = [kind("it is gone"), "written"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer from cause
        return answer

    assert surely(ask) == "written"
    answers, cause = [InternalError("the index is broken")], None
    with pytest.raises(InternalError):
        surely(ask)
    with pytest.raises(IntegrityError):
        surely(lambda: Job.objects.create(node_id=0))


@pytest.mark.django_db(transaction=True)
def test_a_job_leaves_no_connection_open() -> None:
    """Its steps have one of their own, and a worker, which lives long, may open only so many files."""
    job = taken(operations.request_dump(running_service(), actor="root", source="manage"))
    made: list[BaseDatabaseWrapper] = []

    def note(connection: BaseDatabaseWrapper, **_more: object) -> None:
        made.append(connection)

    connection_created.connect(note)
    try:
        with Steps(job) as steps:
            steps.enter("freezing")
    finally:
        connection_created.disconnect(note)
    assert [each.connection for each in made] == [None]
