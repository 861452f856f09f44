"""What each kind of job does: arguments from its row to the engine, and what came of it back.

It claims and ends no job; tasks.py does, for all kinds alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from django.utils import timezone

from images import contents, origins
from images import operations as images
from images.models import Image
from services.models import Job
from services.problems import Problem
from services.states import JobKind, JobState, ServiceState
from services.writing import surely
from worker import commands, host, inspecting, reconcile
from worker.engine import Engine
from worker.errors import JobFailed
from worker.image_files import Unreadable
from worker.reconcile import Truth
from worker.supervision import Running

DEFAULT_GRACE = 10.0

_MEMORY_IS_IN_IT = (
    "The archive holds the memory of the service's programs, passwords and keys included: whoever can read it"
    " has them."
)


class Outcome(NamedTuple):
    """What a job brought about."""

    truth: Truth | None = None
    result: dict[str, Any] = {}  # noqa: RUF012 - never changed
    statistics: dict[str, Any] = {}  # noqa: RUF012


def _alive(running: Running) -> Truth:
    return Truth(ServiceState.RUNNING, running.shown_pid, running.runmh.pid)


def _spec(job: Job) -> dict[str, Any]:
    service = job.service
    assert service is not None
    return {
        "argv": service.argv,
        "user": service.user,
        "group": service.group,
        "cwd": service.cwd,
        "env": service.env,
        "binds": service.binds,
        "data": service.data,
        "carry": service.carry,
        "privileges": service.privileges,
        "limits": service.limits,
    }


def _start(job: Job, engine: Engine) -> Outcome:
    running = engine.start(job.service_ref, _spec(job))
    return Outcome(_alive(running), {"service": job.service_ref, "pid": running.shown_pid})


def _stop(job: Job, engine: Engine) -> Outcome:
    ended = engine.stop(job.service_ref, float(job.options.get("grace", DEFAULT_GRACE)))
    found = Truth(ServiceState.STOPPED, None, None, *ended)
    return Outcome(found, {"service": job.service_ref, **ended._asdict()})


def _restart(job: Job, engine: Engine) -> Outcome:
    # What may not start again is not stopped.
    engine.permitted(_spec(job))
    _stop(job, engine)
    return _start(job, engine)


def _dump(job: Job, engine: Engine) -> Outcome:
    leave_running = bool(job.options.get("leave_running"))
    apart = ("leave_running", "carry")
    options = {name: value for name, value in job.options.items() if name not in apart}
    dumped = engine.dump(
        job.service_ref,
        job.image_id,
        leave_running=leave_running,
        options=options,
        carry=job.options.get("carry", []),
        newest=surely(Image.objects.filter(service_ref=job.service_ref).newest_at),
    )
    surely(lambda: reconcile.record_image(engine.paths, job.image_id, job.node))
    return Outcome(
        None if leave_running else Truth(ServiceState.DUMPED),
        {"image": job.image_id, "path": str(dumped.path)},
        dict(dumped.statistics),
    )


def _restore(job: Job, engine: Engine) -> Outcome:
    engine.take_back(job.service_ref, engine.permitted(_spec(job)))
    accepted = bool(job.options.get("accept_changed_files"))
    running = engine.restore(
        job.service_ref,
        job.image_id,
        accept_changed_files=accepted,
        tcp_close=bool(job.options.get("tcp_close")),
    )
    # What nobody has asked for says why it was done.
    reason = surely(lambda: job.events.earliest("id")).text if job.source == "agent" else ""
    found = _alive(running)._replace(reason=reason)
    return Outcome(found, {"image": job.image_id, "service": job.service_ref, "pid": running.shown_pid})


def _delete_service(job: Job, engine: Engine) -> Outcome:
    if job.options.get("stop"):
        _stop(job, engine)
    engine.delete_service(job.service_ref)
    return Outcome(None, {"service": job.service_ref})


def _verify_image(job: Job, engine: Engine) -> Outcome:
    try:
        engine.verify(job.image_id)
    except JobFailed as failure:
        damage = failure.lines or [failure.message]
        surely(lambda: images.mark_verified(job.image_id, damage))
        raise
    surely(lambda: images.mark_verified(job.image_id, []))
    return Outcome(None, {"image": job.image_id})


def _delete_image(job: Job, engine: Engine) -> Outcome:
    engine.delete_image(job.image_id)
    surely(lambda: images.forget(job.image_id))
    return Outcome(None, {"image": job.image_id})


def _export_image(job: Job, engine: Engine) -> Outcome:
    image = surely(lambda: Image.objects.select_related("service").get(pk=job.image_id))
    written = engine.export_image(
        job.image_id,
        str(job.options.get("file", "")),
        recipients=job.options.get("recipients", []),
        gpg_recipients=job.options.get("gpg_recipients", []),
        origin={
            "node": job.node.name,
            "exported_by": job.requested_by,
            "exported": timezone.now().isoformat(),
            "service_name": image.service.name if image.service else "",
            "image_name": image.name,
        },
    )
    result = {"image": job.image_id, "path": str(written.path), "size": written.size}
    return Outcome(None, {**result, "warning": _MEMORY_IS_IN_IT})


def _import_image(job: Job, engine: Engine) -> Outcome:
    done = engine.import_image(
        str(job.options.get("file", "")),
        identity=str(job.options.get("identity", "")),
        check=_require_sound_spec,
        notes={"imported_by": job.requested_by, "imported": timezone.now().isoformat()},
    )
    surely(lambda: reconcile.record_image(engine.paths, done.image_id, job.node))
    result = {**done._asdict(), "image": done.image_id, "path": str(engine.paths.image(done.image_id))}
    return Outcome(None, result)


def _require_sound_spec(spec: dict[str, Any]) -> None:
    """Refuse what an archive says of a service if nobody could have created it here."""
    try:
        origins.check_spec(spec)
    except Problem as problem:
        raise JobFailed(
            "archive_damaged",
            f"The archive's service cannot be one. {problem.message}",
            "Nothing of it was kept: fetch it again, from somebody you trust.",
        ) from None


def _check(_job: Job, engine: Engine) -> Outcome:
    engine.step("looking at the host")
    found = host.check(engine.paths, engine.tools.criu, engine.tools.tini)
    able = all(item.ok for item in found if item.needed)
    return Outcome(None, {"checks": [item._asdict() for item in found], "able": able})


def _check_service(job: Job, engine: Engine) -> Outcome:
    found = engine.check_service(job.service_ref, job.options)
    found["estimate"] |= _frozen_before(job, found["estimate"]["memory_bytes"])
    return Outcome(None, found)


def _frozen_before(job: Job, memory: int) -> dict[str, Any]:
    """Return how long a dump of this much memory would freeze the service, going by the last one."""
    before = Job.objects.filter(
        service_ref=job.service_ref,
        kind=JobKind.DUMP,
        status=JobState.SUCCEEDED,
        statistics__frozen_time__gt=0,
    )
    last = surely(before.values_list("pk", "statistics").first)
    if last is None:
        return {"frozen_seconds": None, "by_job": None}
    then = int(last[1].get("pages_written", 0)) * 4096
    grown = max(1.0, memory / then) if then else 1.0
    return {"frozen_seconds": round(last[1]["frozen_time"] / 1e6 * grown, 3), "by_job": last[0]}


def _check_command(job: Job, engine: Engine) -> Outcome:
    asked = job.options
    found = commands.check(**asked)
    if found["able"]:
        spec = {name: asked[name] for name in ("user", "group", "cwd")}
        try:
            engine.permitted(
                {**spec, "argv": [asked["command"]], "env": {"PATH": asked["path"]} if asked["path"] else {}}
            )
        except JobFailed as refusal:
            found = {
                "able": False,
                **{name: getattr(refusal, name) for name in ("code", "message", "remedy")},
            }
    return Outcome(None, found)


def _read_environment(job: Job, engine: Engine) -> Outcome:
    engine.step("reading the processes' memory")
    try:
        found = inspecting.apart(engine.paths.image(job.image_id), "environment")
    except Unreadable as error:
        raise JobFailed(
            "contents_unreadable",
            f"The image cannot be looked into: {error}.",
            "Verify it (mhctl image verify).",
        ) from None
    surely(lambda: contents.record_environment(job, found))
    return Outcome(None, {"image": job.image_id, "processes": len(found)})


HANDLERS: dict[JobKind, Callable[[Job, Engine], Outcome]] = {
    JobKind.START: _start,
    JobKind.STOP: _stop,
    JobKind.RESTART: _restart,
    JobKind.DUMP: _dump,
    JobKind.RESTORE: _restore,
    JobKind.DELETE_SERVICE: _delete_service,
    JobKind.VERIFY_IMAGE: _verify_image,
    JobKind.DELETE_IMAGE: _delete_image,
    JobKind.EXPORT_IMAGE: _export_image,
    JobKind.IMPORT_IMAGE: _import_image,
    JobKind.CHECK: _check,
    JobKind.CHECK_SERVICE: _check_service,
    JobKind.CHECK_COMMAND: _check_command,
    JobKind.READ_ENVIRONMENT: _read_environment,
}
