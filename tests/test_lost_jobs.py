"""Jobs whose worker has died: each is ended by what lies on the disk, and none stands in the way for ever."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError

from images import operations as images
from images.models import Image
from services import operations
from services.models import Job
from services.states import JobKind
from tests.rows import made_service, recorded_image, running_service
from tests.stack import CHECKOUT, eventually
from worker import handlers, locks, orphans, process, reconcile, supervision, tasks
from worker.durable import write_json
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
        paths.spec(service.pk).unlink()  # a rescan would wait for it, too
    job.refresh_from_db()
    service.refresh_from_db()
    assert job.status == "lost"
    assert service.status == "created"
    operations.request_start(service, actor="root", source="manage")


def test_a_job_that_cannot_be_settled_yet_keeps_no_other_from_it() -> None:
    """The disk of RUN_DIR is full: how a restore went cannot be written down."""
    paths, services = tasks.paths(), [made_service(), made_service()]
    older, newer = (operations.claim(service.jobs.get().pk, worker=DEAD) for service in services)
    assert older and newer
    state = paths.state(newer.service_ref)
    state.parent.mkdir(parents=True)
    dead = (4194303, 1)
    left = {"phase": "restoring", "runmh": dead, "init": dead, "mounts": [], "pipe": 1, "image": ""}
    write_json(state, left)
    full = state.with_name(f"{state.name}.{os.getpid()}.tmp")
    full.mkdir()  # where its next content would be written
    assert reconcile.settle_lost_jobs(paths, older.node.name) == 1
    older.refresh_from_db()
    newer.refresh_from_db()
    assert (older.status, newer.status) == ("lost", "running")
    full.rmdir()
    assert reconcile.settle_lost_jobs(paths, older.node.name) == 1


@pytest.mark.parametrize("renamed", [False, True])
def test_a_deletion_that_was_killed_is_brought_to_its_end_once_the_image_is_none(renamed: bool) -> None:
    service = made_service()
    image = recorded_image(service)
    job = operations.claim(
        images.request_delete(image, actor="root", source="manage", force=True).pk, worker=DEAD
    )
    assert job
    paths = tasks.paths()
    left = paths.images / f".deleted-{image.pk}" if renamed else paths.image(image.pk)
    left.mkdir(parents=True)
    (left / "pages-1.img").write_bytes(b"secret")
    assert reconcile.settle_lost_jobs(paths, service.node.name) == 1
    job.refresh_from_db()
    assert job.status == "lost"
    assert (left.exists(), Image.objects.exists()) == (not renamed, not renamed)


# What a worker does that is killed when it has sealed the image, before CRIU has heard of it.
DUMPS_AND_DIES = """
import os, signal, sys
from pathlib import Path
from worker import manifest
from worker.engine import Engine
from worker.paths import Paths
from worker.tools import Tools
seal = manifest.seal
def seal_and_die(*words):
    seal(*words)
    os.kill(os.getpid(), signal.SIGKILL)
manifest.seal = seal_and_die
service, image, criu, *folders = sys.argv[1:]
Engine(Tools(Paths(*map(Path, folders)), criu, "")).dump(service, image)
"""


def test_an_image_that_was_sealed_for_a_service_that_runs_on_is_not_kept() -> None:
    """It says that the service has ended, and would be believed when its files are compared."""
    orphans.adopt()
    service = running_service()
    paths, engine = tasks.paths(), tasks.engine(lambda _step: None)
    running = engine.start(service.pk, {"argv": ["/bin/sleep", "3600"]})
    try:
        asked = operations.request_dump(service, actor="root", source="manage")
        job = operations.claim(asked.pk, worker=DEAD)
        assert job
        words = [service.pk, job.image_id, settings.MIEHISTO_CRIU, *map(str, paths)]
        died = subprocess.run([sys.executable, "-c", DUMPS_AND_DIES, *words], cwd=CHECKOUT, check=False)
        assert died.returncode == -signal.SIGKILL
        assert reconcile.is_sealed(paths, job.image_id)

        assert eventually(lambda: reconcile.settle_lost_jobs(paths, service.node.name)) == 1
        job.refresh_from_db()
        service.refresh_from_db()
        assert (job.status, service.status) == ("lost", "running")
        assert "runs on, and no image of it was kept" in job.error_message
        assert running.init.alive()
        assert not paths.image(job.image_id).exists()
        assert not Image.objects.exists()
    finally:
        engine.stop(service.pk, 0)
        engine.delete_service(service.pk)
        orphans.reap()


def taken(kind: JobKind, options: dict[str, Any] | None = None) -> Job:
    """Return a job on a running service, as this process has taken it."""
    service = running_service()
    job = operations.request_stop(service, actor="root", source="manage")
    Job.objects.filter(pk=job.pk).update(kind=kind, options=options or {})
    found = operations.claim(job.pk, worker=reconcile.identity(service.node.name))
    assert found
    return found


@pytest.mark.parametrize(
    ("kind", "options"), [(JobKind.STOP, {}), (JobKind.DELETE_SERVICE, {"stop": True}), (JobKind.RESTART, {})]
)
def test_what_goes_wrong_after_a_service_was_stopped_does_not_leave_it_running(
    monkeypatch: pytest.MonkeyPatch, kind: JobKind, options: dict[str, Any]
) -> None:
    job = taken(kind, options)
    monkeypatch.setitem(handlers.HANDLERS, kind, failing(OSError("the disk is broken")))
    tasks._carry_out(job)
    job.refresh_from_db()
    assert job.service
    assert (job.status, job.service.status) == ("errored", "failed" if kind == "restart" else "stopped")


def failing(error: Exception) -> Callable[..., Any]:
    def handler(*_: object) -> None:
        raise error

    return handler


@pytest.mark.parametrize("where", ["truth", "succeed"])
def test_a_job_ends_whatever_goes_wrong_when_its_end_is_written(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Its worker lives, so nobody else would ever end it."""
    job = taken(JobKind.DUMP)
    if where == "truth":
        monkeypatch.setattr(reconcile, "truth", failing(OSError("the disk is broken")))
        monkeypatch.setitem(handlers.HANDLERS, JobKind.DUMP, failing(JobFailed("x", "It failed.", "")))
    else:
        monkeypatch.setattr(operations, "succeed", failing(ValueError("no such transition")))
        monkeypatch.setitem(handlers.HANDLERS, JobKind.DUMP, lambda *_: handlers.Outcome())
    tasks._carry_out(job)
    job.refresh_from_db()
    assert job.service
    assert job.status == ("failed" if where == "truth" else "errored")
    assert job.service.status == "running"


def test_a_job_whose_taking_was_committed_late_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection broke under the commit, which is done only when the second try waits for its row."""
    job = operations.request_stop(running_service(), actor="root", source="manage")
    claim, tries = operations.claim, [OperationalError("the connection is lost"), None]

    def late(job_id: str, *, worker: str) -> Job | None:
        answer = tries.pop(0)
        if answer:
            raise answer
        assert claim(job_id, worker=worker)  # the first one's, by now
        return claim(job_id, worker=worker)

    monkeypatch.setattr(operations, "claim", late)
    mine = tasks._claim(job.pk)
    assert mine and mine.status == "running"


def test_a_service_that_cannot_be_killed_is_not_called_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits for a disk in state D ends when that answers, whatever signal it has got."""
    service = running_service()
    paths = tasks.paths()
    paths.runtime(service.pk).mkdir(parents=True)
    with subprocess.Popen(["sleep", "3600"]) as sleeper:
        try:
            init = process.Process.of(sleeper.pid)
            state = {"phase": "running", "runmh": init, "init": init, "main": None}
            write_json(paths.state(service.pk), {**state, "mounts": [], "pipe": 1, "image": ""})
            engine = tasks.engine(lambda _step: None)
            engine.tools = engine.tools._replace(timeout=0.1)
            with monkeypatch.context() as deaf:
                deaf.setattr(process.Process, "signal", lambda *_: True)
                with pytest.raises(JobFailed, match="has not ended") as caught:
                    engine.stop(service.pk, 0.1)
            assert caught.value.code == "not_killed"
            assert supervision.running(paths, service.pk)
        finally:
            sleeper.kill()
            paths.state(service.pk).unlink()
