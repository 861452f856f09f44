"""The roles: who sees, who acts, who administers. Asked of the operations."""

import asyncio
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.test import AsyncClient, Client

from images import operations as image_operations
from images.models import Image
from services import operations
from services.actors import may
from services.authentication import issue, user_of
from services.models import Job, Node, Service
from services.problems import Problem
from services.roles import ADMINISTER, AUDIT, OPERATE, RESTORE_FOREIGN, ROLES, SEE, make_groups
from tests.rows import member, recorded_image, running_service, stopped_service

pytestmark = pytest.mark.django_db(transaction=True)


def create(actor: User, **fields: Any) -> Job:
    described = {"argv": ["/bin/true"], "user": "nobody", **fields}
    return operations.request_create(node=Node.objects.local(), **described, actor=actor, source="web")


def stopped(user: str = "nobody") -> Service:
    return stopped_service(user=user)


def running(user: str = "nobody") -> Service:
    return running_service(user=user)


def image(user: str = "nobody") -> Image:
    return recorded_image(stopped(user))


ASKED: dict[str, Any] = {"source": "web"}
# What it is, who may do it at least, and the asking itself.
ACTS: list[tuple[str, str, Callable[[User], object]]] = [
    ("create a service", "operator", create),
    ("start", "operator", lambda who: operations.request_start(stopped(), actor=who, **ASKED)),
    ("stop", "operator", lambda who: operations.request_stop(running(), actor=who, **ASKED)),
    ("restart", "operator", lambda who: operations.request_restart(running(), actor=who, **ASKED)),
    ("dump", "operator", lambda who: operations.request_dump(running(), actor=who, **ASKED)),
    ("restore", "operator", lambda who: image_operations.request_restore(image(), actor=who, **ASKED)),
    ("verify", "operator", lambda who: image_operations.request_verify(image(), actor=who, **ASKED)),
    ("check", "operator", lambda who: operations.request_check(Node.objects.local(), actor=who, **ASKED)),
    ("cancel", "operator", lambda who: operations.cancel(queued_job(), who)),
    ("rename a service", "operator", lambda who: operations.change(stopped(), name="", actor=who, **ASKED)),
    (
        "let root's come back after a boot",
        "admin",
        lambda who: operations.change(stopped("root"), restore_on_boot=True, actor=who, **ASKED),
    ),
    ("rename an image", "operator", lambda who: image_operations.rename(image(), "", who)),
    (
        "delete a service",
        "admin",
        lambda who: operations.request_delete_service(stopped(), actor=who, **ASKED),
    ),
    ("delete an image", "admin", lambda who: image_operations.request_delete(image(), actor=who, **ASKED)),
    ("create as root", "admin", lambda who: create(who, user="root")),
    ("create as nobody in particular, which is root", "admin", lambda who: create(who, user="")),
    ("create as number 0", "admin", lambda who: create(who, user="000")),
    ("create in root's group", "admin", lambda who: create(who, group="0")),
    ("create as the site's user", "admin", lambda who: create(who, user="miehisto")),
    ("create in the site's group", "admin", lambda who: create(who, group="miehisto")),
    ("create in the user's own group", "operator", lambda who: create(who, user="games", group="60")),
    ("create in a group of others", "admin", lambda who: create(who, user="games", group="disk")),
    ("create for a number in a group of others", "admin", lambda who: create(who, user="71234", group="42")),
    ("create with a bind", "admin", lambda who: create(who, binds=["/tmp/sudoers:/etc/sudoers"])),
    ("add a capability", "admin", lambda who: create(who, privileges={"cap_add": ["DAC_OVERRIDE"]})),
    ("let setuid programs be", "admin", lambda who: create(who, privileges={"new_privileges": True})),
    ("drop a capability", "operator", lambda who: create(who, privileges={"cap_drop": ["CHOWN"]})),
    ("start root's", "admin", lambda who: operations.request_start(stopped("root"), actor=who, **ASKED)),
    (
        "dump with data",
        "operator",
        lambda who: operations.request_dump(running(), actor=who, carry=["/srv"], **ASKED),
    ),
    (
        "dump root's with data",
        "admin",
        lambda who: operations.request_dump(running("root"), actor=who, carry=["/etc"], **ASKED),
    ),
    ("restart root's", "admin", lambda who: operations.request_restart(running("root"), actor=who, **ASKED)),
    (
        "restore root's",
        "admin",
        lambda who: image_operations.request_restore(image("root"), actor=who, **ASKED),
    ),
]


def queued_job() -> Job:
    return operations.request_check(Node.objects.local(), actor="root", source="manage")


@pytest.mark.parametrize(("what", "least", "ask"), ACTS, ids=[act[0] for act in ACTS])
def test_each_act_wants_its_role(what: str, least: str, ask: Callable[[User], object]) -> None:
    for role in (None, *ROLES):
        actor = member(role)
        if role is not None and list(ROLES).index(role) >= list(ROLES).index(least):
            ask(actor)
            continue
        with pytest.raises(Problem) as refused:
            ask(actor)
        assert (refused.value.code, refused.value.http_status) == ("not_allowed", 403)
        assert actor.username in refused.value.message and "role" in refused.value.remedy
        if role == "operator":
            assert repr(least) in refused.value.remedy
        assert not Job.objects.filter(requested_by=actor.username).exists()
        assert not Service.objects.filter(created_by=actor.username).exists()


def test_roles_are_groups_made_with_the_database() -> None:
    held = {
        role: {p for p in (SEE, AUDIT, OPERATE, ADMINISTER, RESTORE_FOREIGN) if may(member(role), p)}
        for role in ROLES
    }
    assert held == {
        "viewer": {SEE},
        "auditor": {SEE, AUDIT},
        "operator": {SEE, OPERATE},
        "admin": {SEE, AUDIT, OPERATE, ADMINISTER, RESTORE_FOREIGN},
    }
    for role, permissions in ROLES.items():
        assert Group.objects.get(name=role).permissions.count() == len(set(permissions)), "each one exists"
    Group.objects.get(name="viewer").permissions.clear()
    Group.objects.get(name="admin").delete()
    make_groups()
    make_groups()
    assert may(member("viewer"), SEE) and may(member("admin"), ADMINISTER)


def test_who_saw_the_audit_before_there_were_auditors_still_does() -> None:
    Group.objects.get(name="auditor").delete()
    own = Group.objects.create(name="night shift")
    own.permissions.set(Permission.objects.filter(codename__in=("see", "administer")))
    make_groups()
    user = member(None)
    user.groups.add(own)
    client = Client()
    client.force_login(user)
    assert "/admin/" in client.get("/audit/").content.decode()
    client.force_login(member("auditor"))
    assert "/admin/" not in client.get("/audit/").content.decode()


def test_who_has_no_role_sees_nothing() -> None:
    running_service("web")
    nobody = Client()
    nobody.force_login(member(None))
    for page in ("/", "/jobs/", "/images/", "/services/web/logs/"):
        answer = nobody.get(page)
        assert (answer.status_code, b"may not see anything here" in answer.content) == (403, True), page
        assert b"web" not in answer.content.replace(b"webp", b"")
    assert nobody.get("/api/v1/services").status_code == 403
    token = issue(member(None))
    assert Client(headers={"authorization": f"Bearer {token}"}).get("/api/v1/services").status_code == 403


def test_a_deactivated_user_is_out_at_once() -> None:
    user = member("admin")
    browser, token = Client(), issue(user)
    browser.force_login(user)
    program = Client(headers={"authorization": f"Bearer {token}"})
    assert browser.get("/").status_code == program.get("/api/v1/services").status_code == 200
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert browser.get("/").status_code == 302
    assert program.get("/api/v1/services").status_code == 401
    assert user_of(token) is None
    user.refresh_from_db()
    with pytest.raises(Problem):
        create(user)
    User.objects.filter(pk=user.pk).update(is_active=True, is_superuser=True)
    assert browser.get("/").status_code == 200, "and back as soon"


@pytest.mark.parametrize(
    "path", ["/api/v1/services/web/logs?follow=1", "/live/?on=/services/web/logs/", "/live/?on=/jobs/"]
)
def test_a_deactivated_user_hears_no_more_of_what_he_listens_to(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.authentication.HEARD_FOR", 0)
    monkeypatch.setattr("dashboard.live.KEEP_ALIVE", 0.1)
    service = running_service("web")
    log = Path(settings.MIEHISTO_LOG_DIR) / f"{service.pk}.log"
    log.write_text("a line\n")
    user = member("viewer")

    async def listen() -> list[bytes]:
        browser = AsyncClient()
        await browser.aforce_login(user)
        answer: Any = await browser.get(path)
        assert answer.status_code == 200
        stream = aiter(answer.streaming_content)
        heard = [await anext(stream)]
        await User.objects.filter(pk=user.pk).aupdate(is_active=False)
        async with asyncio.timeout(10):
            heard += [piece async for piece in stream]
        return heard

    assert asyncio.run(listen())
    log.unlink()


def test_roots_own_mhctl_may_everything() -> None:
    call_command("daemon_token", stdout=StringIO())
    root = User.objects.get(username="root")
    assert all(may(root, permission) for permissions in ROLES.values() for permission in permissions)
