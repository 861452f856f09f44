"""The form that creates a service: what was typed, taken apart and given to the operation."""

from __future__ import annotations

import shlex
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect

from dashboard.acting import FORM, action, shown
from dashboard.rights import Rights
from services import operations
from services.models import Job, Node
from services.problems import Problem, bad_input

FIELDS = ("command", "name", "user", "cwd", "env", "node")


@action
@FORM
def new_service(request: HttpRequest) -> HttpResponse:
    """Show the form of a new service, or create it and show the job of its start."""
    rights = Rights.of(request.user)
    nodes = list(Node.objects.order_by("name"))
    typed = {name: request.POST.get(name, "") for name in FIELDS}
    context: dict[str, Any] = {"typed": typed, "rights": rights, "nodes": nodes, "here": "services"}
    if request.method != "POST":
        typed["user"] = "root" if rights.administer else ""
        typed["cwd"] = "/"
        return shown(request, "services/_new.html", context)
    try:
        job = _create(request, request.POST)
    except Problem as problem:
        return shown(request, "services/_new.html", {**context, "problem": problem}, problem.http_status)
    return redirect("services:job", job.pk)


def _create(request: HttpRequest, given: QueryDict) -> Job:
    user, _, group = given.get("user", "").strip().partition(":")
    if not user:
        raise bad_input(
            "There is no user to run it as.",
            "Name a user that the node knows, such as www-data.",
            field="user",
        )
    return operations.request_create(
        node=_node(given.get("node", "")),
        argv=_argv(given.get("command", "")),
        user=user,
        group=group,
        cwd=given.get("cwd", "").strip() or "/",
        env=_environment(given.get("env", "")),
        name=given.get("name", "").strip(),
        actor=request.user,
        source="web",
    )


def _node(name: str) -> Node:
    if not name:
        return Node.objects.local()
    node = Node.objects.filter(name=name).first()
    if node is None:
        raise bad_input(f"There is no node {name[:80]!r}.", "Choose one of those listed.", field="node")
    return node


def _argv(command: str) -> list[str]:
    """Return the words of a command line, quoted as in a shell; nothing else of a shell is understood."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise bad_input(
            f"The command can't be read: {str(error).lower()}.", "Close the quotes.", field="command"
        ) from None


def _environment(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        name, equals, value = line.strip().partition("=")
        if not equals:
            raise bad_input(
                f"The line {line.strip()[:80]!r} is no NAME=VALUE.",
                "Write one variable a line, with an equals sign.",
                field="env",
            )
        found[name] = value
    return found
