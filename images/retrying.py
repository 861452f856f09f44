"""Asks once more for what a job did not bring about, by the same operation as the first time."""

from collections.abc import Callable
from typing import Any

from django.db import transaction

from images import contents, operations
from images.models import Image
from services import inspection
from services import operations as service_operations
from services.actors import Actor, require_operator
from services.models import Job, Service
from services.problems import Problem, bad_input
from services.references import not_found
from services.states import JobKind, JobState

_OF_SERVICES: dict[JobKind, Callable[..., Job]] = {
    JobKind.START: service_operations.request_start,
    JobKind.STOP: service_operations.request_stop,
    JobKind.RESTART: service_operations.request_restart,
    JobKind.DUMP: service_operations.request_dump,
    JobKind.DELETE_SERVICE: service_operations.request_delete_service,
}
_OF_IMAGES: dict[JobKind, Callable[..., Job]] = {
    JobKind.RESTORE: operations.request_restore,
    JobKind.VERIFY_IMAGE: operations.request_verify,
    JobKind.DELETE_IMAGE: operations.request_delete,
    JobKind.READ_ENVIRONMENT: contents.request_environment,
}
_ENDED_BADLY = {JobState.FAILED, JobState.ERRORED, JobState.LOST, JobState.CANCELLED}


def may_retry(job: Job) -> bool:
    """Tell whether a job has ended without success and is of a kind that can be asked for again."""
    again = {JobKind.CHECK, JobKind.CHECK_SERVICE, *_OF_SERVICES, *_OF_IMAGES}
    return job.state in _ENDED_BADLY and job.kind in again


def request_retry(job: Job, *, actor: Actor, source: str, options: dict[str, Any] | None = None) -> Job:
    """Ask again for what a job was asked for; the new one names it (`retry_of`).

    options: besides those of the job, or instead of them; for example those of one of its error's actions.
    Raises Problem not_retryable, bad_input, and whatever the operation itself raises.
    """
    require_operator(actor)
    if job.state not in _ENDED_BADLY:
        raise Problem(
            "not_retryable",
            f"Job {job.pk} is {job.status}; only one that has failed can be tried again.",
            "Wait for its end." if job.is_active else "Ask for a new job.",
            details={"status": job.status},
        )
    if not may_retry(job):
        raise _no_such_retry(job)
    kind = JobKind(job.kind)
    asked = {**job.options, **(options or {})}
    with transaction.atomic():
        again = _ask(kind, job, asked, actor=actor, source=source)
        again.retry_of = job.pk
        again.save(update_fields=["retry_of"])
    return again


def _ask(kind: JobKind, job: Job, options: dict[str, Any], **who: Any) -> Job:
    try:
        if kind in _OF_SERVICES or kind is JobKind.CHECK_SERVICE:
            service = Service.objects.select_related("node").filter(pk=job.service_ref).first()
            if service is None:
                raise not_found("service", job.service_ref)
            if kind is JobKind.CHECK_SERVICE:
                return inspection.request_check_service(service, options=options, **who)
            return _OF_SERVICES[kind](service, **options, **who)
        if kind in _OF_IMAGES:
            image = Image.objects.for_display().filter(pk=job.image_id).first()
            if image is None:
                raise not_found("image", job.image_id)
            return _OF_IMAGES[kind](image, **options, **who)
        if kind is JobKind.CHECK:
            return service_operations.request_check(job.node, **options, **who)
    except TypeError:
        # An operation without such a parameter.
        raise bad_input(
            f"A job of the kind {kind} does not take {', '.join(options) or 'options'}.",
            "See /api/v1/docs for its options.",
            field="options",
        ) from None
    raise _no_such_retry(job)


def _no_such_retry(job: Job) -> Problem:
    return Problem(
        "not_retryable",
        f"A job of the kind {job.kind} cannot be tried again by itself.",
        "Ask for a new one.",
        details={"kind": job.kind},
    )
