"""Who gets which answer from every address by every method.

The addresses come from the URL resolver and from the API's own description: one that is new fails here until
it has a row. A row says who may at least, and what he is answered then; what everybody else is answered
follows from who he is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from dashboard.actions import IMAGE_ACTIONS, SERVICE_ACTIONS
from miehisto_web.api import api
from services import operations
from services.authentication import issue
from services.models import ApiToken, Job, Node
from services.roles import ROLES
from services.throttle import TOKENS
from tests.rows import member, recorded_image, running_service, stopped_service

pytestmark = pytest.mark.django_db(transaction=True)

V, AUDITOR, O, A = ROLES  # viewer, auditor, operator, admin  # noqa: E741
ANYBODY, LOGGED_IN = "anybody", "logged in"
# A script or a style that the Content-Security-Policy would not let through.
INLINE = re.compile(
    r"<script(?![^>]*(?: src=|application/json|data-))|<style|<[^>]+ (?:style|on\w+)=\"", re.I
)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Row(NamedTuple):
    """least: who may. status: what he is answered. of: which object the address names. body: what is sent."""

    least: str
    status: int
    of: str = ""
    body: dict[str, Any] | None = None
    query: str = ""


CREATE: dict[str, Any] = {"args": ["/bin/true"], "user": "nobody"}
API = {
    "GET /services": Row(V, 200),
    "POST /services": Row(O, 202, body=CREATE),
    "GET /services/{reference}": Row(V, 200, "running"),
    "PATCH /services/{reference}": Row(O, 200, "running", {"name": ""}),
    "DELETE /services/{reference}": Row(A, 202, "stopped"),
    "POST /services/{reference}/start": Row(O, 202, "stopped"),
    "POST /services/{reference}/stop": Row(O, 202, "running"),
    "POST /services/{reference}/restart": Row(O, 202, "running"),
    "POST /services/{reference}/dump": Row(O, 202, "running"),
    "POST /services/{reference}/restore": Row(O, 409, "stopped"),  # it was not dumped
    "GET /services/{reference}/schedule": Row(V, 404, "running"),  # it has none
    "PUT /services/{reference}/schedule": Row(O, 200, "running", {"every": "1h"}),
    "DELETE /services/{reference}/schedule": Row(O, 404, "running"),
    "POST /services/{reference}/check": Row(O, 202, "running"),
    "GET /services/{reference}/logs": Row(V, 200, "running"),
    "GET /services/{reference}/now": Row(V, 503, "running"),  # no node answers here
    "GET /services/{reference}/samples": Row(V, 200, "running"),
    "GET /loads": Row(V, 200),
    "POST /check-command": Row(O, 202, body=CREATE),
    "GET /jobs": Row(V, 200),
    "GET /jobs/{reference}": Row(V, 200, "job"),
    "GET /jobs/{reference}/log": Row(V, 200, "job"),
    "POST /jobs/{reference}/cancel": Row(O, 200, "job"),
    "POST /jobs/{reference}/retry": Row(O, 409, "job"),  # it has not failed
    "POST /check": Row(O, 202),
    "GET /nodes": Row(V, 200),
    "GET /node": Row(V, 200),
    "GET /images": Row(V, 200),
    "POST /images": Row(O, 202, body={"file": "a.tar.zst"}),
    "GET /images/{reference}": Row(V, 200, "image"),
    "PATCH /images/{reference}": Row(O, 200, "image", {"name": ""}),
    "DELETE /images/{reference}": Row(A, 202, "image"),
    "POST /images/{reference}/restore": Row(O, 202, "image"),
    "POST /images/{reference}/verify": Row(O, 202, "image"),
    "POST /images/{reference}/export": Row(O, 202, "image"),
    "GET /archives": Row(V, 200),
    "GET /images/{reference}/contents": Row(V, 200, "image"),
    "GET /images/{reference}/compare/{other}": Row(V, 409, "image"),
    "POST /images/{reference}/environment": Row(A, 202, "image"),  # it does not say that it isn't root's
    "GET /images/{reference}/environment/{job}": Row(V, 404, "image"),  # nobody has asked for it
}
PAGES = {
    "GET /api/v1/openapi.json": Row(ANYBODY, 200),
    "GET /api/v1/docs": Row(ANYBODY, 200),
    "GET /login/": Row(ANYBODY, 200),
    "POST /login/": Row(ANYBODY, 200),
    "PUT /login/": Row(ANYBODY, 200),  # Django's forms take it as a POST
    "POST /logout/": Row(LOGGED_IN, 302),
    "GET /account/password/": Row(LOGGED_IN, 200),
    "POST /account/password/": Row(LOGGED_IN, 200),
    "PUT /account/password/": Row(LOGGED_IN, 200),
    "GET /account/tokens/": Row(LOGGED_IN, 200),
    "POST /account/tokens/": Row(LOGGED_IN, 200, body={"label": "x", "days": "7"}),
    "POST /account/tokens/{pk}/revoke/": Row(LOGGED_IN, 404, "token"),  # somebody else's
    "GET /": Row(V, 200),
    "GET /metrics": Row(V, 200),
    "GET /live/": Row(ANYBODY, 200, query="?on=/services/"),  # a stranger is only told to load anew
    "GET /audit/": Row(AUDITOR, 200),
    "GET /audit.csv": Row(AUDITOR, 200),
    "POST /nodes/{pk}/check/": Row(O, 302, "node"),
    "GET /jobs/": Row(V, 200),
    "POST /jobs/{reference}/retry/": Row(O, 302, "job"),
    "GET /jobs/{reference}/": Row(V, 200, "job"),
    "POST /jobs/{reference}/cancel/": Row(O, 302, "job"),
    "GET /services/": Row(V, 200),
    "GET /services/new/": Row(V, 200),
    "POST /services/new/": Row(O, 302, body={"command": "/bin/true", "user": "nobody"}),
    "GET /services/bulk/": Row(V, 200, query="?do=dump"),
    "POST /services/bulk/": Row(O, 302, body={"do": "dump"}),
    "GET /services/{reference}/": Row(V, 200, "running"),
    "GET /services/{reference}/logs/": Row(V, 200, "running"),
    "POST /services/{reference}/start/": Row(O, 302, "stopped"),
    "POST /services/{reference}/stop/": Row(O, 302, "running"),
    "POST /services/{reference}/restart/": Row(O, 302, "running"),
    "POST /services/{reference}/dump/": Row(O, 302, "running"),
    "POST /services/{reference}/schedule/": Row(O, 302, "running", {"every": "1h"}),
    "POST /services/{reference}/change/": Row(O, 302, "running"),
    "POST /services/{reference}/delete/": Row(A, 302, "stopped"),
    "POST /services/check-command/": Row(O, 200, body={"command": "/bin/true", "user": "nobody"}),
    "GET /services/{reference}/now/": Row(V, 200, "running"),
    "POST /services/{reference}/check/": Row(O, 302, "running"),
    "POST /services/{reference}/environment/": Row(O, 200, "running"),
    "GET /images/": Row(V, 200),
    "GET /images/compare/": Row(V, 200),
    "GET /images/prune/": Row(A, 200),
    "POST /images/prune/": Row(A, 302, body={"id": "0"}),
    "GET /images/{reference}/": Row(V, 200, "image"),
    "POST /images/{reference}/environment/": Row(A, 302, "image"),
    "POST /images/{reference}/restore/": Row(O, 302, "image"),
    "POST /images/{reference}/verify/": Row(O, 302, "image"),
    "POST /images/{reference}/rename/": Row(O, 302, "image"),
    "POST /images/{reference}/delete/": Row(A, 302, "image"),
}
# Each form of an action is a page of its own, with the same address.
PAGES |= {
    words.replace("POST", "GET"): Row(V, 200, row.of)
    for words, row in PAGES.items()
    if re.match(r"POST /(services|images)/\{reference\}/(?!check|environment)", words)
}
ACTIONS = {
    "/services/{reference}/{action}/": tuple(SERVICE_ACTIONS),
    "/images/{reference}/{action}/": tuple(IMAGE_ACTIONS),
}


def addresses(patterns: list[URLPattern | URLResolver], before: str = "/") -> Iterator[str]:
    """Yield each address that the site knows, with its parts in braces."""
    for pattern in patterns:
        path = before + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            yield from addresses(pattern.url_patterns, path)
        else:
            yield path


def pages() -> set[str]:
    """Return the addresses of pages, an action each its own."""
    found = set()
    for path in addresses(get_resolver().url_patterns):
        if not path.startswith("/admin/") and path not in {"/api/v1" + call for call in calls_by_path()}:
            found |= {path.replace("{action}", action) for action in ACTIONS.get(path, ("{action}",))}
    return found - {"/api/v1/"}  # leads nowhere


@cache
def calls_by_path() -> dict[str, set[str]]:
    """Return the methods of each of the API's addresses, as it describes itself."""
    described = api.get_openapi_schema()["paths"]
    return {
        path.removeprefix("/api/v1"): {method.upper() for method in methods}
        for path, methods in described.items()
    }


def test_every_address_has_a_row() -> None:
    calls = {f"{method} {path}" for path, methods in calls_by_path().items() for method in methods}
    remedy = "add a row to tests/test_matrix.py (or take one away)"
    assert calls == set(API), remedy
    assert pages() == {words.split()[1] for words in PAGES}, remedy


class Objects:
    """What addresses name; those that a request used up are made anew."""

    def __init__(self) -> None:
        self.owner = member(O)
        self._made: dict[str, str] = {}
        self._make: dict[str, Callable[[], str]] = {
            "running": lambda: running_service(user="nobody").pk,
            "stopped": lambda: stopped_service(user="nobody").pk,
            "image": lambda: recorded_image(stopped_service(user="nobody")).pk,
            "job": lambda: operations.request_check(Node.objects.local(), actor="root", source="manage").pk,
            "node": lambda: str(Node.objects.local().pk),
            "token": self._token,
        }

    def _token(self) -> str:
        issue(self.owner)
        return str(ApiToken.objects.filter(user=self.owner).latest("pk").pk)

    def of(self, kind: str) -> str:
        if kind not in self._made:
            self._made[kind] = self._make[kind]()
        return self._made[kind]

    def used(self, kind: str) -> None:
        self._made.pop(kind, None)


def by_token(user: User, **token: Any) -> Client:
    return Client(headers={"authorization": f"Bearer {issue(user, **token)}"}, raise_request_exception=False)


def by_session(user: User | None) -> Client:
    client = Client(raise_request_exception=False)
    if user:
        client.force_login(user)
    return client


def ask(client: Client, method: str, path: str, body: dict[str, Any] | None, *, form: bool) -> int:
    if form:
        answer = client.generic(method, path) if body is None else client.post(path, body)
    else:
        text = json.dumps(body or {}) if method in {"POST", "PUT", "PATCH"} else ""
        answer = client.generic(method, path, text, content_type="application/json")
    if answer.status_code == 302 and answer["Location"].startswith("/login/?next="):
        return 401
    return answer.status_code


def may(who: str | None, least: str) -> bool:
    if least == ANYBODY:
        return True
    if who is None:
        return False
    if least == LOGGED_IN:
        return True
    # The auditor stands beside the ladder: he may do no more than a viewer, but see the audit.
    if least == AUDITOR:
        return who in {AUDITOR, A}
    ladder = [V, O, A]
    step = V if who == AUDITOR else who
    return step in ladder and ladder.index(step) >= ladder.index(least)


def test_the_matrix_of_the_api() -> None:
    objects = Objects()
    rolled = {role: member(role) for role in ROLES}
    actors: list[tuple[str, str | None, Client]] = [
        ("anonymous", None, by_session(None)),
        ("expired token", None, by_token(rolled[A], expires_at=timezone.now() - timedelta(seconds=1))),
        ("token of somebody without a role", "guest", by_token(member(None))),
        ("session of somebody without a role", "guest", by_session(member(None))),
        *((f"{role}'s token", role, by_token(user)) for role, user in rolled.items()),
        *((f"{role}'s session", role, by_session(user)) for role, user in rolled.items()),
    ]
    wrong = []
    boss = by_token(rolled[A])
    for words, row in API.items():
        method, path = words.split()
        for name, who, client in actors:
            TOKENS.forget()
            address = "/api/v1" + re.sub(r"\{\w+\}", objects.of(row.of) if row.of else "", path)
            wanted = row.status if may(who, row.least) else 401 if who is None else 403
            got = ask(client, method, address, row.body, form=False)
            if got != wanted:
                wrong.append(f"{words}: {name} is answered {got}, not {wanted}")
            if got < 400 and method != "GET":
                objects.used(row.of)
        for method in set(METHODS) - calls_by_path()[path]:
            got = ask(boss, method, "/api/v1" + re.sub(r"\{\w+\}", "0", path), {}, form=False)
            if got != 405:
                wrong.append(f"{method} {path}: admin is answered {got}, not 405")
    assert not wrong, "\n".join(wrong)
    # A token's job is its owner's, whoever else is logged in.
    client = by_token(rolled[O])
    client.force_login(rolled[A])
    ask(client, "POST", "/api/v1/check", {}, form=False)
    assert Job.objects.latest("queued_at").requested_by == rolled[O].username


def test_the_matrix_of_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.asking.PATIENCE", 0)  # there is no worker whose answer could come
    objects = Objects()
    rolled: dict[str, User | None] = {role: member(role) for role in ROLES}
    users = {**rolled, "guest": member(None), "anonymous": None}
    everybody = [(name, name if user else None, by_session(user)) for name, user in users.items()]
    everybody.append(("expired token", None, by_token(member(A), expires_at=timezone.now())))
    wrong = []
    for path in sorted(pages()):
        rows = {method: PAGES[f"{method} {path}"] for method in METHODS if f"{method} {path}" in PAGES}
        least = min((row.least for row in rows.values()), key=[ANYBODY, LOGGED_IN, *ROLES].index)
        for method in METHODS:
            row = rows.get(method)
            for name, who, its in everybody:
                if row is None and name not in {A, "anonymous"}:
                    continue  # for a method that no address knows two tell enough
                client = by_session(users[name]) if (method, path) == ("POST", "/logout/") and who else its
                kind = next(row.of for row in rows.values())
                address = (
                    re.sub(r"\{\w+\}", objects.of(kind) if kind else "", path)
                    + rows.get("GET", Row(V, 0)).query
                )
                got = ask(client, method, address, row.body if row else None, form=True)
                if path.startswith("/api/"):
                    wanted = 405 if row is None else 200
                elif row is None:  # a page that one may open knows no such method
                    wanted = 405 if may(who, least) or (who and may(who, V)) else 403 if who else 401
                else:
                    wanted = row.status if may(who, row.least) else 403 if who else 401
                if got != wanted:
                    wrong.append(f"{method} {path}: {name} is answered {got}, not {wanted}")
                if got < 400 and method != "GET" and kind:
                    objects.used(kind)
    assert not wrong, "\n".join(wrong)


def test_a_stranger_hears_nothing_from_the_streams() -> None:
    service = running_service("web")
    for path in ("/live/?on=/services/", f"/live/?on=/services/{service.pk}/logs/"):
        for client in (by_session(None), by_session(member(None))):
            assert client.get(path).content == b"event: reload\ndata: \n\n"


def test_the_matrix_of_the_admin_pages() -> None:
    """Closed to all but admins; no fault, nothing inline, nothing to edit that only workers write."""
    stopped = stopped_service()
    recorded_image(stopped)
    issue(member(O))
    users = {role: member(role) for role in ROLES}
    everybody = [("anonymous", by_session(None)), *((role, by_session(user)) for role, user in users.items())]
    wrong = []
    for path in addresses(get_resolver().url_patterns):
        if not path.startswith("/admin/") or "(?P" in path:
            continue
        address = re.sub(r"\{\w+\}", "1", path)
        for name, client in everybody:
            answer = client.get(address, follow=True)
            got, last = answer.status_code, answer.redirect_chain[-1][0] if answer.redirect_chain else address
            if name == "anonymous":
                fine = (got, last.startswith("/login/")) == (200, True)
            elif name == A:
                fine = got in {200, 403, 404, 405}
            else:
                fine = got == 403 or (got == 200 and last.startswith("/login/"))
            fine = fine and not INLINE.search(answer.content.decode())
            if not fine:
                wrong.append(f"GET {path}: {name} is answered {got} at {last}")
            if "logout" in path:
                continue
            for method in METHODS[1:]:
                sent = client.generic(method, address).status_code
                if sent >= 500 or (name != A and sent == 200):
                    wrong.append(f"{method} {path}: {name} is answered {sent}")
    assert not wrong, "\n".join(wrong)
    boss = by_session(users[A])
    for model in ("services/job", "services/service", "services/auditevent", "images/image"):
        assert boss.get(f"/admin/{model}/add/").status_code == 403, model


def test_a_session_changes_nothing_without_the_csrf_token() -> None:
    objects = Objects()
    browser = Client(enforce_csrf_checks=True, raise_request_exception=False)
    browser.force_login(User.objects.create_superuser("boss"))
    for table, before in ((API, "/api/v1"), (PAGES, "")):
        for words, row in table.items():
            own, path = words.split()
            if own == "GET":
                continue
            address = before + re.sub(r"\{\w+\}", objects.of(row.of) if row.of else "", path)
            body = json.dumps(row.body or {}) if before else ""
            for method in METHODS[1:]:
                answer = browser.generic(method, address, body, content_type="application/json")
                wanted = {403} if method == own else {403, 404, 405}
                assert answer.status_code in wanted, (method, path, answer.status_code, answer.content)
