"""What the pages of services and images share: running one operation for a form. It knows no operation."""

from collections.abc import Callable
from typing import TypeVar

from django.contrib import messages
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from services.models import Job
from services.problems import Problem

R = TypeVar("R")


def ask(request: HttpRequest, back: str, operation: Callable[[], Job]) -> HttpResponse:
    """Ask for a job and show it; what refuses it is said on the page named `back`."""
    try:
        job = operation()
    except Problem as problem:
        messages.error(request, f"{problem.message} {problem.remedy}".rstrip())
        return redirect(back)
    return redirect("services:job", job.pk)


def found(find: Callable[[], R]) -> R:
    """Return what `find` finds; a Problem becomes the 404 page."""
    try:
        return find()
    except Problem as problem:
        raise Http404(problem.message) from problem


def user_of_page(request: HttpRequest) -> User:
    """Return who is logged in; behind the gate somebody is."""
    user = request.user
    assert isinstance(user, User)
    return user
