"""The API as a whole: routers, authentication, and every error in one shape. It knows no call by itself."""

import logging
from typing import Any

from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.openapi.schema import OpenAPISchema

from images.api import router as images
from images.contents_api import router as image_contents
from images.schedules_api import router as schedules
from services.api import router as services
from services.authentication import TokenOrSession
from services.problems import Problem, bad_input, database_away, internal_error, not_allowed

log = logging.getLogger(__name__)

ANY_CALL = {
    400: "The request is for another host, or its body is not JSON.",
    401: "There is no valid token and no session.",
    403: "The caller lacks a role, or the CSRF token of a session.",
    404: "There is no such thing, or no such address.",
    408: "The body came too slowly.",
    409: "It cannot be done now.",
    413: "The body is larger than 1 MiB.",
    422: "The input cannot be used.",
    429: "Too many wrong tokens came from the caller's address.",
    503: "The database, or the node that was asked, does not answer.",
}


class DescribedAPI(NinjaAPI):
    """The API, which describes also the errors that any call may answer with."""

    _described: OpenAPISchema | None = None

    def get_openapi_schema(self, **how: Any) -> OpenAPISchema:
        if self._described is None:  # once, for it takes long, and anybody may ask for it
            self._described = self._describe(**how)
        return self._described

    def _describe(self, **how: Any) -> OpenAPISchema:
        described = super().get_openapi_schema(**how)
        shape = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
        for calls in described["paths"].values():
            for call in calls.values():
                for status, sentence in ANY_CALL.items():
                    call["responses"][status] = {"description": sentence, "content": shape}
                found = call["responses"].get(200, {})
                answer = found.get("content", {}).get("application/json", {}).get("schema", {})
                if answer.get("type") == "string":  # a log is text, though ninja knows only JSON
                    found["content"] = {"text/plain": {"schema": answer}}
        return described


api = DescribedAPI(
    title="Miehistö",
    version="1",
    description="Dump and restore application servers. Calls that take time answer 202 with a job; "
    "?wait=SECONDS holds the answer, and with Accept: application/x-ndjson streams the job's steps.",
    auth=TokenOrSession(),
    urls_namespace="api",
    docs_decorator=require_GET,
)
api.add_router("", services)
api.add_router("", images)
api.add_router("", image_contents)
api.add_router("", schedules)


def problem_response(problem: Problem) -> HttpResponse:
    """Return the API's answer for a problem."""
    response = JsonResponse(problem.as_dict(), status=problem.http_status)
    if "retry_after" in problem.details:
        response["Retry-After"] = str(problem.details["retry_after"])
    return response


@api.exception_handler(Problem)
def on_problem(_request: HttpRequest, problem: Problem) -> HttpResponse:
    return problem_response(problem)


@api.exception_handler(ValidationError)
def on_invalid(_request: HttpRequest, invalid: ValidationError) -> HttpResponse:
    return problem_response(_sentence(invalid.errors))


@api.exception_handler(HttpError)
def on_http_error(_request: HttpRequest, error: HttpError) -> HttpResponse:
    if error.status_code == 400:
        return problem_response(bad_input("The body is not JSON.", "Send one JSON object.", http_status=400))
    return problem_response(
        bad_input(
            f"The request was refused: {str(error).rstrip('.')}.",
            "See /api/v1/docs.",
            http_status=error.status_code,
        )
    )


@api.exception_handler(AuthenticationError)
def on_stranger(_request: HttpRequest, _error: AuthenticationError) -> HttpResponse:
    response = problem_response(
        not_allowed(
            "There is no valid token and no session.",
            "Set MIEHISTO_TOKEN for mhctl, or send Authorization: Bearer TOKEN; "
            "`manage.py token --user NAME` makes one.",
            http_status=401,
        )
    )
    response["WWW-Authenticate"] = "Bearer"
    return response


@api.exception_handler(Http404)
def on_not_found(_request: HttpRequest, _error: Http404) -> HttpResponse:
    return problem_response(
        Problem(
            "not_found",
            "There is no such address.",
            "See /api/v1/docs for the addresses.",
            http_status=404,
        )
    )


@api.exception_handler(OperationalError)
@api.exception_handler(InterfaceError)
def on_database_away(request: HttpRequest, error: Exception) -> HttpResponse:
    log.error("%s %s: %s", request.method, request.path, error)
    return problem_response(database_away())


@api.exception_handler(Exception)
def on_fault(request: HttpRequest, fault: Exception) -> HttpResponse:
    log.error("%s %s: %s", request.method, request.path, fault, exc_info=fault)
    return problem_response(internal_error())


def _sentence(errors: list[dict[str, Any]]) -> Problem:
    """Make one sentence of pydantic's first complaint."""
    first = errors[0] if errors else {}
    where = [str(part) for part in first.get("loc", ())]
    # The place begins with "body" and the parameter's name, or with "query"; people know only the rest.
    field = ".".join(where[2:] if where[:1] == ["body"] else where[1:])
    complaint = str(first.get("msg", "cannot be used"))
    if first.get("type") == "extra_forbidden":
        return bad_input(
            f"There is no field {field[:80]!r}.", "See /api/v1/docs for the fields.", field=field[:80]
        )
    what = f"The field {field[:80]}" if field else "The body"
    remedy = "See /api/v1/docs for what is expected."
    if first.get("type") == "missing":
        return bad_input(f"{what} is missing.", remedy, field=field[:80])
    complaint = complaint[:1].lower() + complaint[1:].rstrip(".")
    return bad_input(f"{what} cannot be used: {complaint}.", remedy, field=field[:80])
