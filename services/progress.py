"""What a worker and the agent write: claims, steps, ends of jobs, what they saw. It knows no CRIU.

With operations.py, which offers these names too, the only writer of status. Every change of a job is one
transaction with its JobEvent; the bell rings after the commit.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypedDict, Unpack

from django.db import transaction
from django.utils import timezone

from services import bell
from services.models import Job, JobEvent, JobLog, Node, Service, ServiceEvent
from services.states import (
    KINDS,
    TRANSIENT,
    JobKind,
    JobState,
    ServiceState,
    has_process,
    may_move,
    state_after_success,
    transient_state,
)

log = logging.getLogger(__name__)

_SEEN_FIELDS = (
    "status",
    "status_reason",
    "pid",
    "supervisor_pid",
    "exit_code",
    "exit_signal",
    "changed_at",
    "started_at",
    "image_id",
)

_BROUGHT_ABOUT = {(JobKind.DUMP, ServiceState.DUMPED), (JobKind.RESTORE, ServiceState.RUNNING)}
"""What a job has done with its image although it did not end well: its worker died between deed and word."""


class Seen(TypedDict, total=False):
    """What was seen of a service's processes; what is not said is not known."""

    pid: int | None
    supervisor_pid: int | None
    exit_code: int | None
    exit_signal: int | None
    reason: str


def claim(job_id: str, *, worker: str) -> Job | None:
    """Take a queued job; the service goes into the transient state of the job's kind.

    worker: the name of the asker, written on the row.
    Returns the job with `service` and `node` loaded, or None: another has it, it was cancelled, it doesn't
    exist, or the service is by now in a state that the job can't begin from (the job is failed then).
    """
    with transaction.atomic():
        _lock_service(job_id)
        now = timezone.now()
        claimed = Job.objects.filter(pk=job_id, status=JobState.QUEUED).update(
            status=JobState.RUNNING, started_at=now, worker=worker
        )
        if not claimed:
            return None
        job = Job.objects.select_related("service", "node").get(pk=job_id)
        JobEvent.objects.create(job=job, at=now, status=JobState.RUNNING, text=f"taken by {worker}")
        transaction.on_commit(lambda: bell.ring(job_id))
        refusal = _refusal(job)
        if refusal:
            code, message, remedy = refusal
            fail(
                job,
                code=code,
                message=message,
                remedy=remedy,
                lines=[],
                service_state=None,
            )
            return None
        service = job.service
        if service:
            job.service_state_before = service.status
            Job.objects.filter(pk=job_id).update(service_state_before=service.status)
            state = transient_state(JobKind(job.kind), service.state)
            if state:
                _write_service(service, state)
        transaction.on_commit(lambda: _tell(job, logging.INFO, "is taken"))
    return job


def _lock_service(job_id: str) -> Service | None:
    """Lock the service that a job works on, before its row, and return it.

    So does who asks for another job on it, whom the index of active jobs then lets wait for this one's row.
    """
    return Service.objects.select_for_update(of=("self",)).filter(jobs=job_id).first()


def _refusal(job: Job) -> tuple[str, str, str] | None:
    """Why a job just claimed can't begin, as code, sentence and remedy."""
    if job.kind not in KINDS:  # during an upgrade the site may be newer than the worker that runs still
        message = f"This worker is of another version than the site and knows no job {job.kind!r}."
        return "kind_unknown", message, "Start the worker anew in the site's version, then ask again."
    allowed = KINDS[JobKind(job.kind)].allowed
    if not allowed:
        return None
    remedy = "See how it is now (mhctl service show), then ask again."
    service = job.service
    if service is None:
        return "service_not_found", "The service was deleted meanwhile.", remedy
    if service.state in allowed:
        return None
    code = "service_running" if has_process(service.state) else "service_not_running"
    return code, f"The service is {service.status} by now.", remedy


def enter_step(job: Job, step: str, *, at: datetime | None = None) -> None:
    """Say what the job is about to do, e.g. "freezing"; a failure then says where it was.

    at: when it was; None for now.
    """
    with transaction.atomic():
        Job.objects.filter(pk=job.pk, status=JobState.RUNNING).update(step=step)
        JobEvent.objects.create(job_id=job.pk, at=at or timezone.now(), status=JobState.RUNNING, step=step)
    job.step = step
    bell.ring(job.pk)


def succeed(
    job: Job,
    *,
    service_state: ServiceState | None,
    result: dict[str, Any],
    statistics: dict[str, Any],
    **seen: Unpack[Seen],
) -> None:
    """End a job well.

    service_state: what is true now; None means the state that KINDS gives for this kind.
    result, statistics: for pages and clients; `result["image"]` becomes the job's image when it has none.
    seen: as it is now; a PID of None keeps what is known.
    """
    image_id = job.image_id or str(result.get("image", ""))
    fields = {"result": result, "statistics": statistics, "image_id": image_id}

    def settle(service: Service) -> None:
        if job.kind == JobKind.DELETE_SERVICE:
            service.delete()
            return
        leave_running = bool(job.options.get("leave_running"))
        state = service_state or state_after_success(JobKind(job.kind), leave_running=leave_running)
        if image_id and job.kind in {JobKind.DUMP, JobKind.RESTORE}:
            service.image_id = image_id
        if state:
            _write_service(service, state, **seen)

    _end(job, JobState.SUCCEEDED, fields, settle)


def fail(
    job: Job,
    *,
    code: str,
    message: str,
    remedy: str,
    lines: list[str],
    service_state: ServiceState | None,
    actions: list[dict[str, Any]] | None = None,
    log_text: str = "",
    **seen: Unpack[Seen],
) -> None:
    """End a job that failed in an expected way.

    code, message, remedy: for people and programs. lines: CRIU's or the service's own words.
    actions: remedies that can be pressed, each with action, label and options. log_text: the end of CRIU's.
    service_state: what is true now; None means the state before the job.
    """
    fields = {
        "error_code": code,
        "error_message": message,
        "error_remedy": remedy,
        "error_lines": lines,
        "error_actions": actions or [],
    }
    with transaction.atomic():
        if log_text:
            JobLog.objects.update_or_create(job=job, defaults={"text": log_text})
        _end(job, JobState.FAILED, fields, _settle_as(job, service_state, seen), text=message)


def error(job: Job, traceback: str, service_state: ServiceState | None = None) -> None:
    """End a job that hit a bug. service_state: as for `fail`."""
    last_line = traceback.strip().rpartition("\n")[2]
    fields = {
        "error_code": "internal_error",
        "error_message": f"Miehistö has a fault: {last_line.rstrip('.')}.",
        "error_remedy": "Report it with the traceback, which is in the worker's log.",
        "traceback": traceback,
    }
    _end(job, JobState.ERRORED, fields, _settle_as(job, service_state, Seen()), text=last_line)


def lose(
    job: Job,
    message: str,
    service_state: ServiceState | None = None,
    **seen: Unpack[Seen],
) -> None:
    """End a job whose worker died. service_state: what the disk says; None means the state before."""
    look = "Look at the service's state (mhctl service show), then ask again."
    fields = {
        "error_code": "worker_lost",
        "error_message": message,
        "error_remedy": look if job.service_ref else "Ask again.",
    }
    _end(job, JobState.LOST, fields, _settle_as(job, service_state, seen), text=message)


def observe(
    service_id: str,
    *,
    state: ServiceState,
    pid: int | None,
    supervisor_pid: int | None,
    exit_code: int | None,
    exit_signal: int | None,
    reason: str,
    as_of: datetime | None = None,
) -> bool:
    """Write what the agent saw of a service.

    as_of: the row's `changed_at` before the agent looked; a row that a job has changed since is left alone.
    Returns True if the row changed; False when it said so already, when a running job has the word or had it
    meanwhile, when there is no such row, or when the table of transitions forbids it.
    """
    seen = {
        "status": state.value,
        "pid": pid,
        "supervisor_pid": supervisor_pid,
        "exit_code": exit_code,
        "exit_signal": exit_signal,
    }
    # Of one that does not run, the job that ended it may know more.
    if state is ServiceState.RUNNING and reason:
        seen["status_reason"] = reason
    current = Service.objects.filter(pk=service_id).values(*seen).first()
    # The agent asks often and mostly nothing is new: no write lock is taken for that.
    if current is None or current == seen:
        return False
    with transaction.atomic():
        service = Service.objects.select_for_update().filter(pk=service_id).first()
        if service is None or service.jobs.filter(status=JobState.RUNNING).exists():
            return False
        if as_of is not None and service.changed_at != as_of:
            return False
        if not may_move(service.state, state):
            log.warning("service %s is %s, yet was seen %s", service_id, service.status, state)
            return False
        _write_service(
            service,
            state,
            pid=pid,
            supervisor_pid=supervisor_pid,
            exit_code=exit_code,
            exit_signal=exit_signal,
            reason=reason,
        )
        transaction.on_commit(lambda: bell.ring_service(service_id))
    return True


def heartbeat(node_name: str, criu_version: str, kernel: str, capabilities: dict[str, Any]) -> Node:
    """Note that a node's worker is alive and what it can; makes the node's row at first."""
    node, _made = Node.objects.update_or_create(
        name=node_name,
        defaults={
            "last_seen_at": timezone.now(),
            "criu_version": criu_version,
            "kernel": kernel,
            "capabilities": capabilities,
        },
    )
    return node


def _settle_as(job: Job, state: ServiceState | None, seen: Seen) -> Callable[[Service], None]:
    """Return what writes the service's state after a job that didn't succeed."""

    def settle(service: Service) -> None:
        after = state
        if after is None:
            if service.state not in TRANSIENT:
                return
            after = ServiceState(job.service_state_before)
        why = job.error_message if after in {ServiceState.FAILED, ServiceState.EXITED} else ""
        told = seen.copy()
        told["reason"] = seen.get("reason") or why
        if (job.kind, after) in _BROUGHT_ABOUT:
            service.image_id = job.image_id
        _write_service(service, after, **told)

    return settle


def _end(
    job: Job,
    state: JobState,
    fields: dict[str, Any],
    settle: Callable[[Service], None],
    *,
    text: str = "",
) -> None:
    """Write a job's end once, settle its service, add the event, ring."""
    now = timezone.now()
    for name, value in {**fields, "status": state.value, "finished_at": now}.items():
        setattr(job, name, value)
    with transaction.atomic():
        service = _lock_service(job.pk)
        ended = Job.objects.filter(pk=job.pk, status=JobState.RUNNING).update(
            **fields, status=state, finished_at=now
        )
        if not ended:
            log.warning("job %s had ended before it was said to be %s", job.pk, state)
            return
        if service:
            settle(service)
        JobEvent.objects.create(job_id=job.pk, at=now, status=state, step=job.step, text=text)
        transaction.on_commit(lambda: bell.ring(job.pk))
        level = logging.INFO if state is JobState.SUCCEEDED else logging.WARNING
        said = f"{state}: {text}" if text else str(state)
        transaction.on_commit(lambda: _tell(job, level, said))


def _tell(job: Job, level: int, said: str) -> None:
    ids = {"job": job.pk, "service": job.service_ref, "image": job.image_id}
    log.log(level, "job %s (%s) %s", job.pk, job.kind, said, extra=ids)


def write_reason(service: Service, state: ServiceState, reason: str) -> None:
    """Write why a service without a job is as it is, or has come to `state`; call it in a transaction."""
    if may_move(service.state, state):
        _write_service(service, state, reason=reason)


def _write_service(
    service: Service,
    state: ServiceState,
    **seen: Unpack[Seen],
) -> None:
    """Move a service along the table of transitions; what a state can't have (a PID) is cleared.

    Raises ValueError for a transition that the table doesn't have: a bug of the caller.
    """
    if not may_move(service.state, state):
        raise ValueError(f"service {service.pk} can't go from {service.status} to {state}")
    pid = seen.get("pid")
    exit_code, exit_signal = seen.get("exit_code"), seen.get("exit_signal")
    now = timezone.now()
    if state is ServiceState.RUNNING and pid is not None and pid != service.pid:
        service.started_at = now
    if has_process(state):
        service.pid = pid if pid is not None else service.pid
        # Whoever has looked and seen none knows that it was killed.
        service.supervisor_pid = seen.get("supervisor_pid", service.supervisor_pid)
        if state is ServiceState.RUNNING:
            service.exit_code = service.exit_signal = None
    else:
        service.pid = service.supervisor_pid = None
        if exit_code is not None or exit_signal is not None:
            service.exit_code, service.exit_signal = exit_code, exit_signal
    moved = service.status != state.value or service.started_at == now
    service.status = state.value
    service.status_reason = seen.get("reason", "")
    service.changed_at = now
    # Not its name and what else operators write: they may have done so since this row was read.
    service.save(update_fields=_SEEN_FIELDS)
    if moved:
        ServiceEvent.objects.create(
            service_ref=service.pk,
            at=now,
            status=service.status,
            reason=service.status_reason,
            pid=service.pid,
            exit_code=service.exit_code,
            exit_signal=service.exit_signal,
        )


__all__ = [
    "claim",
    "enter_step",
    "error",
    "fail",
    "heartbeat",
    "lose",
    "observe",
    "succeed",
    "write_reason",
]
