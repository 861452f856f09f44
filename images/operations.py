"""Every way to ask for a change of an image, and what the worker writes about one. It reads no files."""

from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from images import origins
from images.models import Image, ImageState
from services import criu_options, validation
from services.actors import Actor, require_account, require_admin, require_operator
from services.auditing import record_audit
from services.models import Job, Node, Service
from services.operations import name_taken, new_job, observe, require_state
from services.problems import Problem
from services.references import not_found
from services.states import JobKind, ServiceState


def request_restore(image: Image, *, actor: Actor, source: str, **options: Any) -> Job:
    """Ask to bring the service of an image back to where it was, also one that was deleted since.

    options: accept_changed_files (also if files on the disk are not what its memory believes; else the job
    fails then) and tcp_close, see services/criu_options.py.
    One that was imported is for those who have the right (images.restore_foreign).
    Raises Problem service_running, job_active, image_in_use, service_differs, service_not_found (deleted, and
    the image's row doesn't say what it was).
    """
    return _restore(image, options, actor=actor, source=source)


def request_restore_of(service: Service, *, actor: Actor, source: str, **options: Any) -> Job:
    """Ask to bring a dumped service back from the image that it is.

    options: those of `request_restore`. Raises Problem service_not_dumped, and what that raises.
    """
    require_operator(actor)
    image = Image.objects.filter(pk=service.image_id).first()
    if image is None:
        raise _not_dumped(service)
    return _restore(image, options, actor=actor, source=source, is_service=True)


def _not_dumped(service: Service) -> Problem:
    return Problem(
        "service_not_dumped",
        f"Service {service} is {service.status}, so it is no image that could be restored.",
        "Name an image of it (--from IMAGE; mhctl image list shows them); end the service first if it runs.",
        details={"service": service.pk, "status": service.status},
    )


def bring_back(image: Image, why: str) -> Job:
    """Ask for a restore because the node was started anew, as the agent; `why` is the job's first event.

    Raises Problem as `request_restore` does.
    """
    return _restore(image, {}, actor="agent", source="agent", why=why)


def _restore(
    image: Image,
    options: dict[str, Any],
    *,
    actor: Actor,
    source: str,
    why: str = "",
    is_service: bool = False,
) -> Job:
    # is_service: only if the image is what the service, a dumped one, is at this moment.
    asked = criu_options.checked(JobKind.RESTORE, {"accept_changed_files": False, **options})
    require_operator(actor)
    with transaction.atomic():
        # The service before its images, as its deletion has them.
        service = Service.objects.select_for_update().filter(pk=image.service_ref).first()
        current = _locked(image)
        _require_unused(current, {JobKind.DELETE_IMAGE})
        origins.require_trusted(current, actor)
        if service is None:
            service = origins.service_again(current, actor)
            adopt_images(service)
        origins.require_same(current, service)
        require_account(actor, service.user, service.group)
        active = Job.objects.active().filter(service=service).exists()
        if not active:  # with an active job, that job is the better answer: new_job names it
            if is_service and (service.state is not ServiceState.DUMPED or service.image_id != current.pk):
                raise _not_dumped(service)
            require_state(service, JobKind.RESTORE)
        return new_job(
            JobKind.RESTORE,
            node=current.node,
            service=service,
            image_id=current.pk,
            options=asked,
            why=why,
            actor=actor,
            source=source,
        )


def request_verify(image: Image, *, actor: Actor, source: str) -> Job:
    """Ask to compare an image's files with its manifest."""
    return request(JobKind.VERIFY_IMAGE, image, actor=actor, source=source, clash={JobKind.DELETE_IMAGE})


def request_delete(image: Image, *, actor: Actor, source: str, force: bool = False, why: str = "") -> Job:
    """Ask to delete an image's files and its row.

    force: also if the image is all there is of a dumped service. why: what the job's first event says.
    Raises Problem image_in_use while a job uses it, image_is_service without `force`.
    """
    require_admin(actor, "delete an image")
    force = validation.flag(force, "force")
    service = Service.objects.filter(pk=image.service_ref, status=ServiceState.DUMPED).first()
    if service is not None and service.image_id == image.pk and not force:
        raise Problem(
            "image_is_service",
            f"Service {service} is dumped, and this image is all there is of it.",
            "Restore the service first, or say that it may be lost (the option force).",
            details={"service": service.pk},
        )
    return request(JobKind.DELETE_IMAGE, image, actor=actor, source=source, clash=set(JobKind), why=why)


def rename(image: Image, name: str, actor: Actor, source: str = "") -> Image:
    """Give an image another name, or none with "". Raises Problem name_taken, bad_input."""
    require_operator(actor)
    name = validation.name(name)
    try:
        with transaction.atomic():
            renamed = Image.objects.filter(pk=image.pk).update(name=name)
            record_audit(
                actor, source, "rename", target_kind="image", target_id=image.pk, detail={"name": name}
            )
    except IntegrityError as taken:
        raise name_taken("image", name) from taken
    if not renamed:
        raise not_found("image", image.pk)
    image.name = name
    return image


def record(
    *,
    image_id: str,
    service_id: str,
    node: Node,
    comm: str,
    path: str,
    size_bytes: int,
    pages_bytes: int,
    created_at: datetime,
    leave_running: bool,
    criu_version: str,
    kernel: str,
    argv: list[str],
    statistics: dict[str, Any],
    manifest: dict[str, Any],
) -> Image:
    """Write the row of a sealed image, or write it again (a rescan).

    path: the image's folder. size_bytes: of all its files. pages_bytes: of the memory pages among them.
    """
    service = Service.objects.filter(pk=service_id).first()
    image, _made = Image.objects.update_or_create(
        pk=image_id,
        defaults={
            "service": service,
            "service_ref": service_id,
            "node": node,
            "comm": comm,
            "path": path,
            "size_bytes": size_bytes,
            "pages_bytes": pages_bytes,
            "created_at": created_at,
            "leave_running": leave_running,
            "criu_version": criu_version,
            "kernel": kernel,
            "argv": argv,
            "is_read": False,
            "statistics": statistics,
            "manifest": manifest,
        },
    )
    return image


def forget(image_id: str) -> None:
    """Delete the row of an image whose files are gone; a service that was nothing else has ended by that."""
    with transaction.atomic():
        pointing = Service.objects.filter(image_id=image_id)
        found = pointing.select_for_update().order_by("pk").values_list("pk", "status")
        ended = [service_id for service_id, status in found if status == ServiceState.DUMPED]
        # Who reads what is in it may be about to write that, and a row that others refer to cannot go.
        Image.objects.select_for_update().filter(pk=image_id).first()
        Image.objects.filter(pk=image_id).delete()
        pointing.update(image_id="")
        for service_id in ended:
            observe(
                service_id,
                state=ServiceState.EXITED,
                pid=None,
                supervisor_pid=None,
                exit_code=None,
                exit_signal=None,
                reason="It was dumped, and its image is no longer in the pool.",
            )


def point(service_id: str, image_id: str) -> None:
    """Say which image a dumped service is, if its row doesn't."""
    Service.objects.filter(pk=service_id, status=ServiceState.DUMPED, image_id="").update(image_id=image_id)


def mark_verified(image_id: str, damaged: list[str]) -> None:
    """Write the outcome of a verification. damaged: one line a fault, [] when all is well."""
    status = ImageState.DAMAGED if damaged else ImageState.SEALED
    Image.objects.filter(pk=image_id).update(status=status, damage=damaged, verified_at=timezone.now())


def request(
    kind: JobKind,
    image: Image,
    *,
    actor: Actor,
    source: str,
    clash: set[JobKind],
    options: dict[str, Any] | None = None,
    why: str = "",
) -> Job:
    """Ask for a job on an image and no service. clash: kinds of jobs that must not work on it meanwhile."""
    require_operator(actor)
    with transaction.atomic():
        current = _locked(image)
        _require_unused(current, clash)
        return new_job(
            kind,
            node=current.node,
            image_id=current.pk,
            service_ref=current.service_ref,
            options=options,
            why=why,
            name=current.name if kind is JobKind.DELETE_IMAGE else "",
            actor=actor,
            source=source,
        )


def adopt_images(service: Service) -> None:
    """Give a service whose row was made again the images that it had."""
    Image.objects.filter(service_ref=service.pk, service=None).update(service=service)


def _locked(image: Image) -> Image:
    rows = Image.objects.select_for_update(of=("self",)).select_related("node")
    current = rows.filter(pk=image.pk).first()
    if current is None:
        raise not_found("image", image.pk)
    return current


def _require_unused(image: Image, kinds: set[JobKind]) -> None:
    """Raise image_in_use while an active job of one of `kinds` works on the image."""
    job = Job.objects.active().filter(image_id=image.pk, kind__in=kinds).first()
    if job:
        raise Problem(
            "image_in_use",
            f"Image {image} is used by an active job: {job.kind} {job.pk} ({job.status}).",
            f"Wait for it (mhctl job wait {job.pk}).",
            details={"job": job.pk, "kind": job.kind},
        )
