"""Asks once more for what a job did not bring about, by the same operation as the first time."""

from collections.abc import Callable
from inspect import signature
from typing import Any, TypeVar

from django.db import transaction
from django.db.models import Model, QuerySet

from images import contents, operations
from images.models import Image
from services import inspection
from services import operations as service_operations
from services.actors import Actor, require_operator
from services.models import Job, Node, Service
from services.problems import Problem, bad_input
from services.references import not_found
from services.states import JobKind, JobState

Row = TypeVar("Row", bound=Model)
Asked = TypeVar("Asked")


def _request_check_service(service: Service, *, actor: Actor, source: str, **options: Any) -> Job:
    return inspection.request_check_service(service, actor=actor, source=source, options=options)


_OF_SERVICES: dict[JobKind, Callable[..., Job]] = {
    JobKind.START: service_operations.request_start,
    JobKind.STOP: service_operations.request_stop,
    JobKind.RESTART: service_operations.request_restart,
    JobKind.DUMP: service_operations.request_dump,
    JobKind.DELETE_SERVICE: service_operations.request_delete_service,
    JobKind.CHECK_SERVICE: _request_check_service,
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
    return job.state in _ENDED_BADLY and job.kind in {JobKind.CHECK, *_OF_SERVICES, *_OF_IMAGES}


def works_on(job: Job, service: Service | None, image: Image | None) -> Service | Image | Node | None:
    """Return what a job that may be retried works on: of the two that it names the one, or its node.

    service, image: their rows, None for one that is gone, and then so is what is returned.
    """
    if job.kind in _OF_IMAGES:
        return image
    return service if job.kind in _OF_SERVICES else job.node


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
        raise Problem(
            "not_retryable",
            f"A job of the kind {job.kind} cannot be tried again by itself.",
            "Ask for a new one.",
            details={"kind": job.kind},
        )
    kind = JobKind(job.kind)
    asked = {**job.options, **(options or {})}
    with transaction.atomic():
        return _named(_ask(kind, job, asked, actor=actor, source=source), job)


def asked_after(pk: str, ask: Callable[[], Asked]) -> Asked:
    """Ask by `ask` for what the remedy of another job led to; a job that tries that one again names it.

    pk: the other job's, "" for none. It is not named when it did not end badly, or was of
    another kind, or about something else: then what is asked for now is no second try.
    """
    with transaction.atomic():
        done = ask()
        before = Job.objects.filter(pk=pk).first() if isinstance(done, Job) else None
        if isinstance(done, Job) and before is not None and _tries_again(done, before):
            _named(done, before)
        return done


def _tries_again(again: Job, before: Job) -> bool:
    same = (again.kind, again.service_ref) == (before.kind, before.service_ref)
    # A dump makes an image of its own each time.
    return same and may_retry(before) and (again.kind not in _OF_IMAGES or again.image_id == before.image_id)


def _named(again: Job, before: Job) -> Job:
    again.retry_of = before.pk
    again.save(update_fields=["retry_of"])
    return again


def _ask(kind: JobKind, job: Job, options: dict[str, Any], **who: Any) -> Job:
    about: Service | Image | Node
    if kind in _OF_IMAGES:
        operation = _OF_IMAGES[kind]
        about = _found(Image.objects.for_display(), "image", job.image_id)
    elif kind is JobKind.CHECK:
        operation, about = service_operations.request_check, job.node
    else:
        operation = _OF_SERVICES[kind]
        about = _found(Service.objects.select_related("node"), "service", job.service_ref)
    try:
        signature(operation).bind(about, **options, **who)
    except TypeError:
        raise bad_input(
            f"A job of the kind {kind} does not take {', '.join(options) or 'options'}.",
            "See /api/v1/docs for its options.",
            field="options",
        ) from None
    return operation(about, **options, **who)


def _found(rows: QuerySet[Row], noun: str, key: str) -> Row:
    row = rows.filter(pk=key).first()
    if row is None:
        raise not_found(noun, key)
    return row
