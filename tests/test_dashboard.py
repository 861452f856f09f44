"""The pages' contents: lists that search and sort, permissions, escapes, and queries that don't grow."""

from __future__ import annotations

import asyncio
import csv
import html
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from django.template.loader import render_to_string
from django.test import AsyncClient, Client
from django.utils import timezone

from dashboard.axis import Axis
from dashboard.changes import Changes
from images import operations as operations_of_images
from images.models import Image, Schedule
from services import operations
from services.auditing import record_audit
from services.models import AuditEvent, Job, Service
from tests.rows import in_bulk, made_service, member, recorded_image, running_service, stopped_service, taken
from tests.site_fixtures import text_of
from worker import findings, remedies

pytestmark = pytest.mark.django_db(transaction=True)


def names_in(page: str) -> list[str]:
    return re.findall(r'<a class="name"[^>]*>([^<]+)</a>', page)


def test_a_table_is_searched_filtered_sorted_and_paged_by_its_address(admin: Client) -> None:
    in_bulk(60)
    first = text_of(admin, "/services/")
    assert "1–50 of 60 services" in first
    assert 'rel="next"' in first
    assert "51–60 of 60 services" in text_of(admin, "/services/?page=2")
    assert names_in(text_of(admin, "/services/?q=60-17")) == ["bulk-60-17"]
    latest = names_in(text_of(admin, "/services/?sort=-since"))
    assert latest[0] == "bulk-60-0"
    assert names_in(text_of(admin, "/services/?sort=since"))[0] == "bulk-60-59"
    assert "No service fits" in text_of(admin, "/services/?status=dumped")
    # What is no page, no column, no state and no text a database can look for is passed over.
    for query in ("?page=-1", "?page=999999999999", "?sort=password", "?status=x", "?q=%00", "?q=%ff"):
        assert admin.get(f"/services/{query}").status_code == 200, query
    part = admin.get("/services/?q=60-17", headers={"HX-Request": "true", "HX-Target": "part-services"})
    assert "bulk-60-17" in part.content.decode()
    assert "<html" not in part.content.decode()


def test_what_a_service_says_cannot_speak_html(admin: Client) -> None:
    evil = "<script>alert(1)</script>"
    service = running_service("web")
    Service.objects.filter(pk=service.pk).update(argv=[evil], status_reason=evil)
    recorded_image(service)
    Image.objects.update(comm=evil[:60], manifest={"origin": {"imported_by": evil}})
    job = taken(operations.request_dump(service, actor=evil, source="manage"))
    operations.fail(job, code="x", message=evil, remedy=evil, lines=[evil], service_state=None)
    image = Image.objects.get()
    record_audit(evil, "web", evil, target_kind="service", target_id=service.pk, detail={"name": evil})
    addresses = ("/", "/services/", "/images/", "/jobs/", "/audit/", "/images/compare/")
    of_rows = (f"/services/{service.pk}/", f"/images/{image.pk}/", f"/jobs/{job.pk}/")
    dialogs = (f"/services/{service.pk}/dump/", f"/images/{image.pk}/restore/")
    for address in (*addresses, *of_rows, *dialogs):
        assert evil not in text_of(admin, address), address


def test_who_may_not_act_sees_no_way_to() -> None:
    viewer = Client()
    viewer.force_login(member("viewer"))
    service, image = running_service("web"), recorded_image(stopped_service("old"))
    for address in ("/", "/services/", f"/services/{service.pk}/", "/images/", f"/images/{image.pk}/"):
        page = text_of(viewer, address)
        assert not re.search(r'href="/(services|images)/\w+/(dump|stop|restore|delete)/"', page), address
        assert "/services/new/" not in page
        assert "/audit/" not in page
    assert viewer.get("/audit/").status_code == 403
    assert viewer.post(f"/services/{service.pk}/dump/").status_code == 403
    assert "Ask an administrator" in text_of(viewer, f"/services/{service.pk}/dump/")


def test_a_service_shows_its_life(admin: Client) -> None:
    service = running_service("web", pid=77)
    job = taken(operations.request_dump(service, actor="root", source="manage"))
    operations.succeed(job, service_state=None, result={}, statistics={})
    recorded_image(Service.objects.get())
    page = text_of(admin, f"/services/{service.pk}/?life=all")
    for told in ("started", "PID 77", "dumped", "stretch run", "stretch cold", 'class="hung"'):
        assert told in page, told
    assert admin.get("/services/web/").headers["Location"] == f"/services/{service.pk}/"


def test_a_job_is_a_waterfall_and_offers_what_helps(admin: Client) -> None:
    service = running_service("web")
    job = taken(operations.request_dump(service, actor="root", source="manage"))
    operations.enter_step(job, "freezing")
    operations.fail(
        job,
        code="tcp_in_flight",
        message="A connection is half open.",
        remedy="Leave it out.",
        lines=["harmless", "Error (criu/sk-inet.c:1): In-flight connection"],
        service_state=None,
        actions=[{"action": "retry", "label": "Leave it out", "options": {"tcp_skip_in_flight": True}}],
    )
    page = text_of(admin, f"/jobs/{job.pk}/")
    assert "waiting in the queue" in page
    assert 'class="bar-bad"' in page
    assert '<mark class="wrong">Error (criu' in page
    assert '<mark class="wrong">harmless' not in page
    answer = admin.post(f"/jobs/{job.pk}/retry/", {"remedy": "0"})
    again = Job.objects.exclude(pk=job.pk).get(kind="dump")
    assert answer.headers["Location"] == f"/jobs/{again.pk}/"
    assert again.options["tcp_skip_in_flight"] is True
    assert admin.post(f"/jobs/{again.pk}/retry/", follow=True).status_code == 200, "said on its page"


def test_many_services_are_asked_for_at_once(admin: Client) -> None:
    one, other, stopped = running_service("one"), running_service("other", 99), stopped_service("idle")
    ids = [one.pk, other.pk, stopped.pk]
    asked = admin.get("/services/bulk/", {"do": "stop", "id": ids}).content.decode()
    assert "Stop 2 services" in asked
    assert "idle (stopped)" in asked
    answer = admin.post("/services/bulk/", {"do": "stop", "id": [one.pk, other.pk]}, follow=True)
    assert "Asked for 2 stop jobs." in answer.content.decode()
    assert Job.objects.filter(kind="stop", status="queued").count() == 2


def test_many_are_dumped_and_left_running_by_one_box(admin: Client) -> None:
    services = [running_service("one"), running_service("other", 99)]
    chosen = {"do": "dump", "id": [service.pk for service in services]}
    page = admin.get("/services/bulk/", chosen).content.decode()
    assert re.findall(r'<input type="(?!hidden)\w+" id="\S+" name="(\w+)"', page) == ["leave_running"]
    admin.post("/services/bulk/", chosen | {"leave_running": "on", "tcp_close": "on"})
    made = [job.options for job in Job.objects.filter(kind="dump")]
    assert made == [{"leave_running": True}, {"leave_running": True}]


def test_a_service_is_created_from_a_typed_line(admin: Client) -> None:
    typed = {"command": "/bin/echo 'two words'", "user": "nobody:nogroup", "cwd": "/tmp", "name": "web"}
    admin.post("/services/new/", typed | {"env": "A=1\n\nB=x=y"})
    made = Service.objects.get()
    assert (made.argv, made.user, made.group) == (["/bin/echo", "two words"], "nobody", "nogroup")
    assert made.env == {"A": "1", "B": "x=y"}
    assert not made.restore_on_boot
    again = admin.post("/services/new/", typed | {"restore_on_boot": "on"})
    assert again.status_code == 409
    assert "Another service is named" in again.content.decode()
    assert "two words" in again.content.decode(), "what was typed is kept"
    assert 'name="restore_on_boot" checked' in again.content.decode()
    admin.post("/services/new/", typed | {"name": "other", "restore_on_boot": "on"})
    assert Service.objects.get(name="other").restore_on_boot
    for wrong in ({"command": "'"}, {"env": "novalue"}, {"cwd": "relative"}, {"user": ""}):
        assert admin.post("/services/new/", typed | {"name": ""} | wrong).status_code == 422, wrong


def test_the_audit_leaves_as_csv_that_no_spreadsheet_runs(admin: Client) -> None:
    record_audit("=HYPERLINK(1)", "web", "rename", target_kind="service", detail={"name": "+1"})
    answer, text = csv_of(admin, "/audit.csv?action=rename")
    lines = text.splitlines()
    assert lines[0].startswith("at,actor,action")
    assert ",'=HYPERLINK(1),rename," in lines[1]
    assert len(lines) == 2
    assert "attachment" in answer.headers["Content-Disposition"]
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def csv_of(client: Client, address: str) -> tuple[Any, str]:
    """Ask as a browser does of an ASGI server, and read the stream to its end."""
    browser = AsyncClient()
    browser.cookies = client.cookies

    async def read() -> tuple[Any, str]:
        answer: Any = await browser.get(address)
        return answer, b"".join([piece async for piece in answer.streaming_content]).decode()

    return asyncio.run(read())


def test_the_csv_of_the_audit_comes_in_pieces_and_leaves_nothing_out(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.audit.BATCH", 10)
    for number in range(25):
        record_audit(f"user-{number}", "web", "login")
    running_service("web")
    _answer, text = csv_of(admin, "/audit.csv")
    rows = list(csv.DictReader(text.splitlines()))
    actors = [row["actor"] for row in rows if row["action"] == "login"]
    assert [each for each in actors if each != "boss"] == [f"user-{number}" for number in range(24, -1, -1)]
    assert [row["job_status"] for row in rows if row["action"] == "start"] == ["succeeded"]
    # The page says the same: how it ended, and on what by its name.
    page = text_of(admin, "/audit/?action=start")
    assert "succeeded" in page
    assert "service web" in page


def test_what_a_service_is_changes_by_one_dialog(admin: Client) -> None:
    service = running_service("web")
    address = f"/services/{service.pk}/change/"
    for sent, told, kept in (
        ({"name": "web", "restore_on_boot": "on"}, [("set", {"restore_on_boot": True})], ("web", True)),
        ({"name": "shop", "restore_on_boot": "on"}, [("rename", {"name": "shop"})], ("shop", True)),
        ({"name": "shop"}, [("set", {"restore_on_boot": False})], ("shop", False)),
        ({"name": "shop"}, [], ("shop", False)),
    ):
        before = AuditEvent.objects.count()
        assert admin.post(address, sent)["Location"] == f"/services/{service.pk}/"
        service.refresh_from_db()
        assert (service.name, service.restore_on_boot) == kept
        new = AuditEvent.objects.order_by("pk")[before:]
        assert [(event.action, event.detail) for event in new] == told
        checked = re.search(r'id="f-restore_on_boot"[^>]* checked', text_of(admin, address))
        assert bool(checked) is kept[1]


def test_a_schedule_is_given_and_taken_by_one_dialog_and_the_page_shows_it(admin: Client) -> None:
    service = running_service("web")
    page, address = f"/services/{service.pk}/", f"/services/{service.pk}/schedule/"
    assert "Dumped by itself" not in text_of(admin, page)
    for sent, when, keep in (
        ({"every": "90s", "cron": "", "keep": "2"}, "every 90s", 2),
        ({"every": "", "cron": "0 3 * * *", "keep": ""}, "at 0 3 * * * UTC", 2),
    ):
        assert admin.post(address, sent)["Location"] == page
        shown = text_of(admin, page)
        assert f"{when}; {keep} images kept" in shown
        assert "Last time" not in shown
        dialog = text_of(admin, address)
        for name, value in (sent | {"keep": str(keep)}).items():
            assert f'name="{name}" value="{value}"' in dialog
    admin.post(address, {"every": "1s", "cron": "", "keep": "2"})
    admin.post(address, {"every": "1h", "cron": "", "keep": "many"})
    admin.post(address, {"every": "1h", "cron": "", "keep": "0"})
    assert "at 0 3 * * * UTC" in text_of(admin, page)

    Schedule.objects.update(last_at=timezone.now(), skipped="Service web is stopped, not running.")
    shown = text_of(admin, page)
    assert "skipped" in shown
    assert "Service web is stopped, not running." in shown
    admin.post(address, {"every": "", "cron": "", "keep": "3"})
    assert "Dumped by itself" not in text_of(admin, page)
    assert not Schedule.objects.exists()


def test_only_images_that_nobody_would_miss_are_proposed_and_only_to_admins(admin: Client) -> None:
    service, other = stopped_service("web"), stopped_service("other")
    older, present, named, used, newest = (recorded_image(service) for _ in range(5))
    alone = recorded_image(other)
    operations_of_images.rename(named, "keep", "root")
    operations_of_images.request_verify(used, actor="root", source="manage")
    Service.objects.filter(pk=service.pk).update(status="dumped", image_id=present.pk)
    page = text_of(admin, "/images/prune/")
    assert re.findall(r'name="id" value="(\w+)" checked', page) == [older.pk]
    for kept in (present, named, used, newest, alone):
        assert kept.pk not in page
    operator = Client()
    operator.force_login(member("operator"))
    for answer in (operator.get("/images/prune/"), operator.post("/images/prune/", {"id": [older.pk]})):
        assert answer.status_code == 403
    told = admin.post("/images/prune/", {"id": [older.pk, present.pk]}, follow=True).content.decode()
    assert "deletion of 1 image;" in told
    assert "all there is of it" in told
    assert [job.image_id for job in Job.objects.filter(kind="delete_image")] == [older.pk]


def test_a_remedy_leads_to_what_can_be_done(admin: Client) -> None:
    service = running_service("web")
    Service.objects.filter(pk=service.pk).update(cwd="/srv/app")
    job = taken(operations.request_dump(service, actor="root", source="manage", leave_running=True))
    for code, wanted in (
        ("pool_full", "/images/prune/"),
        ("inotify_handle", f"/dump/?fill=force_irmap&amp;job={job.pk}&amp;leave_running=on"),
        ("service_died_with_criu", f"/images/?q={service.pk}"),
        ("service_died_with_criu", f"/services/{service.pk}/start/"),
    ):
        Job.objects.filter(pk=job.pk).update(
            status="failed", error_code=code, error_message="No.", error_actions=remedies.actions(code)
        )
        assert wanted in text_of(admin, f"/jobs/{job.pk}/")
    assert re.search(
        r'name="force_irmap" value="/srv/app"',
        text_of(admin, f"/services/{service.pk}/dump/?fill=force_irmap"),
    )


def test_a_dry_run_calls_the_options_as_the_dialog_does_and_leads_back_to_it(admin: Client) -> None:
    service = running_service("web")
    typed = {"leave_running": "on", "carry": "/srv/a&b /srv/c", "freeze_timeout": "2.5", "ghost_limit": "1"}
    asked = admin.post(f"/services/{service.pk}/check/", typed | {"grace": "", "force_irmap": ""})
    job = taken(Job.objects.get(kind="check_service"))
    assert asked["Location"] == f"/jobs/{job.pk}/"
    found = {
        "verdict": "options",
        "sentence": "Yes, with these options: ghost_limit.",
        "options": {"ghost_limit": 3 << 20},
        "findings": [findings.deleted_too_large(7, "/tmp/x", 2_500_000, 1 << 20).as_dict()],
        "connections": {"connected": 0},
        "estimate": {"image_bytes": 1},
    }
    operations.succeed(job, service_state=None, result=found, statistics={})
    page = text_of(admin, f"/jobs/{job.pk}/")
    assert "Deleted files up to (MiB): 3" in page
    assert "(option “Deleted files up to (MiB)”)" in page
    link = re.search(r'href="([^"]+/dump/[^"]*)" data-dialog', page)
    assert link
    # What was chosen is chosen there, and so is what was asked for.
    dialog = text_of(admin, html.unescape(link[1]))
    assert re.findall(r'name="(\w+)" checked', dialog) == ["leave_running"]
    filled = dict(re.findall(r'id="f-(\w+)" name="\w+" value="([^"]+)"', dialog))
    assert filled == {"carry": "/srv/a&amp;b /srv/c", "freeze_timeout": "2.5", "ghost_limit": "3"}
    assert "<details open>" in dialog
    assert "ghost_limit" not in page.replace(link[1], "")
    in_the_dialog = render_to_string(
        "services/_dry_run.html", {"job": Job.objects.get(pk=job.pk), "found": found}
    )
    assert 'data-choose="ghost_limit" data-value="3"' in in_the_dialog


def test_the_admin_pages_ask_by_the_same_operations(admin: Client) -> None:
    running, stopped = running_service("one"), stopped_service("two")
    chosen = {"action": "dump_running", "_selected_action": [running.pk, stopped.pk]}
    page = admin.post("/admin/services/service/", chosen).content.decode()
    assert "two: it is stopped" in page
    assert not Job.objects.filter(kind="dump").exists(), "it only asks"
    told = admin.post("/admin/services/service/", chosen | {"confirmed": "yes"}, follow=True).content.decode()
    assert "Asked for 1 job." in told
    assert "Two: Service two is stopped" in told
    assert Job.objects.get(kind="dump").options["leave_running"] is True
    image = recorded_image(stopped)
    asked = admin.post("/admin/images/image/", {"action": "restore", "_selected_action": [image.pk]})
    assert "goes on from the moment of that dump" in asked.content.decode()
    assert not Job.objects.filter(kind="restore").exists()
    admin.post("/admin/images/image/", {"action": "verify", "_selected_action": [image.pk]})
    assert Job.objects.filter(kind="verify_image", image_id=image.pk, requested_by="boss").exists()


def test_an_environment_is_shown_to_who_asks_and_that_is_recorded(admin: Client) -> None:
    service = made_service("web")
    Service.objects.update(env={"TOKEN": "s3cret"})
    assert "s3cret" not in text_of(admin, f"/services/{service.pk}/")
    assert "s3cret" in admin.post(f"/services/{service.pk}/environment/").content.decode()
    assert AuditEvent.objects.filter(action="show_env", actor="boss", target_id=service.pk).exists()


def test_ticks_of_an_axis_are_round_and_few() -> None:
    begin = timezone.now()
    for seconds in (0.5, 3, 90, 4000, 86_400, 5e6, 3e8):
        ticks = Axis(begin, begin + timedelta(seconds=seconds)).ticks(6)
        assert 1 <= len(ticks) <= 7, seconds
        assert all(0 <= tick.x <= 100 for tick in ticks)


async def _events(stream: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, Any]]:
    """Yield name and data of each server-sent event."""
    async for piece in stream:
        name, data = re.search(rb"event: (\w+)", piece), re.search(rb"data: (.*)", piece)
        if name and data:
            yield name[1].decode(), json.loads(data[1]) if data[1] else None


@pytest.mark.parametrize("with_redis", [True, False])
def test_an_open_page_hears_of_a_change(with_redis: bool, request: pytest.FixtureRequest) -> None:
    if with_redis:
        request.getfixturevalue("redis_server")
    service = running_service("web")
    client = AsyncClient()
    client.force_login(member("viewer"))

    async def listen() -> tuple[str, str]:
        answer: Any = await client.get("/live/", {"on": "/services/", "have": ""})
        assert answer.headers["Content-Type"] == "text/event-stream"
        events = _events(answer.streaming_content)
        _name, before = await anext(events)
        await asyncio.to_thread(operations.request_stop, service, actor="root", source="manage")
        _name, after = await anext(events)
        await answer.streaming_content.aclose()
        return before["services"]["html"], after["services"]["html"]

    before, after = asyncio.run(asyncio.wait_for(listen(), 20))
    assert "web" in before
    assert "its job" not in before
    assert "its job" in after


def test_a_step_of_a_job_is_told_to_no_page_that_does_not_show_steps() -> None:
    service = running_service("web")
    changes = Changes()
    changes.look()
    job = taken(operations.request_dump(service, actor="root", source="manage"))
    assert {"jobs", "services", f"service:{service.pk}", "audit"} <= changes.look()
    operations.enter_step(job, "freezing and writing memory")
    assert changes.look() == {"steps", f"job:{job.pk}"}
    operations.succeed(job, service_state=None, result={}, statistics={})
    assert {"jobs", "services", f"service:{service.pk}", f"job:{job.pk}"} <= changes.look()


def test_a_stranger_and_a_page_that_is_gone_are_told_to_load_anew() -> None:
    client = AsyncClient()

    async def first(**query: str) -> bytes:
        answer: Any = await client.get("/live/", query)
        if not answer.streaming:
            return bytes(answer.content)
        pieces = [piece async for piece in answer.streaming_content]
        return b"".join(pieces)

    assert b"event: reload" in asyncio.run(first(on="/services/"))
    client.force_login(member("viewer"))
    assert b"event: reload" in asyncio.run(first(on="/services/0123/"))
    for nowhere in ("", "/login/", "//evil.example/", "/nope/", "http://evil.example/services/"):
        assert asyncio.run(client.get("/live/", {"on": nowhere})).status_code == 404, nowhere
