"""Rows that several tests begin with, made by the operations themselves, or very many of them at once."""

from datetime import UTC, datetime, timedelta

from django.contrib.auth.models import Group, User
from django.utils import timezone

from images import operations as image_operations
from images.models import Image
from services import operations
from services.models import AuditEvent, Job, JobEvent, Node, Service, ServiceEvent, ServiceLoad, new_id


def member(role: str | None) -> User:
    """Return a fresh user with a role, or with none."""
    user = User.objects.create_user(f"{role or 'guest'}-{new_id()[:6]}")
    if role:
        user.groups.add(Group.objects.get(name=role))
    return user


def made_service(name: str = "", argv: list[str] | None = None, user: str = "root") -> Service:
    """Return a service whose start is still queued."""
    job = operations.request_create(
        node=Node.objects.local(),
        argv=argv or ["/bin/true"],
        name=name,
        user=user,
        actor="root",
        source="manage",
    )
    assert job.service
    return job.service


def running_service(name: str = "", pid: int = 4242, user: str = "root") -> Service:
    """Return a service that runs, as far as the rows know."""
    service = made_service(name, user=user)
    job = taken(service.jobs.get())
    operations.succeed(job, service_state=None, result={}, statistics={}, pid=pid, supervisor_pid=pid - 1)
    service.refresh_from_db()
    return service


def stopped_service(name: str = "", user: str = "root") -> Service:
    """Return a service without a process, as far as the rows know."""
    service = running_service(name, user=user)
    job = taken(operations.request_stop(service, actor="root", source="manage"))
    operations.succeed(job, service_state=None, result={}, statistics={})
    service.refresh_from_db()
    return service


def recorded_image(service: Service, image_id: str = "") -> Image:
    """Return the row of an image of a service; there are no files."""
    return image_operations.record(
        image_id=image_id or new_id(),
        service_id=service.pk,
        node=service.node,
        comm="true",
        path="/images/x",
        size_bytes=10,
        pages_bytes=5,
        created_at=datetime.now(UTC),
        leave_running=False,
        criu_version="4.2.1",
        kernel="6",
        argv=service.argv,
        statistics={},
        manifest={},
    )


def taken(job: Job) -> Job:
    """Return the job as a worker has it."""
    claimed = operations.claim(job.pk, worker="test")
    assert claimed
    return claimed


def jobs_of(service: Service, image_id: str, at: datetime) -> list[Job]:
    """Return a dump that failed and a restore that succeeded; neither is written yet."""
    about = {"node": service.node, "service": service, "service_ref": service.pk, "image_id": image_id}
    return [
        Job(kind="dump", status="failed", queued_at=at, error_code="x", error_message="It failed.", **about),
        Job(kind="restore", status="succeeded", queued_at=at, **about),
    ]


def in_bulk(count: int) -> None:
    """Make services that run, each with an image, jobs, events and figures."""
    now, node = timezone.now(), Node.objects.local()
    made = [
        Service(
            node=node,
            name=f"bulk-{count}-{number}",
            argv=["/bin/true"],
            status="running",
            pid=number + 1,
            created_at=now,
            changed_at=now - timedelta(minutes=number),
        )
        for number in range(count)
    ]
    Service.objects.bulk_create(made)
    ServiceLoad.objects.bulk_create([ServiceLoad(service=each, at=now, cpu=0.5, memory=1) for each in made])
    ServiceEvent.objects.bulk_create(
        [ServiceEvent(service_ref=each.pk, at=now, status="running") for each in made]
    )
    Image.objects.bulk_create(
        [Image(id=each.pk, node=node, service=each, service_ref=each.pk, created_at=now) for each in made]
    )
    jobs = [job for each in made for job in jobs_of(each, each.pk, now)]
    Job.objects.bulk_create(jobs)
    JobEvent.objects.bulk_create([JobEvent(job=each, at=now, status="queued") for each in jobs])
    AuditEvent.objects.bulk_create(
        [AuditEvent(at=now, actor="root", action="dump", target_id=each.service_ref) for each in jobs]
    )
