"""The API's calls about services, jobs and nodes: fetch, call one operation, answer. It knows no images."""

# ruff: noqa: ARG001 (Django and ninja fix the arguments)

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from ninja import Router
from ninja.params.functions import Query

from services import inspection, loads, logs, operations, presently, waiting
from services.answers import JOB_RESPONSES, job_answer, source_of, wait_parameter
from services.auditing import SOURCES
from services.authentication import Hearing, caller
from services.lookup import find_job, find_service
from services.models import Job, Node, Service
from services.presenting import job_object, log_object, node_object, service_object
from services.problems import bad_input
from services.schemas import (
    Change,
    CheckedCommand,
    DumpOptions,
    ErrorAnswer,
    JobAnswer,
    LoadAnswer,
    LogAnswer,
    NewService,
    NodeAnswer,
    Nothing,
    NowAnswer,
    SamplesAnswer,
    ServiceAnswer,
    StopOptions,
)
from services.states import JobKind, JobState
from services.threads import in_thread

router = Router()

ERRORS: dict[Any, Any] = {(404, 409, 422): ErrorAnswer}
MOST_LINES = 100_000


@router.get("/services", response={200: list[ServiceAnswer]}, tags=["services"])
async def list_services(
    request: HttpRequest,
    every: bool = Query(False, alias="all", description="also those without a process"),
) -> HttpResponse:
    """List services, by default only those that have a process."""

    def read() -> list[dict[str, Any]]:
        rows = Service.objects.for_display() if every else Service.objects.with_process().for_display()
        return [service_object(service) for service in rows]

    return JsonResponse(await in_thread(read), safe=False)


@router.post("/services", response=JOB_RESPONSES, tags=["services"])
async def create_service(
    request: HttpRequest, body: NewService, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Make a service and start it; the answer is the job of its start."""

    def ask() -> Job:
        return operations.request_create(
            node=Node.objects.local(),
            argv=body.args,
            user=body.user,
            group=body.group,
            cwd=body.cwd,
            env=body.env,
            name=body.name,
            binds=body.binds,
            data=body.data,
            carry=body.carry,
            privileges=body.privileges.dict(),
            limits=body.limits.dict(),
            restore_on_boot=body.restore_on_boot,
            **_who(request),
        )

    return await job_answer(request, await in_thread(ask), wait)


@router.get("/services/{reference}", response={200: ServiceAnswer, **ERRORS}, tags=["services"])
async def show_service(request: HttpRequest, reference: str, show_env: bool = False) -> HttpResponse:
    """Show a service, named by id, name, unique beginning of the id, or pid:NNN.

    With ?show_env=1 also the values of its environment: for operators, and it is put on the record.
    """

    def read() -> dict[str, Any]:
        service = find_service(reference, shown=True)
        env = operations.show_env(service, **_who(request)) if show_env else None
        return service_object(service, env)

    return JsonResponse(await in_thread(read))


@router.patch("/services/{reference}", response={200: ServiceAnswer, **ERRORS}, tags=["services"])
async def change_service(request: HttpRequest, reference: str, body: Change) -> HttpResponse:
    """Give a service another name, or say whether it comes back when its node is started anew."""
    if body.name is None and body.restore_on_boot is None:
        raise bad_input("Nothing is to be changed.", "Send name or restore_on_boot.")

    def change() -> dict[str, Any]:
        service = find_service(reference, shown=True)
        return service_object(operations.change(service, **body.dict(), **_who(request)))

    return JsonResponse(await in_thread(change))


@router.delete("/services/{reference}", response=JOB_RESPONSES, tags=["services"])
async def delete_service(
    request: HttpRequest, reference: str, stop: bool = False, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Forget a service; its images stay. A running one must be stopped first, or with ?stop=1."""
    return await _job(request, operations.request_delete_service, reference, wait, stop=stop)


@router.post("/services/{reference}/start", response=JOB_RESPONSES, tags=["services"])
async def start_service(
    request: HttpRequest, reference: str, body: Nothing | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Start a service that has no process, from the beginning."""
    return await _job(request, operations.request_start, reference, wait)


@router.post("/services/{reference}/stop", response=JOB_RESPONSES, tags=["services"])
async def stop_service(
    request: HttpRequest, reference: str, body: StopOptions | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Stop a running service."""
    grace = body.grace if body else None
    return await _job(request, operations.request_stop, reference, wait, grace=grace)


@router.post("/services/{reference}/restart", response=JOB_RESPONSES, tags=["services"])
async def restart_service(
    request: HttpRequest, reference: str, body: StopOptions | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Stop a service, if it runs, and start it from the beginning."""
    grace = body.grace if body else None
    return await _job(request, operations.request_restart, reference, wait, grace=grace)


@router.post("/services/{reference}/dump", response=JOB_RESPONSES, tags=["services"])
async def dump_service(
    request: HttpRequest, reference: str, body: DumpOptions | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Dump a running service into an image."""
    options = body.dict(exclude_unset=True) if body else {}
    return await _job(request, operations.request_dump, reference, wait, **options)


@router.post("/services/{reference}/check", response=JOB_RESPONSES, tags=["services"])
async def check_service(
    request: HttpRequest, reference: str, body: DumpOptions | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Ask whether a running service could be dumped now, with these options; nothing is frozen."""
    options = body.dict(exclude_unset=True) if body else {}
    return await _job(request, inspection.request_check_service, reference, wait, options=options)


@router.post("/check-command", response=JOB_RESPONSES, tags=["nodes"])
async def check_command(
    request: HttpRequest, body: CheckedCommand, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Ask this node whether a command could be started; the job's result says able, or why not."""

    def request_it() -> Job:
        return inspection.request_check_command(
            Node.objects.local(),
            argv=body.args,
            user=body.user,
            group=body.group,
            cwd=body.cwd,
            env=body.env,
            **_who(request),
        )

    return await job_answer(request, await in_thread(request_it), wait)


@router.get("/services/{reference}/now", response={200: NowAnswer, **ERRORS}, tags=["services"])
async def service_now(request: HttpRequest, reference: str) -> HttpResponse:
    """Show what a running service does now: processes with CPU and memory, sockets, open files."""
    service = await in_thread(lambda: find_service(reference))
    return JsonResponse({"object_id": service.pk, **await presently.now(service)})


@router.get("/services/{reference}/samples", response={200: SamplesAnswer, **ERRORS}, tags=["services"])
async def service_samples(request: HttpRequest, reference: str) -> HttpResponse:
    """Show how much CPU and memory a service used in the last hour, and where it listens."""
    return JsonResponse(await in_thread(lambda: loads.samples(find_service(reference))))


@router.get("/loads", response={200: dict[str, LoadAnswer]}, tags=["services"])
async def all_loads(request: HttpRequest) -> HttpResponse:
    """Show by id how much each running service uses, and where it listens."""
    return JsonResponse(await in_thread(loads.all_loads))


@router.get("/services/{reference}/logs", response={200: str, **ERRORS}, tags=["services"])
async def service_logs(
    request: HttpRequest,
    reference: str,
    lines: int = Query(100, ge=0, le=MOST_LINES),
    follow: bool = False,
) -> HttpResponseBase:
    """Give the last lines of a service's output as text; ?follow=1 goes on until the caller hangs up."""

    def read() -> tuple[str, bytes, int, int]:
        service = find_service(reference)
        return service.pk, *logs.tail(service.pk, lines)

    service_id, text, inode, offset = await in_thread(read)
    if not follow:
        return HttpResponse(text, content_type="text/plain; charset=utf-8")

    hearing = Hearing(request)

    async def stream() -> AsyncIterator[bytes]:
        # gunicorn holds back even the head until there is something to send with it.
        if text:
            yield text
        async with aclosing(logs.follow(inode, offset, logs.path_of(service_id))) as following:
            async for added in following:
                if await hearing.is_over(speaking=bool(added)):
                    return
                if added:
                    yield added

    response = StreamingHttpResponse(stream(), content_type="text/plain; charset=utf-8")
    response["Cache-Control"] = "no-store"
    return response


@router.get("/jobs", response={200: list[JobAnswer]}, tags=["jobs"])
async def list_jobs(
    request: HttpRequest,
    limit: int = Query(50, ge=1, le=1000),
    status: str = "",
    service: str = Query("", description="id, name or unique beginning of the id"),
    source: str = Query("", description="where it was asked for"),
    kind: str = Query("", description="what it does"),
) -> HttpResponse:
    """List the newest jobs, without their events."""
    if status and status not in set(JobState):
        raise bad_input(
            f"No job is ever {status[:80]!r}.", f"Use one of {', '.join(JobState)}.", field="status"
        )
    if source and source not in SOURCES:
        raise bad_input(
            f"No job is asked for from {source[:80]!r}.", f"Use one of {', '.join(SOURCES)}.", field="source"
        )
    if kind and kind not in set(JobKind):
        raise bad_input(f"No job is a {kind[:80]!r}.", f"Use one of {', '.join(JobKind)}.", field="kind")

    def read() -> list[dict[str, Any]]:
        jobs = Job.objects.for_display()
        if status:
            jobs = jobs.filter(status=status)
        if source:
            jobs = jobs.filter(source=source)
        if kind:
            jobs = jobs.filter(kind=kind)
        if service:
            jobs = jobs.filter(service_ref=find_service(service).pk)
        return [job_object(job) for job in jobs[:limit]]

    return JsonResponse(await in_thread(read), safe=False)


@router.get("/jobs/{reference}", response=JOB_RESPONSES, tags=["jobs"])
async def show_job(request: HttpRequest, reference: str, wait: float = wait_parameter()) -> HttpResponseBase:
    """Show a job; with ?wait it answers when the job has ended."""
    job = await in_thread(lambda: waiting.load(find_job(reference).pk))
    answer = await job_answer(request, job, wait)
    if not wait:
        answer.status_code = 200
    return answer


@router.post("/jobs/{reference}/cancel", response={200: JobAnswer, **ERRORS}, tags=["jobs"])
async def cancel_job(request: HttpRequest, reference: str, body: Nothing | None = None) -> HttpResponse:
    """Cancel a job that no worker has taken yet."""

    def change() -> dict[str, Any]:
        job = operations.cancel(find_job(reference), **_who(request))
        return job_object(waiting.load(job.pk))

    return JsonResponse(await in_thread(change))


@router.get("/jobs/{reference}/log", response={200: LogAnswer, **ERRORS}, tags=["jobs"])
async def job_log(request: HttpRequest, reference: str) -> HttpResponse:
    """Show the end of CRIU's log of a job that failed; without lines if it has none."""
    return JsonResponse(await in_thread(lambda: log_object(find_job(reference))))


@router.post("/check", response=JOB_RESPONSES, tags=["nodes"])
async def check(
    request: HttpRequest, body: Nothing | None = None, wait: float = wait_parameter()
) -> HttpResponseBase:
    """Ask this node whether it can dump and restore, and what is missing."""
    job = await in_thread(lambda: operations.request_check(Node.objects.local(), **_who(request)))
    return await job_answer(request, job, wait)


@router.get("/nodes", response={200: list[NodeAnswer]}, tags=["nodes"])
async def list_nodes(request: HttpRequest) -> HttpResponse:
    """List the nodes."""
    rows = await in_thread(lambda: [node_object(node) for node in Node.objects.order_by("name")])
    return JsonResponse(rows, safe=False)


@router.get("/node", response={200: NodeAnswer}, tags=["nodes"])
async def show_node(request: HttpRequest) -> HttpResponse:
    """Show the node that this site runs on."""
    return JsonResponse(await in_thread(lambda: node_object(Node.objects.local())))


def _who(request: HttpRequest) -> dict[str, Any]:
    return {"actor": caller(request), "source": source_of(request)}


async def _job(
    request: HttpRequest, operation: Callable[..., Job], reference: str, wait: float, **options: Any
) -> HttpResponseBase:
    """Find the service, ask for the job, answer with it."""
    job = await in_thread(lambda: operation(find_service(reference), **_who(request), **options))
    return await job_answer(request, job, wait)
