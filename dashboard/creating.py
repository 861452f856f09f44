"""The form that creates a service: what was typed, taken apart and given to the operation."""

from __future__ import annotations

import shlex
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect

from dashboard.acting import FORM, action, shown, wrong_field
from dashboard.rights import Rights
from services import inspection, operations
from services.models import Job, Node
from services.problems import Problem, bad_input

# What the API calls otherwise than the form.
CALLED = {"args": "command", "args[0]": "command", "group": "user"}
FIELDS = ("command", "name", "user", "cwd", "env", "node", "restore_on_boot")


@action
@FORM
def new_service(request: HttpRequest) -> HttpResponse:
    """Show the form of a new service, or create it and show the job of its start."""
    if request.method != "POST":
        return form_with(request, {})
    try:
        job = operations.request_create(
            **_asked(request.POST),
            name=request.POST.get("name", "").strip(),
            restore_on_boot="restore_on_boot" in request.POST,
            actor=request.user,
            source="web",
        )
    except Problem as problem:
        field = wrong_field(problem)
        wrong = CALLED.get(field, field)
        return form_with(request, {"problem": problem, "wrong": wrong}, problem.http_status)
    return redirect("services:job", job.pk)


def form_with(request: HttpRequest, more: dict[str, Any], status: int = 200) -> HttpResponse:
    """Show the form with what was typed, and with what is to be said of it."""
    rights = Rights.of(request.user)
    typed = {name: request.POST.get(name, "") for name in FIELDS}
    if request.method != "POST":
        typed |= {"user": "root" if rights.administer else "", "cwd": "/"}
    nodes = list(Node.objects.order_by("name"))
    context = {"typed": typed, "rights": rights, "nodes": nodes, "here": "services"}
    return shown(request, "services/_new.html", {**context, **more}, status)


def checked_command(request: HttpRequest) -> Job:
    """Ask whether what was typed could be started. Raises Problem."""
    return inspection.request_check_command(**_asked(request.POST), actor=request.user, source="web")


def _asked(given: QueryDict) -> dict[str, Any]:
    user, _, group = given.get("user", "").strip().partition(":")
    if not user:
        raise bad_input(
            "There is no user to run it as.",
            "Name a user that the node knows, such as www-data.",
            field="user",
        )
    return {
        "node": _node(given.get("node", "")),
        "argv": _argv(given.get("command", "")),
        "user": user,
        "group": group,
        "cwd": given.get("cwd", "").strip() or "/",
        "env": _environment(given.get("env", "")),
    }


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
