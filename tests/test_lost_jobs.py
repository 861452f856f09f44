"""Jobs whose worker has died: each is ended by what lies on the disk, and none stands in the way for ever."""

from __future__ import annotations

import shutil

import pytest

from services import operations
from tests.rows import made_service, running_service
from worker import locks, reconcile, tasks

pytestmark = pytest.mark.django_db(transaction=True)

DEAD = "node:4194303:1"
"""A worker that does not live: a PID that has never had that start time."""


def test_a_job_is_ended_though_its_node_was_restarted() -> None:
    """A reboot empties RUN_DIR; a service whose job was never ended could never be worked on again."""
    service = running_service()
    job = operations.claim(operations.request_dump(service, actor="root", source="manage").pk, worker=DEAD)
    assert job
    shutil.rmtree(tasks.paths().runtime(service.pk), ignore_errors=True)

    assert reconcile.settle_lost_jobs(tasks.paths(), service.node.name) == 1
    reconcile.end_services_without_trace(tasks.paths(), service.node.name)
    job.refresh_from_db()
    service.refresh_from_db()
    assert (job.status, service.status) == ("lost", "exited")
    operations.request_start(service, actor="root", source="manage")


def test_a_job_is_not_ended_while_somebody_works_for_it() -> None:
    """CRIU outlives its worker and holds the service's lock; the job's end is read once it has ended."""
    service = made_service()
    job = operations.claim(service.jobs.get().pk, worker=DEAD)
    assert job
    paths = tasks.paths()
    paths.runtime(service.pk).mkdir(parents=True)
    for lock in (paths.job_lock(service.pk), paths.runtime(service.pk) / "lock"):
        with locks.held(lock):
            assert reconcile.settle_lost_jobs(paths, service.node.name) == 0
    assert reconcile.settle_lost_jobs(paths, service.node.name) == 1
