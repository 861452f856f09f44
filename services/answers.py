"""Answers of the API that services and images share: a job, waited for or not. It knows no operation."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from ninja.params.functions import Query

from services import waiting
from services.authentication import bearer_token
from services.models import Job
from services.presenting import job_object
from services.schemas import ErrorAnswer, JobAnswer

NDJSON = "application/x-ndjson"
JOB_RESPONSES: dict[Any, Any] = {200: JobAnswer, 202: JobAnswer, (404, 409, 422): ErrorAnswer}


def wait_parameter() -> Any:
    """The query parameter ?wait=SECONDS of every call that answers with a job."""
    return Query(0, ge=0, le=waiting.LONGEST, description="seconds to hold the answer until the job ended")


def source_of(request: HttpRequest) -> str:
    """Return where a request comes from: mhctl, another program (api), or a page (web)."""
    if not bearer_token(request):
        return "web"
    return "mhctl" if request.headers.get("User-Agent", "").startswith("mhctl") else "api"


async def job_answer(request: HttpRequest, job: Job, wait: float) -> HttpResponseBase:
    """Return a job just made or asked for: 200 when it has ended, 202 when not, as a stream if asked so."""
    location = request.build_absolute_uri(f"/api/v1/jobs/{job.pk}")
    response: HttpResponseBase
    if wait and NDJSON in request.headers.get("Accept", ""):
        response = StreamingHttpResponse(_ndjson(job, wait), content_type=NDJSON)
        response["Cache-Control"] = "no-store"
        response["X-Accel-Buffering"] = "no"
    else:
        if wait and job.is_active:
            job = await waiting.ended(job, wait)
        response = JsonResponse(job_object(job), status=202 if job.is_active else 200)
    response["Location"] = location
    return response


async def _ndjson(job: Job, wait: float) -> AsyncIterator[bytes]:
    async with aclosing(waiting.lines(job, wait)) as lines:
        async for line in lines:
            yield (json.dumps(line) if line is not None else "").encode() + b"\n"
