"""The pages for 403, 404 and 500. The API's errors are made JSON by the middleware."""

# ruff: noqa: ARG001 (Django and ninja fix the arguments)

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    return render(request, "403.html", {"message": str(exception)}, status=403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return render(request, "404.html", status=404)


def fault(request: HttpRequest) -> HttpResponse:
    # Without a request: its context processors read the session, and the database may be what is broken.
    return render(None, "500.html", status=500)
