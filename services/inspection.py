"""Ways to ask a node something that changes nothing: can this be dumped, is this command there.

They make jobs as operations.py does, but none that stands in the way of a service's one active job.
"""

from typing import Any

from django.db import transaction

from services import criu_options, validation
from services.actors import Actor, require_account, require_operator
from services.models import Job, Node, Service
from services.operations import new_job
from services.problems import Problem
from services.states import JobKind, ServiceState


def request_check_service(
    service: Service, *, actor: Actor, source: str, options: dict[str, Any] | None = None
) -> Job:
    """Ask whether a running service could be dumped now (the dry run); its result says yes, how, or why not.

    options: those that the dump would have. Raises Problem service_not_running, bad_input.
    """
    require_operator(actor)
    asked = criu_options.checked(JobKind.CHECK_SERVICE, options or {})
    if asked.get("carry"):
        require_account(actor, service.user, service.group)
    if service.state is not ServiceState.RUNNING:
        raise Problem(
            "service_not_running",
            f"Service {service} is {service.status}; only one that runs can be looked at.",
            "Start it, or restore an image of it, then check again.",
            details={"service": service.pk, "status": service.status},
        )
    with transaction.atomic():
        # Without the row itself, for one active job a service is allowed and this one is none.
        job = new_job(
            JobKind.CHECK_SERVICE,
            node=service.node,
            service_ref=service.pk,
            options=asked,
            actor=actor,
            source=source,
        )
    job.about_name = service.name
    return job


def request_check_command(
    node: Node,
    *,
    argv: list[str],
    user: str = "root",
    group: str = "",
    cwd: str = "/",
    env: dict[str, str] | None = None,
    actor: Actor,
    source: str,
) -> Job:
    """Ask whether a command could be started on a node: program, user, group and folder are there.

    The arguments are those of `operations.request_create`. Raises Problem bad_input, not_allowed.
    """
    require_operator(actor)
    argv = validation.command(argv)
    user, group = validation.account(user, "user") or "root", validation.account(group, "group")
    require_account(actor, user, group)
    path = validation.environment(env or {}).get("PATH", "")
    options = {
        "command": argv[0],
        "user": user,
        "group": group,
        "cwd": validation.folder(cwd or "/"),
        "path": path,
    }
    with transaction.atomic():
        return new_job(JobKind.CHECK_COMMAND, node=node, options=options, actor=actor, source=source)
