"""Every way to ask for a change of a service, and (from progress.py) to carry one out. It knows no images.

A request checks permission and input, inserts the queued Job with its first JobEvent in one transaction,
and sends its id after the commit. Each raises Problem and changes nothing when it refuses.
"""

from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from services import bell, confinement, criu_options, enqueue, validation
from services.actors import Actor, name_of, require, require_account, require_admin, require_operator
from services.auditing import record_audit
from services.models import AuditOutcome, Job, JobEvent, Node, Service, new_id
from services.problems import Problem
from services.progress import (
    claim,
    enter_step,
    error,
    fail,
    heartbeat,
    lose,
    observe,
    succeed,
)
from services.references import not_found
from services.roles import OPERATE, OPERATOR
from services.states import KINDS, JobKind, JobState, ServiceState, has_process

MAX_GRACE = 3600.0  # seconds


def request_create(
    *,
    node: Node,
    argv: list[str],
    user: str = "root",
    group: str = "",
    cwd: str = "/",
    env: dict[str, str] | None = None,
    name: str = "",
    binds: list[str] | None = None,
    data: list[str] | None = None,
    carry: list[str] | None = None,
    privileges: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    restore_on_boot: bool = False,
    actor: Actor,
    source: str,
) -> Job:
    """Make a service and ask for its first start.

    argv: the command and its arguments. user, group: names or numbers, "" for root and its group.
    cwd: absolute. binds: extra SRC:DST[:ro]. data: files and folders
    that must be at a restore what they were at the dump. carry: those that its images hold.
    privileges, limits: see confinement.py.
    restore_on_boot: come back from the newest sound image when the node is started anew; be dumped and
    restored where no supervisor can take over.
    source: web, api, mhctl, manage, agent or schedule.
    Raises Problem bad_input, name_taken, not_allowed.
    """
    require_operator(actor)
    user, group = validation.account(user, "user") or "root", validation.account(group, "group")
    require_account(actor, user, group)
    checked_binds = validation.binds(binds or [])
    if checked_binds:
        # Who chooses what lies at /etc/sudoers needs only a setuid program to be root.
        require_admin(actor, "lay one folder over another in a service (binds)")
    checked_privileges = confinement.privileges(privileges or {})
    if {"cap_add", "new_privileges"} & set(checked_privileges):
        # Several capabilities are as good as being root, and so is a setuid program with a hole.
        require_admin(actor, "give a service privileges (cap_add, new_privileges)")
    if "private_tmp" in checked_privileges:
        confinement.refuse_binds_in_tmp(checked_binds)
    argv = validation.command(argv)
    checked_env = validation.environment(env or {})
    validation.command_size(argv, checked_env)
    now = timezone.now()
    service = Service(
        id=new_id(),
        name=validation.name(name),
        node=node,
        argv=argv,
        user=user,
        group=group,
        cwd=validation.folder(cwd or "/"),
        env=checked_env,
        binds=checked_binds,
        data=validation.data_paths(data or [], "data"),
        carry=validation.data_paths(carry or [], "carry"),
        privileges=checked_privileges,
        limits=confinement.limits(limits or {}),
        restore_on_boot=validation.flag(restore_on_boot, "restore_on_boot"),
        created_at=now,
        changed_at=now,
        created_by=name_of(actor),
    )
    with transaction.atomic():
        try:
            with transaction.atomic():
                service.save(force_insert=True)
        except IntegrityError as taken:
            raise name_taken("service", service.name) from taken
        return new_job(JobKind.START, node=node, service=service, actor=actor, source=source)


def adopt(
    service_id: str,
    *,
    node: Node,
    spec: dict[str, Any],
    state: ServiceState,
    actor: Actor = "rescan",
    name: str = "",
    restore_on_boot: bool = False,
) -> Service:
    """Make the row of a service that has none any more, or return the one that somebody made meanwhile.

    spec: what the worker wrote when the service was started. state: what is true of it now.
    """
    now = timezone.now()
    fields = {
        "name": name,
        "node": node,
        "argv": spec["argv"],
        "user": spec.get("user", ""),
        "group": spec.get("group", ""),
        "cwd": spec.get("cwd") or "/",
        "env": spec.get("env", {}),
        "binds": spec.get("binds", []),
        "data": spec.get("data", []),
        "carry": spec.get("carry", []),
        "privileges": spec.get("privileges") or {},
        "limits": spec.get("limits") or {},
        "restore_on_boot": restore_on_boot,
        "status": state.value,
        "created_at": now,
        "changed_at": now,
        "created_by": name_of(actor),
    }
    return Service.objects.get_or_create(id=service_id, defaults=fields)[0]


def request_start(service: Service, *, actor: Actor, source: str) -> Job:
    """Ask for a cold start of a service that has no process."""
    return _request(JobKind.START, service, actor=actor, source=source)


def request_stop(service: Service, *, actor: Actor, source: str, grace: float | None = None) -> Job:
    """Ask to stop a running service. grace: seconds between SIGTERM and SIGKILL."""
    return _request(JobKind.STOP, service, actor=actor, source=source, options=_grace(grace))


def request_restart(service: Service, *, actor: Actor, source: str, grace: float | None = None) -> Job:
    """Ask to stop a service, if it runs, and start it. grace: as for stop."""
    return _request(JobKind.RESTART, service, actor=actor, source=source, options=_grace(grace))


def request_dump(service: Service, *, actor: Actor, source: str, why: str = "", **options: Any) -> Job:
    """Ask for an image of a running service, which is gone from the process table afterwards unless
    `leave_running`. The image's id is already on the job (`image_id`).

    options: those of criu_options.py. why: as for `new_job`.
    """
    return _request(
        JobKind.DUMP,
        service,
        actor=actor,
        source=source,
        image_id=new_id(),
        options=criu_options.checked(JobKind.DUMP, {"leave_running": False, **options}),
        why=why,
    )


def request_delete_service(
    service: Service, *, actor: Actor, source: str, stop: bool = False, grace: float | None = None
) -> Job:
    """Ask to forget a service; a running one is refused unless `stop`. Its images stay."""
    require_admin(actor, "delete a service")
    stop = validation.flag(stop, "stop")
    if service.has_process and not stop:
        raise _service_running(
            service, "Stop it first, or say that the deletion shall stop it (the option stop)."
        )
    return _request(
        JobKind.DELETE_SERVICE, service, actor=actor, source=source, options={"stop": stop, **_grace(grace)}
    )


def request_check(node: Node, *, actor: Actor, source: str) -> Job:
    """Ask a node whether it can dump and restore, and what is missing."""
    require_operator(actor)
    with transaction.atomic():
        return new_job(JobKind.CHECK, node=node, actor=actor, source=source)


def cancel(job: Job, actor: Actor, source: str = "") -> Job:
    """Cancel a queued job. Raises Problem not_cancellable once a worker has it."""
    require_operator(actor)
    with transaction.atomic():
        now = timezone.now()
        cancelled = Job.objects.filter(pk=job.pk, status=JobState.QUEUED).update(
            status=JobState.CANCELLED, finished_at=now
        )
        if not cancelled:
            job.refresh_from_db()
            raise Problem(
                "not_cancellable",
                f"Job {job.pk} is {job.status}; only a queued job can be cancelled.",
                "Wait for its end if it runs; one that has ended needs nothing.",
                details={"status": job.status},
            )
        text = f"cancelled by {name_of(actor)}"
        JobEvent.objects.create(job=job, at=now, status=JobState.CANCELLED, text=text)
        record_audit(actor, source, "cancel", target_kind="job", target_id=job.pk)
        transaction.on_commit(lambda: bell.ring(job.pk))
    job.refresh_from_db()
    return job


def change(
    service: Service,
    *,
    actor: Actor,
    source: str,
    name: str | None = None,
    restore_on_boot: bool | None = None,
) -> Service:
    """Change what a service is called, and whether it comes back after a boot; all of it or nothing.

    name: "" for none. None, of each, leaves it as it is; what is so already is not put on the record.
    Raises Problem name_taken, bad_input, not_allowed: what comes back comes to life as its user.
    """
    require_operator(actor)
    asked: dict[str, Any] = {}
    if restore_on_boot is not None:
        asked["restore_on_boot"] = validation.flag(restore_on_boot, "restore_on_boot")
    if name is not None:
        asked["name"] = validation.name(name)
    try:
        with transaction.atomic():
            now = Service.objects.select_for_update().filter(pk=service.pk).first()
            if now is None:
                raise not_found("service", service.pk)
            new = {field: value for field, value in asked.items() if getattr(now, field) != value}
            if new.get("restore_on_boot"):
                require_account(actor, now.user, now.group)
            if new:
                Service.objects.filter(pk=service.pk).update(**new)
            for field, value in new.items():
                word = "rename" if field == "name" else "set"
                detail = {field: value}
                record_audit(actor, source, word, target_kind="service", target_id=service.pk, detail=detail)
    except IntegrityError as taken:
        raise name_taken("service", asked["name"]) from taken
    if new:
        bell.ring_service(service.pk)
    for field, value in asked.items():
        setattr(service, field, value)
    return service


def show_env(service: Service, *, actor: Actor, source: str) -> dict[str, str]:
    """Return a service's environment with its values, which are often secret; that goes on the record."""
    require(actor, OPERATE, "see the values of a service's environment", OPERATOR)
    record_audit(actor, source, "show_env", target_kind="service", target_id=service.pk)
    return dict(service.env)


def require_state(service: Service, kind: JobKind) -> None:
    """Raise Problem service_running or service_not_running unless a job of `kind` may begin now."""
    if service.state in KINDS[kind].allowed:
        return
    if has_process(service.state):
        raise _service_running(service, "Dump or stop it first.")
    raise Problem(
        "service_not_running",
        f"Service {service} is {service.status}, not running.",
        "Nothing is left to be stopped."
        if kind is JobKind.STOP
        else "Restore it first (mhctl service restore), or start it anew without its memory."
        if service.state is ServiceState.DUMPED
        else "Start it first (mhctl service start), or restore an image of it.",
        details={"service": service.pk, "status": service.status},
    )


def new_job(
    kind: JobKind,
    *,
    node: Node,
    actor: Actor,
    source: str,
    service: Service | None = None,
    image_id: str = "",
    options: dict[str, Any] | None = None,
    service_ref: str = "",
    why: str = "",
    name: str = "",
) -> Job:
    """Insert a queued job with its first event and send it after the commit; call it in a transaction.

    why: what its first event says, for a job that nobody has asked for.
    name: of what the job deletes, for the record, which outlives it.
    Raises Problem job_active when the service has an active job already.
    """
    now = timezone.now()
    job = Job(
        kind=kind.value,
        node=node,
        service=service,
        service_ref=service.pk if service else service_ref,
        image_id=image_id,
        options=options or {},
        requested_by=name_of(actor),
        source=source,
        service_state_before=service.status if service else "",
        queued_at=now,
        # Written now, taken back if sending fails: the common case needs no second write.
        sent_at=now,
    )
    try:
        with transaction.atomic():
            job.save(force_insert=True)
    except IntegrityError as clash:
        if service is None:
            raise
        raise _job_active(service) from clash
    event = JobEvent.objects.create(job=job, at=now, status=JobState.QUEUED, text=why)
    job.known_events = [event]
    about = ("image", image_id) if image_id and not service else ("service", job.service_ref)
    record_audit(
        actor,
        source,
        kind.value,
        target_kind=about[0] if about[1] else "node",
        target_id=about[1] or node.name,
        outcome=AuditOutcome.ASKED,
        detail={
            "job": job.pk,
            **({"image": image_id} if image_id else {}),
            **({"name": name} if name else {}),
            **({"why": why} if why else {}),
            **(options or {}),
        },
    )
    transaction.on_commit(lambda: enqueue.announce_new(job))
    return job


def _request(
    kind: JobKind,
    service: Service,
    *,
    actor: Actor,
    source: str,
    image_id: str = "",
    options: dict[str, Any] | None = None,
    why: str = "",
) -> Job:
    """Ask for a job on a service as it is now, not as it was when the caller read it."""
    require_operator(actor)
    with transaction.atomic():
        fresh = Service.objects.select_for_update(of=("self",)).select_related("node")
        now = fresh.filter(pk=service.pk).first()
        if now is None:
            raise not_found("service", service.pk)
        # With data, a dump of root's service would read what only root may.
        if kind in {JobKind.START, JobKind.RESTART} or (options or {}).get("carry"):
            require_account(actor, now.user, now.group)
        if now.state not in KINDS[kind].allowed:
            if Job.objects.active().filter(service=now).exists():
                raise _job_active(now)
            require_state(now, kind)
        return new_job(
            kind,
            node=now.node,
            service=now,
            image_id=image_id,
            options=options,
            why=why,
            name=now.name if kind is JobKind.DELETE_SERVICE else "",
            actor=actor,
            source=source,
        )


def _grace(grace: float | None) -> dict[str, float]:
    return {} if grace is None else {"grace": validation.seconds(grace, "grace", most=MAX_GRACE)}


def _job_active(service: Service) -> Problem:
    job = Job.objects.active().filter(service=service).first()
    if job is None:
        # It ended between the clash and this look.
        return Problem("job_active", f"Service {service} had an active job a moment ago.", "Ask again.")
    return Problem(
        "job_active",
        f"Service {service} has an active job: {job.kind} {job.pk} ({job.status}).",
        f"Wait for it (mhctl job wait {job.pk}), or cancel it while it is queued.",
        details={"job": job.pk, "kind": job.kind, "status": job.status},
    )


def _service_running(service: Service, remedy: str) -> Problem:
    return Problem(
        "service_running",
        f"Service {service} is {service.status}.",
        remedy,
        details={"service": service.pk, "status": service.status},
    )


def name_taken(noun: str, name: str) -> Problem:
    """Return the Problem for a name that another row has; `noun` is service or image."""
    return Problem(
        "name_taken", f"Another {noun} is named {name!r}.", "Choose another name.", details={"name": name}
    )


__all__ = [
    "adopt",
    "cancel",
    "change",
    "claim",
    "enter_step",
    "error",
    "fail",
    "heartbeat",
    "lose",
    "name_taken",
    "new_job",
    "observe",
    "request_check",
    "request_create",
    "request_delete_service",
    "request_dump",
    "request_restart",
    "request_start",
    "request_stop",
    "require_state",
    "show_env",
    "succeed",
]
