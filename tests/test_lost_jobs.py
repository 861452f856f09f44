"""Jobs whose worker has died: each is ended by what lies on the disk, and none stands in the way for ever."""

from __future__ import annotations

import os
import shutil

import pytest

from services import operations
from tests.rows import made_service, running_service
from tests.stack import eventually
from worker import locks, process, reconcile, supervision, tasks
from worker.errors import JobFailed

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


def test_a_supervisor_that_hangs_is_ended_with_its_job() -> None:
    """Its lock would keep every job off the service, and its worker, which would have waited, is dead."""
    service = made_service()
    job = operations.claim(service.jobs.get().pk, worker=DEAD)
    assert job
    paths = tasks.paths()
    paths.runtime(service.pk).mkdir(parents=True)
    paths.spec(service.pk).parent.mkdir(parents=True)
    os.mkfifo(paths.spec(service.pk))  # which it reads, and nobody writes to
    hanging = supervision.begin(paths, "start", service.pk, "/bin/true")
    try:
        lock = paths.runtime(service.pk) / "lock"
        assert eventually(lambda: lock.exists() and any(process.holders(str(lock))), 60)
        assert eventually(lambda: supervision.is_at_work(paths, service.pk), 60)
        assert reconcile.settle_lost_jobs(paths, service.node.name, lambda _job: False) == 0

        def settled() -> int:
            return reconcile.settle_lost_jobs(paths, service.node.name, lambda _job: True)

        assert eventually(settled, 60) == 1
    finally:
        supervision.end_hung(paths, service.pk)
        with pytest.raises(JobFailed, match="without a word"):
            hanging.settle(60)
    job.refresh_from_db()
    service.refresh_from_db()
    assert job.status == "lost"
    assert service.status == "created"
    operations.request_start(service, actor="root", source="manage")
