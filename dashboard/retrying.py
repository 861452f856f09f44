"""Asks again for what a job was asked for. It knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from images import operations as image_operations
from images.models import Image
from services import criu_options, inspection, operations
from services.actors import Actor, require_operator
from services.lookup import find_service
from services.models import Job
from services.problems import Problem, bad_input
from services.states import ENDED_JOB, JobKind, JobState

_OF_SERVICES: Mapping[JobKind, Callable[..., Job]] = {
    JobKind.START: operations.request_start,
    JobKind.STOP: operations.request_stop,
    JobKind.RESTART: operations.request_restart,
    JobKind.DUMP: operations.request_dump,
    JobKind.DELETE_SERVICE: operations.request_delete_service,
    JobKind.CHECK_SERVICE: inspection.request_check_service,
}
_OF_IMAGES: Mapping[JobKind, Callable[..., Job]] = {
    JobKind.RESTORE: image_operations.request_restore,
    JobKind.VERIFY_IMAGE: image_operations.request_verify,
    JobKind.DELETE_IMAGE: image_operations.request_delete,
}
# What a remedy may change, and how a form spells it.
_FLAGS = ("tcp_close", "tcp_skip_in_flight", "accept_changed_files")


def may_retry(job: Job) -> bool:
    """Tell whether a job has ended without success and is of a kind that can be asked for again."""
    kind = JobKind(job.kind)
    return (
        job.state in ENDED_JOB
        and job.state is not JobState.SUCCEEDED
        and (kind in _OF_SERVICES or kind in _OF_IMAGES or kind is JobKind.CHECK)
    )


def retry(job: Job, given: Mapping[str, Any], *, actor: Actor, source: str) -> Job:
    """Ask for the same again.

    given: flags of a remedy that are set for this time ("on"). Raises Problem as the operation does, and
    not_retryable for a job that succeeded, goes on, or cannot be repeated.
    """
    require_operator(actor)
    if not may_retry(job):
        raise Problem(
            "not_retryable",
            f"Job {job.pk} is {job.status}; it cannot be asked for again.",
            "Ask on the page of its service or image.",
        )
    kind = JobKind(job.kind)
    options = dict(job.options) | {name: True for name in _FLAGS if given.get(name) == "on"}
    if str(given.get("ghost_limit", "")).isdigit():
        options["ghost_limit"] = int(given["ghost_limit"])
    who: dict[str, Any] = {"actor": actor, "source": source}
    if kind is JobKind.CHECK:
        return operations.request_check(job.node, **who)
    if kind in _OF_IMAGES:
        image = Image.objects.for_display().by_reference(job.image_id)
        return _OF_IMAGES[kind](image, **who, **options)
    service = find_service(job.service_ref)
    if kind is JobKind.CHECK_SERVICE:
        return inspection.request_check_service(service, options=options, **who)
    if unknown := [name for name in options if name in _FLAGS and not _takes(kind, name)]:
        raise bad_input(f"A {kind} has no option {unknown[0]}.", "Leave it out.", field=unknown[0])
    return _OF_SERVICES[kind](service, **who, **options)


def _takes(kind: JobKind, name: str) -> bool:
    option = criu_options.OPTIONS.get(name)
    return option is not None and kind in option.kinds
