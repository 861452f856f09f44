"""What is in an image: recorded by the worker, compared, and told to who may know it. It reads no file."""

from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from images import operations
from images.comparing import compare
from images.models import Image, ImageContents, ImageEnvironment
from services import bell
from services.actors import Actor, name_of, require_account, require_operator
from services.models import Job
from services.presenting import moment
from services.problems import Problem
from services.references import not_found
from services.states import JobKind, JobState

ENVIRONMENT_KEPT = timedelta(minutes=5)


def unread(node_name: str) -> Image | None:
    """Return the newest image of a node that nobody has looked into yet."""
    rows = Image.objects.filter(node__name=node_name, is_read=False).select_related("node")
    return rows.order_by("-created_at").first()


def record(image_id: str, data: dict[str, Any], error: str = "") -> None:
    """Write what was read out of an image, or why nothing was; an image deleted meanwhile is passed over."""
    with transaction.atomic():
        if Image.objects.filter(pk=image_id).update(is_read=True):
            seen = {"read_at": timezone.now(), "data": data, "error": error}
            ImageContents.objects.update_or_create(image_id=image_id, defaults=seen)
            transaction.on_commit(lambda: bell.ring_image(image_id))


def contents_object(image: Image) -> dict[str, Any]:
    """Return an image's contents for the API and the pages, with the restores that were made from it."""
    seen = ImageContents.objects.filter(image=image).first() if image.is_read else None
    restores = Job.objects.filter(image_id=image.pk, kind=JobKind.RESTORE)
    return {
        "object_id": image.pk,
        "state": "pending" if seen is None else "unreadable" if seen.error else "read",
        "error": seen.error if seen else "",
        "read": moment(seen.read_at) if seen else None,
        "contents": seen.data if seen and not seen.error else None,
        "restores": [
            {
                "job": job.pk,
                "status": job.status,
                "requested_by": job.requested_by,
                "source": job.source,
                "queued": moment(job.queued_at),
                "finished": moment(job.finished_at),
            }
            for job in restores.defer("traceback", "error_lines", "statistics")[:100]
        ],
    }


def comparison(before: Image, after: Image) -> dict[str, Any]:
    """Return what differs between two images of one service, as comparing.py tells it.

    Raises Problem different_services, contents_pending, contents_unreadable.
    """
    if before.service_ref != after.service_ref:
        raise Problem(
            "different_services",
            f"The images {before} and {after} are of different services.",
            "Compare two images of one service.",
            details={"services": [before.service_ref, after.service_ref]},
        )
    return {
        "before": {"object_id": before.pk, "name": before.name, "ctime": moment(before.created_at)},
        "after": {"object_id": after.pk, "name": after.name, "ctime": moment(after.created_at)},
        **compare(_known(before), _known(after)),
    }


def _known(image: Image) -> dict[str, Any]:
    seen = ImageContents.objects.filter(image=image).first() if image.is_read else None
    if seen is None:
        raise Problem(
            "contents_pending",
            f"Image {image} has not been looked into yet.",
            "Ask again in a second; if that does not help, see whether the node's worker runs.",
        )
    if seen.error:
        raise Problem(
            "contents_unreadable",
            f"Image {image} cannot be looked into: {seen.error}.",
            f"Verify it (mhctl image verify {image}).",
        )
    return dict(seen.data)


def request_environment(image: Image, *, actor: Actor, source: str) -> Job:
    """Ask the worker for the values of the environment in an image; `environment` tells them afterwards.

    They are often passwords: only for who may start the service, and asking is on the record.
    """
    require_operator(actor)
    spec = (image.manifest or {}).get("spec") or {}
    require_account(actor, str(spec.get("user", "")), str(spec.get("group", "")))
    return operations.request(
        JobKind.READ_ENVIRONMENT, image, actor=actor, source=source, clash={JobKind.DELETE_IMAGE}
    )


def record_environment(job: Job, data: dict[str, Any]) -> None:
    """Write the environment that a job has read."""
    seen = {"image_id": job.image_id, "read_at": timezone.now(), "data": data}
    ImageEnvironment.objects.update_or_create(job=job, defaults=seen)


def environment(image: Image, job: Job, actor: Actor) -> dict[str, Any]:
    """Return what a job of `request_environment` has read, to the one who asked for it.

    Raises Problem environment_forgotten when that was some minutes ago, or somebody else.
    """
    require_operator(actor)
    seen = ImageEnvironment.objects.filter(job=job, image=image, job__requested_by=name_of(actor)).first()
    if seen is None or seen.read_at < timezone.now() - ENVIRONMENT_KEPT:
        if job.image_id != image.pk:
            raise not_found("job", job.pk)
        raise Problem(
            "environment_forgotten",
            "The environment is shown to the one who asked for it, for some minutes."
            if job.status == JobState.SUCCEEDED
            else f"The job that reads the environment is {job.status}.",
            "Ask for it again.",
            http_status=404,
        )
    return dict(seen.data)


def forget_environments() -> int:
    """Delete the environments that were read some minutes ago. Returns how many."""
    old = ImageEnvironment.objects.filter(read_at__lt=timezone.now() - ENVIRONMENT_KEPT)
    return old.delete()[0]
