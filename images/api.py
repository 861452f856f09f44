"""The API's calls about images: fetch, call one operation, answer."""

# ruff: noqa: ARG001 (Django and ninja fix the arguments)

from collections.abc import Callable
from functools import partial
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from ninja import Router, Schema
from pydantic import Field

from images import archives, operations, retrying
from images.models import Image
from images.presenting import image_object
from services.answers import JOB_RESPONSES, job_answer, source_of, wait_parameter
from services.authentication import caller
from services.lookup import find_job, find_service
from services.models import Job, Node
from services.schemas import ErrorAnswer, Input, Nothing, Rename
from services.threads import in_thread

router = Router(tags=["images"])


class ImageAnswer(Schema):
    """page_size and size in bytes: memory pages, and all files. damage: what a verification found.

    origin: for an imported image, by whom, when and from where it came.
    """

    object_id: str
    name: str
    service: str | None
    service_name: str
    node: str
    comm: str
    page_size: int
    size: int
    ctime: str
    leave_running: bool
    carried: list[str]
    status: str
    damage: list[str]
    verified: str | None
    path: str
    criu_version: str
    kernel: str
    args: list[str]
    statistics: dict[str, Any]
    origin: dict[str, Any] | None


class ExportOptions(Input):
    """file: its name in the folder of archives, "" for the image's id. recipients: age's; gpg_recipients:
    GnuPG's; nobody for an archive that is not encrypted.
    """

    file: str = ""
    recipients: list[str] = Field(default_factory=list)
    gpg_recipients: list[str] = Field(default_factory=list)


class ImportOptions(Input):
    """file: an archive's name in the folder of archives. identity: that of age's secret key, or ""."""

    file: str
    identity: str = ""


class ArchivesAnswer(Schema):
    """folder: where archives lie on this node; only its root may enter it."""

    folder: str


class RestoreOptions(Input):
    """accept_changed_files: also if files on the disk are not what the memory in the image believes.
    tcp_close: drop the image's open TCP connections instead of taking them up.
    """

    accept_changed_files: bool = False
    tcp_close: bool = False


class RetryOptions(Input):
    """options: those of the new job besides the old one's; what may stand in it depends on the job's kind."""

    options: dict[str, Any] = Field(default_factory=dict)


RESPONSES: dict[Any, Any] = {200: ImageAnswer, (404, 409, 422): ErrorAnswer}


@router.get("/images", response={200: list[ImageAnswer]})
async def list_images(request: HttpRequest) -> HttpResponse:
    """List images, the oldest first."""
    rows = await in_thread(lambda: [image_object(image) for image in Image.objects.for_display()])
    return JsonResponse(rows, safe=False)


@router.get("/images/{reference}", response=RESPONSES)
async def show_image(request: HttpRequest, reference: str) -> HttpResponse:
    """Show an image, named by id, name, or unique beginning of the id."""
    return JsonResponse(await in_thread(lambda: image_object(_find(reference))))


@router.patch("/images/{reference}", response=RESPONSES)
async def rename_image(request: HttpRequest, reference: str, body: Rename) -> HttpResponse:
    """Give an image another name."""

    def change() -> dict[str, Any]:
        return image_object(
            operations.rename(_find(reference), body.name, caller(request), source_of(request))
        )

    return JsonResponse(await in_thread(change))


@router.delete("/images/{reference}", response=JOB_RESPONSES)
async def delete_image(
    request: HttpRequest, reference: str, force: bool = False, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Delete an image with its files. One that is all there is of a dumped service wants ?force=1."""
    return await _job(request, partial(operations.request_delete, force=force), reference, wait)


@router.post("/images/{reference}/restore", response=JOB_RESPONSES)
async def restore_image(
    request: HttpRequest, reference: str, body: RestoreOptions | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Bring the image's service back to where it was when it was dumped.

    The job fails with the code files_changed when files on the disk have moved on since.
    """
    options = body.dict(exclude_unset=True) if body else {}
    return await _job(request, partial(operations.request_restore, **options), reference, wait)


@router.post("/services/{reference}/restore", response=JOB_RESPONSES, tags=["services"])
async def restore_service(
    request: HttpRequest, reference: str, body: RestoreOptions | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Bring a dumped service back from the image that it is; any other is refused (service_not_dumped)."""
    options = body.dict(exclude_unset=True) if body else {}
    actor, source = caller(request), source_of(request)

    def ask() -> Job:
        return operations.request_restore_of(find_service(reference), actor=actor, source=source, **options)

    return await job_answer(request, await in_thread(ask), wait)


@router.post("/jobs/{reference}/retry", response=JOB_RESPONSES, tags=["jobs"])
async def retry_job(
    request: HttpRequest, reference: str, body: RetryOptions | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Ask again for what a job failed to do; with options of one of its error's actions, or others."""
    actor, source = caller(request), source_of(request)
    options = body.options if body else {}
    job = await in_thread(
        lambda: retrying.request_retry(find_job(reference), actor=actor, source=source, options=options)
    )
    return await job_answer(request, job, wait)


@router.post("/images/{reference}/verify", response=JOB_RESPONSES)
async def verify_image(
    request: HttpRequest, reference: str, body: Nothing | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Compare an image's files with its manifest."""
    return await _job(request, operations.request_verify, reference, wait)


@router.post("/images/{reference}/export", response=JOB_RESPONSES)
async def export_image(
    request: HttpRequest, reference: str, body: ExportOptions | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Write an archive of an image into the node's folder of archives; it is never served from here."""
    options = (body or ExportOptions()).dict()
    return await _job(request, partial(archives.request_export, **options), reference, wait)


@router.post("/images", response=JOB_RESPONSES)
async def import_image(
    request: HttpRequest, body: ImportOptions, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Make an image of an archive that root has put into the node's folder of archives."""
    actor, source = caller(request), source_of(request)

    def ask() -> Job:
        node = Node.objects.local()
        return archives.request_import(node=node, actor=actor, source=source, **body.dict())

    return await job_answer(request, await in_thread(ask), wait)


@router.get("/archives", response=ArchivesAnswer)
async def show_archives(request: HttpRequest) -> HttpResponse:
    """Tell where archives lie on this node."""
    return JsonResponse({"folder": archives.folder()})


def _find(reference: str) -> Image:
    return Image.objects.for_display().by_reference(reference)


async def _job(
    request: HttpRequest, operation: Callable[..., Job], reference: str, wait: float
) -> HttpResponseBase:
    """Find the image, ask for the job, answer with it."""
    actor, source = caller(request), source_of(request)
    job = await in_thread(lambda: operation(_find(reference), actor=actor, source=source))
    return await job_answer(request, job, wait)
