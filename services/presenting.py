"""Rows as the API's objects, the same for pages, mhctl and manage.py. It reads no more than it is given."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.urls import reverse

from services.models import Job, JobEvent, JobLog, Node, Service
from services.states import JobState

NOT_SENT = "The queue is down: the job waits and is sent as soon as it is up again."


def moment(at: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC."""
    return at.isoformat() if at else None


def node_object(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "last_seen": moment(node.last_seen_at),
        "criu_version": node.criu_version,
        "kernel": node.kernel,
        "capabilities": node.capabilities,
    }


def service_object(service: Service, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The service must come from `for_display()`; else its active job isn't known and is null.

    env: its environment, for one who may see it; else its values, which are often passwords, are null.
    """
    return {
        "object_id": service.pk,
        "name": service.name,
        "node": service.node.name,
        "status": service.status,
        "status_reason": service.status_reason,
        "pid": service.pid,
        "ppid": service.supervisor_pid,
        "args": service.argv,
        "user": service.user,
        "group": service.group,
        "cwd": service.cwd,
        "env": dict.fromkeys(service.env) if env is None else env,
        "binds": service.binds,
        "data": service.data,
        "carry": service.carry,
        "privileges": service.privileges,
        "limits": service.limits,
        "restore_on_boot": service.restore_on_boot,
        "exit_code": service.exit_code,
        "exit_signal": service.exit_signal,
        "created": moment(service.created_at),
        "changed": moment(service.changed_at),
        "started": moment(service.started_at),
        "image": service.image_id or None,
        "job": getattr(service, "active_job_id", None),
    }


def event_object(event: JobEvent) -> dict[str, Any]:
    return {"at": moment(event.at), "status": event.status, "step": event.step, "text": event.text}


def job_object(job: Job, events: Iterable[JobEvent] | None = None) -> dict[str, Any]:
    """The job must come from `for_display()`; else the service of one that only looks has no name.

    events: when None, those that the job is known to have; lists leave them out.
    """
    answer = {
        "object_id": job.pk,
        "kind": job.kind,
        "service": job.service_ref or None,
        "service_name": job.service.name if job.service else job.about_name or "",
        "image": job.image_id or None,
        "retry_of": job.retry_of or None,
        "node": job.node.name,
        "status": job.status,
        "step": job.step,
        "options": job.options,
        "requested_by": job.requested_by,
        "source": job.source,
        "queued": moment(job.queued_at),
        "started": moment(job.started_at),
        "finished": moment(job.finished_at),
        "error": job.error,
        "result": job.result,
        "statistics": job.statistics,
        "events": [event_object(event) for event in (events or job.known_events or [])],
        "url": reverse("services:job", args=[job.pk]),
    }
    if job.status == JobState.QUEUED and job.sent_at is None:
        answer["warning"] = NOT_SENT
    return answer


def log_object(job: Job) -> dict[str, Any]:
    """The end of CRIU's log of a job, each line with whether it tells of an error."""
    kept = JobLog.objects.filter(job=job).first()
    lines = kept.text.splitlines() if kept else []
    return {"object_id": job.pk, "lines": [{"text": line, "error": "Error" in line} for line in lines]}
