"""What was typed into a dialog and can't be used: it is said there, in its own words, and nothing is lost."""

from __future__ import annotations

import html
import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from images import operations as image_operations
from images.models import Image, Schedule
from services.models import Job
from tests.rows import made_service, recorded_image, running_service, stopped_service
from tests.site_fixtures import text_of

pytestmark = pytest.mark.django_db(transaction=True)


def filled(page: str) -> dict[str, str]:
    """Return what is in a dialog's fields, "on" for a tick; what is empty is left out."""
    found = {}
    for kind, name, rest in re.findall(r'<input type="(\w+)" id="f-(\w+)" name="\w+"([^>]*)>', page):
        value = re.search(r' value="([^"]*)"', rest)
        found[name] = (" checked" in rest) * "on" if kind == "checkbox" else value[1] if value else ""
    return {name: html.unescape(value) for name, value in found.items() if value}


def said(page: str) -> str:
    """Return the one thing that a dialog complains about."""
    [notice] = re.findall(r'role="alert">([^<]*)<', page)
    return html.unescape(notice)


TYPED: tuple[tuple[str, dict[str, str], int, str, str], ...] = (
    (
        "schedule",
        {"every": "1h", "cron": "0 3 * * *", "keep": "7"},
        422,
        "every",
        "Empty one of the two fields",
    ),
    ("schedule", {"cron": "99 * * * *", "keep": "7"}, 422, "cron", "no cron expression"),
    ("schedule", {"every": "1s", "keep": "7"}, 422, "every", "The value of “Every” must be a time"),
    ("schedule", {"every": "1h", "keep": "0"}, 422, "keep", "The value of “Images to keep” must be"),
    ("schedule", {"every": "1h", "keep": "many"}, 422, "keep", "'many' is no number"),
    ("change", {"name": "shop", "restore_on_boot": "on"}, 409, "name", "Another service is named"),
    ("change", {"name": "a b"}, 422, "name", "cannot be a name"),
    (
        "dump",
        {"leave_running": "on", "carry": "srv/in carry /b", "tcp_close": "on", "ghost_limit": "5"},
        422,
        "carry",
        "The value of “Carry the data in” must be an absolute path",
    ),
    ("dump", {"carry": "/srv/../in carry"}, 422, "carry", "'/srv/../in' in “Carry the data in” cannot"),
    ("dump", {"ghost_limit": "70000"}, 422, "ghost_limit", "must be a number of MiB from 0 to 65536"),
    ("stop", {"grace": "9999"}, 422, "grace", "The value of “Seconds to end by itself” must be"),
    ("restart", {"grace": "-1"}, 422, "grace", "The value of “Seconds to end by itself” must be"),
)


@pytest.mark.parametrize(("action", "typed", "status", "wrong", "told"), TYPED)
def test_a_dialog_keeps_what_was_typed(
    admin: Client, action: str, typed: dict[str, str], status: int, wrong: str, told: str
) -> None:
    made_service("shop")
    service, jobs = running_service("web"), Job.objects.count()
    address = f"/services/{service.pk}/{action}/"
    answer = admin.post(address, typed)
    page = answer.content.decode()
    assert (answer.status_code, filled(page)) == (status, typed)
    assert told in said(page)
    assert not re.search(r"mhctl|\{|/api/", said(page)), "these are the words of programs"
    assert re.findall(r'id="f-(\w+)"[^>]* aria-invalid="true" autofocus>', page) == [wrong]
    assert f'<form class="dialog" method="post" action="{address}">' in page
    folded = "<details>" in page
    assert not (folded and {"carry", "ghost_limit"} & set(typed)), "what was typed is in sight"
    assert not Schedule.objects.exists() and Job.objects.count() == jobs
    assert "alert" not in text_of(admin, f"/services/{service.pk}/"), "it is said once"


def test_an_images_name_that_cannot_be_is_kept(admin: Client) -> None:
    service = stopped_service("web")
    named, image = recorded_image(service), recorded_image(service)
    image_operations.rename(named, "taken", "root")
    for typed, status in (("taken", 409), ("a b", 422)):
        answer = admin.post(f"/images/{image.pk}/rename/", {"name": typed})
        assert (answer.status_code, filled(answer.content.decode())) == (status, {"name": typed})
        assert f"Rename image {image.pk[:12]}" in answer.content.decode()
        assert not Image.objects.get(pk=image.pk).name


def test_what_a_remedy_led_to_is_known_after_a_mistake() -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("boss", password="long enough 1"))
    service = running_service("web")
    address, job = f"/services/{service.pk}/dump/", Job.objects.get()
    page = text_of(browser, address, job=job.pk)
    for carry, status in (("srv", 422), ("/srv", 302)):
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)">', page))
        assert hidden.keys() == {"csrfmiddlewaretoken", "job"} and hidden["job"] == job.pk
        answer = browser.post(address, hidden | {"carry": carry})
        assert answer.status_code == status
        page = answer.content.decode()
    assert Job.objects.get(kind="dump").options["carry"] == ["/srv"]


def test_a_dry_run_keeps_what_was_typed_too(admin: Client) -> None:
    service = running_service("web")
    typed = {"leave_running": "on", "carry": "srv"}
    address, told = f"/services/{service.pk}/check/", "The value of “Carry the data in” must be"
    answer = admin.post(address, typed)
    page = answer.content.decode()
    assert (answer.status_code, filled(page)) == (422, typed)
    assert f'method="post" action="/services/{service.pk}/dump/"' in page
    fragment = admin.post(address, typed, headers={"HX-Request": "true"}).content.decode()
    assert told in said(page) and told in said(fragment)
    assert "<form" not in fragment


def test_no_schedule_stays_none(admin: Client) -> None:
    service = running_service("web")
    empty = {"every": "", "cron": "", "keep": "3"}
    answer = admin.post(f"/services/{service.pk}/schedule/", empty, follow=True)
    assert answer.redirect_chain == [(f"/services/{service.pk}/", 302)]
    assert not re.search(r'class="notice (error|warning)', answer.content.decode())
