"""Jobs: a row in, a row out. What is done between the two is the engine's."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from celery import shared_task
from celery.signals import worker_process_init
from django.conf import settings
from django.db import Error as DatabaseAway
from django.db import close_old_connections

from services import operations
from services.concerning import concerning
from services.models import Job
from services.states import JobKind, JobState, ServiceState, has_process
from services.writing import Steps, surely
from worker import agent as agent  # noqa: PLC0414 - its import adds the agent to the worker that runs this
from worker import (
    policy,
    reconcile,
    remedies,
    spares,
    warm,
)
from worker.engine import Engine
from worker.errors import JobFailed, describe
from worker.explaining import tail
from worker.handlers import HANDLERS
from worker.paths import IS_ID, Paths
from worker.reconcile import Truth
from worker.tools import Tools

log = logging.getLogger(__name__)

_TURN = 0.0005
"""Seconds after which a thread that computes makes way for another that can go on; Python's own are 0.005."""


def paths() -> Paths:
    """Return this node's folders."""
    return Paths(settings.MIEHISTO_STATE_DIR, settings.MIEHISTO_RUN_DIR, settings.MIEHISTO_LOG_DIR)


@cache
def _warm(_pid: int) -> warm.Warm:
    return warm.prepare(settings.MIEHISTO_CRIU)


def engine(step: Callable[[str], None], title: str = "") -> Engine:
    """Return the engine of this node, which tells `step` where it is.

    Args:
        title: what systemd shall call the service that is worked on.
    """
    return Engine(
        Tools(
            paths(),
            settings.MIEHISTO_CRIU,
            settings.MIEHISTO_TINI,
            step,
            settings.MIEHISTO_JOB_TIMEOUT,
            settings.MIEHISTO_START_SETTLE,
            _warm(os.getpid()),
            policy.in_force,
            title,
        )
    )


@worker_process_init.connect
def get_ready(**_: Any) -> None:
    """Do once in each process of the worker what its first job would have to wait for."""
    # A service stands still while its image is sealed, and shall not wait for the thread that writes steps.
    sys.setswitchinterval(_TURN)
    _warm(os.getpid())
    spares.keep_one()


@shared_task(name="miehisto.run_job")
def run_job(*order: object, **more: object) -> None:
    """Claim the job and carry it out; delivered twice it is done once.

    Args:
        order: the job's id and nothing else; what has another shape was sent by a stranger.
    """
    match order:
        case (str(job_id),) if IS_ID.match(job_id) and not more:
            pass
        case _:
            log.warning("the queue held what is no job's id, it is dropped: %.200r %.200r", order, more)
            return
    try:
        _run(job_id)
    finally:
        spares.keep_one_soon()


def _run(job_id: str) -> None:
    close_old_connections()  # it may have ended since the last job, or be past CONN_MAX_AGE
    job = _claim(job_id)
    if job is None:
        return
    with concerning(job=job.pk, service=job.service_ref, image=job.image_id):
        _carry_out(job)


def _carry_out(job: Job) -> None:
    try:
        with Steps(job) as steps:
            title = (job.service.name or " ".join(job.service.argv)[:80]) if job.service else ""
            outcome = HANDLERS[JobKind(job.kind)](job, engine(steps.enter, title))
    except JobFailed as failure:
        _fail(job, failure)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            pool = paths().images
            message = f"The disk is full: {describe(error)}."
            remedy = f"Make room where it is (df -h; the image pool is {pool}), then try again."
            _fail(job, JobFailed("pool_full", message, remedy))
        else:
            _error(job)
    except Exception:
        _error(job)
    else:
        found = outcome.truth
        _end(
            job,
            lambda: operations.succeed(
                job,
                service_state=found.state if found else None,
                result=outcome.result,
                statistics=outcome.statistics,
                **(found.extras() if found else {}),
            ),
        )


def _end(job: Job, write: Callable[[], None]) -> None:
    """Write a job's end. One that the database refuses for what it says must not leave the job running."""
    try:
        surely(write)
    except Exception:
        log.exception("job %s: its end cannot be written as it is", job.pk)
        found = _truth_after_failure(job)
        said = "The database refused what the job's end says; the worker's log has both."
        try:
            surely(lambda: operations.error(job, said, found.state if found else None))
        except Exception:
            log.exception("job %s: what became of its service cannot be written, either", job.pk)
            surely(lambda: operations.error(job, said))


def _claim(job_id: str) -> Job | None:
    """Take the job; one that this process has taken without hearing so is its own, too.

    A database that goes away during the commit leaves open whether that was done, and nobody else would ever
    end a job whose worker lives. What can't be taken at the second try stays queued and is sent again.
    """
    me = reconcile.identity(settings.MIEHISTO_NODE)
    mine = Job.objects.select_related("service", "node").filter(pk=job_id, status=JobState.RUNNING, worker=me)
    in_doubt = False
    for _ in range(2):
        try:
            job = operations.claim(job_id, worker=me)
        except DatabaseAway as error:
            log.warning("job %s may be taken or not, the database went away: %s", job_id, error)
            in_doubt = True
        else:
            if job or not in_doubt:
                return job
        # Also where the second try found it taken: by the first one, whose commit came late.
        if taken := surely(mine.first):
            return taken
    return None


def _fail(job: Job, failure: JobFailed) -> None:
    found = _truth_after_failure(job)
    if found and found.state is ServiceState.EXITED and job.kind == JobKind.DUMP:
        found = found._replace(reason=failure.message)
    log_file = {JobKind.DUMP: "dump.log", JobKind.RESTORE: "restore.log"}.get(JobKind(job.kind))
    said = _said_since(job, paths().runtime(job.service_ref) / "criu" / log_file) if log_file else ""
    _end(
        job,
        lambda: operations.fail(
            job,
            code=failure.code,
            message=failure.message,
            remedy=failure.remedy,
            lines=failure.lines,
            actions=remedies.actions(failure.code, failure.words, restoring=job.kind == JobKind.RESTORE),
            log_text=said,
            service_state=found.state if found else None,
            **(found.extras() if found else {}),
        ),
    )


def _said_since(job: Job, log_file: Path) -> str:
    """Return the end of CRIU's log, if it was written by this job."""
    with contextlib.suppress(OSError):
        if job.started_at and log_file.stat().st_mtime >= job.started_at.timestamp():
            return tail(log_file)
    return ""


def _error(job: Job) -> None:
    log.exception("job %s hit a bug", job.pk)
    found = _truth_after_failure(job)
    text = traceback.format_exc()
    _end(job, lambda: operations.error(job, text, found.state if found else None))


def _truth_after_failure(job: Job) -> Truth | None:
    """Return what is true of the job's service now; None for the state it had before the job.

    Whatever goes wrong here must not keep the job from ending: nobody else ends one whose worker lives.
    """
    try:
        return _found_after_failure(job)
    except Exception:
        log.exception("job %s: what became of its service cannot be read", job.pk)
        return None


def _found_after_failure(job: Job) -> Truth | None:
    if not job.service_ref or job.service is None:
        return None
    found = reconcile.truth(paths(), job.service_ref)
    sealed = job.kind == JobKind.DUMP and reconcile.is_sealed(paths(), job.image_id)
    if sealed:  # what went wrong did so after the deed, which stands
        try:
            surely(lambda: reconcile.record_image(paths(), job.image_id, job.node))
        except Exception:
            log.exception("job %s: its image has no row until a rescan makes it", job.pk)
    if found and found.state is ServiceState.RUNNING:
        return found
    if sealed and not job.options.get("leave_running"):
        paths().state(job.service_ref).unlink(missing_ok=True)
        return Truth(ServiceState.DUMPED)
    if job.kind in {JobKind.START, JobKind.RESTART}:
        # What ran and ended has exited, as the agent would say a moment later; what never ran has failed.
        return found or Truth(ServiceState.FAILED)
    stops = job.kind == JobKind.STOP or (job.kind == JobKind.DELETE_SERVICE and job.options.get("stop"))
    if found is None and stops and has_process(ServiceState(job.service_state_before)):
        # Nothing lives, and what its supervisor said last is gone: only the end of a stop takes that away.
        return Truth(ServiceState.STOPPED)
    return None if job.kind == JobKind.RESTORE else found
