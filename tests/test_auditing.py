"""The record of who asked for what: jobs, names, and what was refused."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from images import operations as image_operations
from services import operations
from services.auditing import ACTIONS, SOURCES, TARGETS, record_audit
from services.authentication import issue
from services.models import AuditEvent, Job, Service
from tests.rows import member, recorded_image, running_service, stopped_service
from tests.site_fixtures import text_of

pytestmark = pytest.mark.django_db(transaction=True)


def test_each_request_is_on_the_record_with_who_when_where_and_what() -> None:
    service = running_service("web")
    token = issue(User.objects.create_superuser("boss"))
    api = Client(headers={"authorization": f"Bearer {token}"}, REMOTE_ADDR="192.0.2.7")
    path = f"/api/v1/services/{service.pk}"
    job = api.post(f"{path}/dump", '{"leave_running": true}', content_type="application/json").json()
    api.patch(path, '{"name": "shop"}', content_type="application/json")
    api.post(f"/api/v1/jobs/{job['object_id']}/cancel", "{}", content_type="application/json")
    cancelled, renamed, dumped, created = AuditEvent.objects.all()
    assert (created.actor, created.source, created.action, created.address) == ("root", "manage", "start", "")
    assert (dumped.actor, dumped.source, dumped.action, dumped.outcome) == ("boss", "api", "dump", "asked")
    assert (dumped.address, dumped.target_kind, dumped.target_id) == ("192.0.2.7", "service", service.pk)
    assert dumped.detail == {"job": job["object_id"], "image": job["image"], "leave_running": True}
    assert (renamed.action, renamed.outcome, renamed.detail) == ("rename", "done", {"name": "shop"})
    assert (cancelled.target_kind, cancelled.target_id) == ("job", job["object_id"])


def test_the_record_says_what_the_deleted_was_called() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("boss", password="long enough 1"))
    service, nameless = stopped_service("web"), stopped_service()
    image = recorded_image(service)
    image_operations.rename(image, "before-upgrade", "root", "manage")
    told = (("service", service.pk, "web"), ("image", image.pk, "before-upgrade"))
    page = text_of(client, "/audit/")
    for kind, pk, name in told:
        assert f'href="/{kind}s/{pk}/">{pk[:12]}</a> <span class="small">{kind} {name}</span>' in page, kind
    image_operations.request_delete(image, actor="root", source="manage")
    for each in (service, nameless):
        job = operations.request_delete_service(each, actor="root", source="manage")
        details = AuditEvent.objects.filter(action="delete_service", target_id=each.pk)
        named = {"name": "web"} if each is service else {}
        assert [event.detail for event in details] == [{"job": job.pk, **named, "stop": False}]
    image_operations.forget(image.pk)
    Service.objects.all().delete()
    page = text_of(client, "/audit/")
    for kind, pk, name in told:
        assert f"/{kind}s/{pk}/" not in page
        assert f'<span class="id">{pk[:12]}</span> <span class="small">{kind} (deleted)</span>' in page, kind
        assert f"delete {kind} " in page and f'<span class="small long">name: {name}' in page, kind


def test_one_can_look_for_each_word_of_the_record() -> None:
    service = running_service("web")
    operations.change(service, restore_on_boot=True, actor="root", source="manage")
    operations.request_stop(service, actor="agent", source="agent")
    assert set(AuditEvent.objects.values_list("action", flat=True)) <= set(ACTIONS)
    assert set(AuditEvent.objects.values_list("source", flat=True)) <= set(SOURCES)


def test_an_environment_is_shown_to_operators_and_that_is_on_the_record() -> None:
    service = running_service("web")
    Service.objects.update(env={"PASSWORD": "hush"})
    clients = {
        role: Client(headers={"authorization": f"Bearer {issue(member(role))}"})
        for role in ("viewer", "operator")
    }
    path = f"/api/v1/services/{service.pk}"
    for client in clients.values():
        for asked in (path, "/api/v1/services", "/api/v1/services?all=1", "/api/v1/jobs", "/services/"):
            assert b"hush" not in client.get(asked).content
        assert client.get(path).json()["env"] == {"PASSWORD": None}
    before = AuditEvent.objects.count()
    assert clients["viewer"].get(f"{path}?show_env=1").status_code == 403
    assert clients["operator"].get(f"{path}?show_env=1").json()["env"] == {"PASSWORD": "hush"}
    seen, refused = AuditEvent.objects.all()[: AuditEvent.objects.count() - before]
    assert (seen.action, seen.target_id, seen.outcome) == ("show_env", service.pk, "done")
    assert refused.outcome == "refused"


def test_what_is_refused_is_on_the_record_too() -> None:
    service = running_service()
    before = AuditEvent.objects.count()
    api = Client(headers={"authorization": f"Bearer {issue(User.objects.create_user('guest'))}"})
    answer = api.post(f"/api/v1/services/{service.pk}/stop", json.dumps({}), content_type="application/json")
    assert answer.status_code == 403
    refused = AuditEvent.objects.first()
    assert refused and AuditEvent.objects.count() == before + 1
    assert (refused.actor, refused.source, refused.outcome) == ("guest", "api", "refused")
    assert refused.detail == {"method": "POST", "path": f"/api/v1/services/{service.pk}/stop"}
    # A stranger is not known, and could fill the disk.
    assert Client().post(f"/api/v1/services/{service.pk}/stop").status_code == 401
    assert AuditEvent.objects.count() == before + 1


def test_what_is_done_to_users_is_on_the_record() -> None:
    client, other = Client(), member("viewer")
    boss = User.objects.create_superuser("boss", password="long enough 1")
    client.force_login(boss)
    issue(other)
    token = other.api_tokens.get()
    role = Group.objects.get(name="operator")
    given = {
        "username": other.username,
        "is_active": "on",
        "groups": [role.pk],
        "date_joined_0": "2026-01-01",
    }
    before = AuditEvent.objects.count()
    for address, sent in (
        (f"/admin/auth/user/{other.pk}/change/", given | {"date_joined_1": "00:00:00"}),
        (f"/admin/services/apitoken/{token.pk}/delete/", {"post": "yes"}),
        (f"/admin/auth/user/{other.pk}/delete/", {"post": "yes"}),
    ):
        assert client.post(address, sent).status_code == 302, address
    told = [
        (event.actor, event.action, event.target_kind, event.target_id, event.detail)
        for event in AuditEvent.objects.order_by("pk")[before:]
    ]
    assert told == [
        ("boss", "edit", "user", other.username, {"fields": ["Groups", "Date joined"]}),
        ("boss", "remove", "token", str(token), {}),
        ("boss", "remove", "user", other.username, {}),
    ]
    assert {action for _, action, *_ in told} <= set(ACTIONS) and {kind for _, _, kind, *_ in told} <= set(
        TARGETS
    )


def test_a_login_that_fails_is_on_the_record_if_there_is_such_a_user() -> None:
    User.objects.create_user("ann", password="long enough 1")
    for name in ("ann", "hunter2"):
        assert Client().post("/login/", {"username": name, "password": "wrong"}).status_code == 200
    failed = AuditEvent.objects.filter(action="login")
    assert [(event.actor, event.outcome) for event in failed] == [("ann", "refused")]


def test_the_record_is_searched_by_a_services_name_by_time_and_for_what_was_refused() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("boss", password="long enough 1"))
    web, old = running_service("web"), running_service("old", pid=7)
    for service in (web, old):
        operations.change(service, restore_on_boot=True, actor="root", source="manage")
    AuditEvent.objects.filter(target_id=old.pk).update(at=timezone.now() - timedelta(days=2))

    def rows(**query: str) -> int:
        page = client.get("/audit/", query).content.decode()
        csv = b"".join(_all(client.get("/audit.csv", query))).decode()
        found = page.count('<tr id="audit-')
        assert csv.count("\n") - 1 == found, query
        return found

    assert rows(q="web") == rows(q="WE") == rows(q=web.pk) == 2
    assert text_of(client, "/jobs/?q=WE").count('<tr id="job-') == Job.objects.filter(service=web).count()
    assert rows(since="last_day") == 2 and rows(since="last_week") == 4 and rows(since="ever") == 4
    day = (timezone.now() - timedelta(days=2)).date().isoformat()
    assert rows(**{"from": day}) == 4 and rows(**{"from": day, "to": day}) == rows(to=day) == 2
    assert rows(to="1999-12-31") == 0 and rows(to="9999-12-31") == rows(to="20260101") == rows(to="x") == 4
    assert f'type="date" name="to" value="{day}"' in text_of(client, f"/audit/?to={day}")
    part = client.get(f"/audit/?to={day}", headers={"HX-Request": "true", "HX-Target": "part-audit"})
    assert f'href="/audit.csv?to={day}"' in part.content.decode(), "what the filter left, without a new page"
    record_audit(User.objects.create_user("Änne Smith&Co"), "web", "login")
    assert rows(q="Änne Smith&Co") == rows(q="Änne SMITH&co") == 1 and rows(q="smith") == 0
    assert "?q=%C3%84nne%20Smith%26Co" in text_of(client, "/audit/")
    operator = Client()
    operator.force_login(member("operator"))
    assert operator.get("/audit/").status_code == 403
    assert rows(action="refused") == 1
    # And each says what it was that was done or refused.
    page = text_of(client, "/audit/")
    assert "method: GET; path: /audit/" in page and "restore on boot: yes" in page


def _all(answer: Any) -> list[bytes]:
    async def read() -> list[bytes]:
        return [piece async for piece in answer.streaming_content]

    return asyncio.run(read())
