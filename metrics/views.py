"""The address that Prometheus reads, with the token of somebody who may see."""

from http import HTTPStatus

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from prometheus_client import CONTENT_TYPE_LATEST

from metrics import families
from services.authentication import TokenOrSession
from services.problems import Problem, not_allowed
from services.threads import in_thread

_caller = TokenOrSession()


@login_not_required  # it asks by itself, and has no page to send anybody to
async def metrics(request: HttpRequest) -> HttpResponse:
    """Answer all figures as text; 401 without a token or a session, 403 without the right to see."""
    try:
        if await _caller(request) is None:
            raise not_allowed(
                "There is no valid token and no session.",
                "Make a token of a viewer's with `manage.py token`, and give it to Prometheus.",
                http_status=HTTPStatus.UNAUTHORIZED,
            )
    except Problem as problem:
        answer = JsonResponse(problem.as_dict(), status=problem.http_status)
        if problem.http_status == HTTPStatus.UNAUTHORIZED:
            answer.headers["WWW-Authenticate"] = "Bearer"
        return answer
    if request.method not in {"GET", "HEAD"}:
        return HttpResponse(status=HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
    return HttpResponse(await in_thread(families.text), content_type=CONTENT_TYPE_LATEST)
