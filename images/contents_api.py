"""The API's calls about what is in an image: fetch, call one operation, answer."""

# ruff: noqa: ARG001 (Django and ninja fix the arguments)

from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from ninja import Router, Schema

from images import contents
from images.models import Image
from services.answers import JOB_RESPONSES, job_answer, source_of, wait_parameter
from services.authentication import caller
from services.lookup import find_job
from services.models import Job
from services.schemas import ErrorAnswer, Nothing
from services.threads import in_thread

router = Router(tags=["images"])
ERRORS: dict[Any, Any] = {(404, 409, 422): ErrorAnswer}


class ContentsAnswer(Schema):
    """state: pending (the worker has not looked yet), read, or unreadable (error says why).

    contents: processes, files, sockets, memory and mappings (bytes mapped, and stored in the image), names of
    the environment, counts. restores: the jobs that restored it.
    """

    object_id: str
    state: str
    error: str
    read: str | None
    contents: dict[str, Any] | None
    restores: list[dict[str, Any]]


class ComparisonAnswer(Schema):
    """What changed from `before` to `after`: came and went, and bytes by kind and by mapping."""

    same: bool
    before: dict[str, Any]
    after: dict[str, Any]
    processes: dict[str, Any]
    files: dict[str, Any]
    sockets: dict[str, Any]
    memory: dict[str, Any]
    mappings: list[dict[str, Any]]
    environment: dict[str, list[str]]


@router.get("/images/{reference}/contents", response={200: ContentsAnswer, **ERRORS})
async def image_contents(request: HttpRequest, reference: str) -> HttpResponse:
    """Show what is in an image: processes, open files, sockets, memory by kind."""
    return JsonResponse(await in_thread(lambda: contents.contents_object(_find(reference))))


@router.get("/images/{reference}/compare/{other}", response={200: ComparisonAnswer, **ERRORS})
async def compare_images(request: HttpRequest, reference: str, other: str) -> HttpResponse:
    """Say what changed from one image of a service to another."""
    return JsonResponse(await in_thread(lambda: contents.comparison(_find(reference), _find(other))))


@router.post("/images/{reference}/environment", response=JOB_RESPONSES)
async def ask_for_environment(
    request: HttpRequest, reference: str, body: Nothing | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Ask for the values of the environment in an image; they are often passwords, so it is recorded."""

    def ask() -> Job:
        return contents.request_environment(
            _find(reference), actor=caller(request), source=source_of(request)
        )

    return await job_answer(request, await in_thread(ask), wait)


@router.get("/images/{reference}/environment/{job}", response={200: dict[str, dict[str, str]], **ERRORS})
async def image_environment(request: HttpRequest, reference: str, job: str) -> HttpResponse:
    """Show what such a job has read, to the one who asked, for some minutes."""

    def read() -> dict[str, Any]:
        return contents.environment(_find(reference), find_job(job), caller(request))

    response = JsonResponse(await in_thread(read))
    response["Cache-Control"] = "no-store"
    return response


def _find(reference: str) -> Image:
    return Image.objects.for_display().by_reference(reference)
