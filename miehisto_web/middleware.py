"""What stands before every view: static files, headers, size limits, and Django's own parts for pages.

A request of the API with a token needs no session, no messages and no CSRF token; as each of Django's
middlewares costs a change of thread under ASGI, such a request passes them by.
"""

import gzip
import io
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.common import CommonMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.security import SecurityMiddleware
from django.shortcuts import render
from django.utils.cache import patch_vary_headers
from django.utils.deprecation import MiddlewareMixin
from whitenoise.middleware import WhiteNoiseMiddleware

from miehisto_web import errors
from miehisto_web.addresses import UNIX, client_address
from miehisto_web.gate import RoleRequired
from miehisto_web.limits import MOST, REFUSED
from services import auditing
from services.answers import source_of
from services.authentication import bearer_token, caller
from services.models import AuditOutcome
from services.problems import Problem, bad_input, database_away, internal_error
from services.threads import in_thread

API = "/api/"
FOR_PROGRAMS = (API, "/metrics")
# htmx, the admin and the API's page work under this; nothing comes from elsewhere, nothing stands inline.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)

GetResponse = Callable[[HttpRequest], Any]


# Pages are sent as they are: packed, their length would tell of what stands in them (BREACH).
_PACKED = ("text/", "image/svg+xml", "application/javascript", "application/json")


def _takes_gzip(accepted: str) -> bool:
    """Tell whether an Accept-Encoding names gzip and doesn't refuse it by q=0 (RFC 9110, 12.5.3)."""
    for each in accepted.lower().split(","):
        name, _, weight = each.replace(" ", "").partition(";q=")
        if name == "gzip":
            return weight.strip("0.") != "" if weight else True
    return False


class _Async:
    """A middleware of one coroutine; under WSGI (tests) Django adapts it."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(self.get_response):
            markcoroutinefunction(cast(Any, self))


class StaticFiles(_Async):
    """Static files by whitenoise, found once at the start where the packages keep them."""

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]) -> None:
        super().__init__(get_response)
        self.files = WhiteNoiseMiddleware(get_response)
        self.packed: dict[tuple[str, str], bytes] = {}

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not request.path_info.startswith(settings.STATIC_URL):
            return await self.get_response(request)
        if self.files.autorefresh:
            found = self.files.find_file(request.path_info)
        else:
            found = self.files.files.get(request.path_info)
        if found is None:
            return await self.get_response(request)
        answer = found.get_response(request.method, request.META)
        # Small files, read whole: Django can't stream a file from an event loop.
        content = answer.file.read() if answer.file else b""
        if answer.file:
            answer.file.close()
        response = HttpResponse(content, status=int(answer.status), headers=dict(answer.headers))
        if content and answer.status == HTTPStatus.OK:
            self._pack(request, response)
        return response

    def _pack(self, request: HttpRequest, response: HttpResponse) -> None:
        """Make text smaller for whoever takes gzip; each file is packed once a process."""
        if not response.headers["Content-Type"].startswith(_PACKED):
            return
        patch_vary_headers(response, ["Accept-Encoding"])
        if not _takes_gzip(request.headers.get("Accept-Encoding", "")):
            return
        # By what it is as well, for with MIEHISTO_DEBUG a file may change.
        key = (request.path_info, response.headers["ETag"])
        # Last-Modified is enough to ask by: a strong ETag would have to differ from the plain file's.
        del response.headers["ETag"]
        if key not in self.packed:
            self.packed[key] = gzip.compress(response.content, mtime=0)
        response.content = self.packed[key]
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Content-Length"] = str(len(response.content))


class Front(_Async):
    """Headers for every answer; for the API also the size limit and JSON for every error."""

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        # From here on the address is that of who asks, whatever stands between.
        address = client_address(
            request.META.get("REMOTE_ADDR") or "",
            request.META.get("HTTP_X_FORWARDED_FOR", ""),
            settings.MIEHISTO_PROXIES,
        )
        request.META["REMOTE_ADDR"] = "" if address == UNIX else address
        with auditing.asked_from(address):
            response = await self._answer(request)
            if response.status_code == HTTPStatus.FORBIDDEN:
                await in_thread(_record_refusal, request)
        if isinstance(response, HttpResponse) and not response.has_header("Content-Length"):
            response.headers["Content-Length"] = str(len(response.content))
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        if "Content-Security-Policy" not in response.headers:
            response.headers["Content-Security-Policy"] = POLICY
        return response

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        refused = getattr(request, "scope", {}).get(REFUSED)
        if not request.path_info.startswith(API):
            if refused:
                # Without a request, for there is none that anybody could trust.
                page = {"message": _for_body(refused).message}
                return await sync_to_async(render)(None, "400.html", page, status=refused)
            return await self.get_response(request)
        try:
            request.get_host()  # as CommonMiddleware does for pages
        except DisallowedHost:
            return _problem(
                bad_input(
                    "The request is for a host name that is not this site's.",
                    "Add the name to MIEHISTO_ALLOWED_HOSTS.",
                    http_status=400,
                ),
                status=400,
            )
        if not refused and not _read_body(request):
            refused = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        if refused:
            return _problem(_for_body(refused), status=refused)
        response = await self.get_response(request)
        if response.status_code >= 400 and "json" not in response.headers.get("Content-Type", ""):
            return _problem(_for_status(response.status_code), status=response.status_code)
        return response


def _record_refusal(request: HttpRequest) -> None:
    """Put on the record that somebody known tried what he may not."""
    actor = caller(request)
    if actor.is_authenticated:
        auditing.record_audit(
            actor,
            source_of(request),
            "refused",
            outcome=AuditOutcome.REFUSED,
            detail={"method": request.method, "path": request.path[:255]},
        )


def _read_body(request: HttpRequest) -> bool:
    """Read the body, which ASGI has received by now; False when it is too large, announced or not."""
    if int(request.META.get("CONTENT_LENGTH") or 0) > MOST:
        return False
    body = request.read(MOST + 1)
    if len(body) > MOST:
        return False
    request._body = body
    request._stream = io.BytesIO(body)
    return True


def _for_body(status: int) -> Problem:
    """Return why a body was not read."""
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return bad_input("The body came too slowly.", "Send it again.", http_status=status)
    return bad_input(
        "The body is larger than 1 MiB.",
        "Put long input into a file that the service reads.",
        http_status=status,
    )


def _for_status(status: int) -> Problem:
    sentences = {
        404: ("not_found", "There is no such address.", "See /api/v1/docs for the addresses."),
        405: ("bad_input", "This address does not know this method.", "See /api/v1/docs for the methods."),
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return database_away()
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return internal_error()
    code, message, remedy = sentences.get(
        status, ("bad_input", f"The request was refused ({status}).", "See /api/v1/docs.")
    )
    return Problem(code, message, remedy, http_status=status)


def _problem(problem: Problem, *, status: int) -> JsonResponse:
    return JsonResponse(problem.as_dict(), status=status)


class _PagesOnly(MiddlewareMixin):
    """Mixed into Django's middlewares: a token's request of the API passes by."""

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        if _has_token(request):
            response: HttpResponseBase = await cast(Any, self.get_response(request))
            return response
        answer: HttpResponseBase = await super().__acall__(request)
        return answer


def _has_token(request: HttpRequest) -> bool:
    return request.path_info.startswith(FOR_PROGRAMS) and bool(bearer_token(request))


class Security(_PagesOnly, SecurityMiddleware):
    pass


class Sessions(_PagesOnly, SessionMiddleware):
    pass


class Common(_PagesOnly, CommonMiddleware):
    pass


class Authentication(_PagesOnly, AuthenticationMiddleware):
    pass


class Gate(_PagesOnly, RoleRequired):
    async def process_view(  # type: ignore[override]  # Django calls either kind
        self, request: HttpRequest, view_func: Any, view_args: Any, view_kwargs: Any
    ) -> HttpResponseBase | None:
        if request.path_info.startswith(FOR_PROGRAMS):
            return None
        # It reads session and user. In Django's thread of this request their connection to the database would
        # last as long as the request, and a page that is followed has one open for minutes.
        return await in_thread(super().process_view, request, view_func, view_args, view_kwargs)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer a refusal that a page did not say itself."""
        if isinstance(exception, Problem) and not request.path_info.startswith(API):
            return errors.refused(request, exception)
        return None


class Messages(_PagesOnly, MessageMiddleware):
    pass


class FrameOptions(_PagesOnly, XFrameOptionsMiddleware):
    pass


class Csrf(_PagesOnly, CsrfViewMiddleware):
    async def process_view(  # type: ignore[override]  # Django calls either kind
        self, request: HttpRequest, callback: Any, args: Any, kwargs: Any
    ) -> HttpResponseBase | None:
        if _has_token(request):
            return None
        # In a thread, for a refusal shows a page, which reads the session.
        return await sync_to_async(super().process_view)(request, callback, args, kwargs)
