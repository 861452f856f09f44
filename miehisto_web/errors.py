"""The pages for 400, 403, 404, 500 and 503. The API's errors are made JSON by the middleware."""

# ruff: noqa: ARG001 (Django and ninja fix the arguments)

import sys
from http import HTTPStatus

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from services.problems import Problem, database_away


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    # Not what the exception says: it quotes what was sent. Nor the request's own: it may be what is bad.
    message = "The browser sent what the site cannot read, or asked for a host name that is not this site's."
    return render(None, "400.html", {"message": message}, status=400)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    return render(request, "403.html", {"message": str(exception)}, status=403)


def refused(request: HttpRequest, problem: Problem) -> HttpResponse:
    message = f"{problem.message} {problem.remedy}"
    page = "403.html" if problem.http_status == HTTPStatus.FORBIDDEN else "400.html"
    return render(request, page, {"message": message}, status=problem.http_status)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    # A page says what is not there; what Django says of an address is of no use to anybody.
    problem = exception.__cause__
    said = f"{problem.message} It may have been deleted." if isinstance(problem, Problem) else ""
    return render(request, "404.html", {"message": said}, status=404)


def fault(request: HttpRequest) -> HttpResponse:
    # Without a request: its context processors read the session, and the database may be what is broken.
    title, status = "A fault in Miehistö", 500
    message = "The site's log has the traceback. Services go on running without the site."
    if isinstance(sys.exception(), OperationalError | InterfaceError):
        away = database_away()
        title, message, status = away.message.rstrip("."), away.remedy, away.http_status
    return render(None, "500.html", {"title": title, "message": message}, status=status)
