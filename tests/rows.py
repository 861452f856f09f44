"""Rows that several tests begin with, made by the operations themselves."""

from services import operations
from services.models import Job, Node, Service


def made_service(name: str = "", argv: list[str] | None = None) -> Service:
    """Return a service whose start is still queued."""
    job = operations.request_create(
        node=Node.objects.local(), argv=argv or ["/bin/true"], name=name, actor="root", source="manage"
    )
    assert job.service
    return job.service


def running_service(name: str = "", pid: int = 4242) -> Service:
    """Return a service that runs, as far as the rows know."""
    service = made_service(name)
    job = taken(service.jobs.get())
    operations.succeed(job, service_state=None, result={}, statistics={}, pid=pid, supervisor_pid=pid - 1)
    service.refresh_from_db()
    return service


def taken(job: Job) -> Job:
    """Return the job as a worker has it."""
    claimed = operations.claim(job.pk, worker="test")
    assert claimed
    return claimed
