"""The table of services: what it finds, and what comes first."""

from __future__ import annotations

import asyncio
import re
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from django.test import AsyncClient, Client
from django.utils import timezone

from images import contents, schedules
from images.models import Image, ImageContents
from services import logs, operations
from services.models import Job, Service, ServiceLoad
from services.problems import Problem
from services.states import ServiceState
from tests.rows import (
    jobs_of,
    made_service,
    member,
    recorded_image,
    running_service,
    stopped_service,
    taken,
)
from tests.site_fixtures import text_of
from worker.runmh.log import KEPT

pytestmark = pytest.mark.django_db(transaction=True)


def names(client: Client, **query: str) -> list[str]:
    answer = client.get("/services/", query)
    assert answer.status_code == 200
    return re.findall(r'<a class="name"[^>]*>([^<]+)</a>', answer.content.decode())


def used(service: Service, memory: int, cpu: float | None, seconds_ago: int = 0) -> None:
    at = timezone.now() - timedelta(seconds=seconds_ago)
    ServiceLoad.objects.create(service=service, at=at, memory=memory, cpu=cpu)


def test_only_what_is_shown_is_sorted_by_and_who_shows_nothing_comes_last(admin: Client) -> None:
    used(running_service("small", pid=7), 10, 0.5)
    used(running_service("large", pid=9), 30, None)
    used(running_service("forgotten", pid=8), 99, 9.0, seconds_ago=3600)
    used(stopped_service("stopped"), 50, 5.0)
    assert names(admin, sort="-memory")[:2] == ["large", "small"]
    assert names(admin, sort="memory")[:2] == ["small", "large"]
    assert names(admin, sort="-cpu")[0] == names(admin, sort="cpu")[0] == "small"
    assert names(admin, sort="-pid") == ["large", "forgotten", "small", "stopped"]
    assert names(admin, sort="pid") == ["small", "forgotten", "large", "stopped"]


def test_a_command_is_found_by_its_words(admin: Client) -> None:
    made_service("site", ["/usr/bin/python3", "-m", "http.server", "8080"])
    made_service("other", ["/usr/bin/python3", "-m", "http.server", "8081"])
    made_service("odd", ["/bin/sh", "-c", 'echo "Käse"'])
    for text, found in (
        ("http.server 8080", ["site"]),
        ("8080 PYTHON3", ["site"]),
        ("other http.server", ["other"]),
        ("site 8081", []),
        ('echo "käse"', ["odd"]),
    ):
        assert names(admin, q=text) == found, text


def test_one_stream_has_all_that_changes_on_a_services_page() -> None:
    service = running_service("web")
    path = logs.path_of(service.pk)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("first\n")
    client = AsyncClient()
    client.force_login(member("viewer"))

    async def listen(address: str, names: set[str]) -> dict[str, str]:
        answer: Any = await client.get("/live/", {"on": address})
        heard: dict[str, str] = {}
        async for piece in answer.streaming_content:
            for event in re.finditer(r"event: (\w+)\ndata: (.*)\n\n", piece.decode()):
                heard[event[1]] = event[2]
            if names - {"more"} <= heard.keys() and "more" not in heard:
                with path.open("a") as file:
                    file.write("second\n")
            if heard.keys() == names:
                break
        await answer.streaming_content.aclose()
        assert heard["more"] == '"second\\n"'
        return heard

    try:
        for address, names in (
            (f"/services/{service.pk}/", {"parts", "tail", "more"}),
            (f"/services/{service.pk}/logs/", {"tail", "more"}),
        ):
            path.write_text("first\n")
            heard = asyncio.run(asyncio.wait_for(listen(address, names), 20))
            assert heard["tail"] == '"first\\n"'
    finally:
        path.unlink()


def test_all_of_a_log_is_searched_also_without_javascript(admin: Client) -> None:
    service = running_service("web")
    path = logs.path_of(service.pk)
    path.write_text("GET /needle <b>\n" + "GET /hay\n" * 1000)
    oldest = path.with_name(f"{path.name}.{KEPT}")
    oldest.write_text("GET /long-ago\n")
    try:
        assert "GET /long-ago" in admin.get(f"/services/{service.pk}/logs/?q=long-AGO").content.decode()
        page = admin.get(f"/services/{service.pk}/logs/", {"q": "NEEDLE"}).content.decode()
        assert "GET /needle &lt;b&gt;</pre>" in page
        assert "The last 1 line with this text" in page
        assert "data-log>" not in page, "what was found stays, and is not followed"
        assert "needle" not in admin.get(f"/services/{service.pk}/logs/").content.decode()
        assert "No line has this text" in admin.get(f"/services/{service.pk}/logs/?q=no").content.decode()
    finally:
        path.unlink()
        oldest.unlink()


def test_many_are_restored_only_from_the_images_that_they_are(admin: Client) -> None:
    dumped, stopped = stopped_service("dumped"), stopped_service("stopped")
    for service in (dumped, stopped):
        image = recorded_image(service)
        Service.objects.filter(pk=service.pk).update(image_id=image.pk)
    Service.objects.filter(pk=dumped.pk).update(status="dumped")
    chosen = {"do": "restore", "id": [dumped.pk, stopped.pk]}
    page = admin.get("/services/bulk/", chosen).content.decode()
    assert re.findall(r'name="id" value="(\w+)"', page) == [dumped.pk]
    made = Image.objects.get(service=dumped).created_at
    assert f'as it was <time datetime="{made.isoformat(timespec="milliseconds")}"' in page
    Image.objects.filter(service=dumped).update(status="damaged")
    damaged = admin.get("/services/bulk/", chosen).content.decode()
    assert "<li>dumped: Its image is damaged.</li>" in damaged and 'name="id"' not in damaged
    told = admin.post("/services/bulk/", chosen, follow=True).content.decode()
    assert "Asked for 1 restore job." in told
    assert "stopped is stopped, so it is no image that could be restored" in told
    assert [job.service_id for job in Job.objects.filter(kind="restore")] == [dumped.pk]


def test_a_restore_says_how_old_its_image_is_and_which_is_newer(admin: Client) -> None:
    service = stopped_service("web")
    old, newer, damaged = (recorded_image(service) for _ in range(3))
    lines = ["pages-1.img: its content has changed"]
    Image.objects.filter(pk=damaged.pk).update(status="damaged", damage=lines)
    dialog = text_of(admin, f"/images/{old.pk}/restore/")
    assert f'Made <time datetime="{old.created_at.isoformat(timespec="milliseconds")}"' in dialog
    assert re.findall(r'href="(/images/\w+/restore/)"', dialog) == [f"/images/{newer.pk}/restore/"]
    assert "newer" not in text_of(admin, f"/images/{newer.pk}/restore/")
    refused = text_of(admin, f"/images/{damaged.pk}/restore/")
    assert f"The image is damaged: {lines[0]}. Restore another" in refused
    assert "accept_changed_files" not in refused


NOTHING_SEEN: dict[str, Any] = {"processes": [], "files": [], "sockets": [], "memory": {}, "mappings": []}
AS_ROOT = "It runs as root: only an admin can bring it back."


def test_an_operator_is_told_before_what_only_an_admin_brings_back() -> None:
    operator = Client()
    operator.force_login(member("operator"))
    roots, own = running_service("roots"), running_service("own", pid=7, user="games")
    for service, is_roots in ((roots, True), (own, False)):
        page, address = text_of(operator, f"/services/{service.pk}/"), f"/services/{service.pk}"
        assert (f'href="{address}/restart/"' not in page) is is_roots
        assert (f"{address}/dump/" in page) and (f"{address}/stop/" in page)
        for verb, field in (("dump", "carry"), ("stop", "no such"), ("change", "restore_on_boot")):
            dialog = text_of(operator, f"{address}/{verb}/")
            assert (AS_ROOT in dialog) is (is_roots and verb != "change"), verb
            assert (f'name="{field}"' in dialog) is (not is_roots and field != "no such"), verb
        restart = text_of(operator, f"{address}/restart/")
        assert ("may not run anything as root. Ask an administrator" in restart) is is_roots
        assert ('name="grace"' not in restart) is ('class="danger"' not in restart) is is_roots
    both = {"id": [roots.pk, own.pk]}
    assert "Only an admin can bring back roots." in text_of(operator, "/services/bulk/", do="dump", **both)
    refused = operator.post(f"/services/{roots.pk}/restart/")
    assert refused.status_code == 403
    assert f'href="/services/{roots.pk}/">Back</a>' in refused.content.decode()
    # What is ticked already stays so, whoever saves.
    Service.objects.update(restore_on_boot=True)
    assert 'name="restore_on_boot" checked' in text_of(operator, f"/services/{roots.pk}/change/")


def test_an_operator_is_offered_no_way_back_that_would_be_refused() -> None:
    operator = Client()
    operator.force_login(member("operator"))
    roots, own, came = (
        stopped_service(name, user=user)
        for name, user in (("roots", "root"), ("own", "games"), ("came", "games"))
    )
    ways = {}
    for service in (roots, own, came):
        image = recorded_image(service)
        Service.objects.filter(pk=service.pk).update(status="dumped", image_id=image.pk)
        ways[service] = f'href="/images/{image.pk}/restore/"'
    Image.objects.filter(pk=image.pk).update(manifest={"origin": {"imported_by": "boss"}})
    for address, offered in (
        ("/services/", {own}),
        ("/images/", {own}),
        *((f"/services/{each.pk}/", {each} & {own}) for each in ways),
        *((f"/images/{each.pk}/", {each.service} & {own}) for each in Image.objects.all()),
    ):
        page = text_of(operator, address)
        assert {service for service, way in ways.items() if way in page} == offered, address
        assert f"/services/{roots.pk}/start/" not in page
    assert AS_ROOT in text_of(operator, f"/services/{roots.pk}/")
    of_came = text_of(operator, f"/services/{came.pk}/")
    assert '<p class="help">It was imported: only an admin can restore it.</p>' in of_came
    assert f"/services/{came.pk}/start/" in of_came
    said = text_of(operator, f"/images/{image.pk}/restore/")
    assert "may not restore an image that was imported. Ask an administrator" in said
    assert "accept_changed_files" not in said
    many = text_of(operator, "/services/bulk/", do="restore", id=[service.pk for service in ways])
    assert re.findall(r'name="id" value="(\w+)"', many) == [own.pk]
    assert f"<li>roots: {AS_ROOT}</li>" in many
    assert "<li>came: It was imported: only an admin can restore it.</li>" in many
    # Trying again what failed would be refused as well.
    for service in (roots, own):
        job = taken(operations.request_start(service, actor="root", source="manage"))
        operations.fail(job, code="x", message="No.", remedy="", lines=[], service_state=None)
        page = text_of(operator, f"/jobs/{job.pk}/")
        assert (AS_ROOT in page) is ("Try again" not in page) is (service is roots)


def test_no_restore_is_offered_of_an_image_that_is_damaged_or_gone(admin: Client) -> None:
    for status in ("dumped", "stopped"):
        service = stopped_service(status)
        image = recorded_image(service)
        Service.objects.filter(pk=service.pk).update(status=status, image_id=image.pk)
        way, start = f'href="/images/{image.pk}/restore/"', f'href="/services/{service.pk}/start/"'
        addresses = [f"/services/{service.pk}/", *(["/services/"] if status == "dumped" else [])]
        for address in addresses:
            assert way in text_of(admin, address), address
        Image.objects.filter(pk=image.pk).update(status="damaged")
        for address in addresses:
            assert way not in text_of(admin, address), address
        page = text_of(admin, addresses[0])
        assert '<p class="help">Its image is damaged.</p>' in page and start in page
        assert '<span class="status damaged">' in page.split('id="h-images"')[1]
        assert (start in text_of(admin, "/services/")) is (status == "stopped")
        image.delete()
        page = text_of(admin, addresses[0])
        assert "Its image is not in the pool." in page and way not in page and start in page


def test_a_service_without_a_process_says_how_it_goes_on(admin: Client) -> None:
    service = stopped_service("web")
    anew = "It has no process. A start begins anew."
    on = "It has no process. A restore lets it go on from an image; a start begins anew."
    for said, image in ((anew, False), (on, True)):
        if image:
            recorded_image(service)
        for state in ServiceState:
            Service.objects.filter(pk=service.pk).update(status=state.value)
            page = text_of(admin, f"/services/{service.pk}/")
            here = state in {"failed", "exited", "stopped", "created"}
            assert (f'<p class="help">{said}</p>' in page) is here, state
            assert page.count("It has no process") == here, state


def test_moments_say_that_they_are_utc(admin: Client) -> None:
    service = stopped_service("web")
    image, _other = recorded_image(service), recorded_image(service)
    jobs_of_image = Job.objects.bulk_create(jobs_of(service, image.pk, image.created_at))
    schedules.put(service, every="1h", actor="root", source="manage")
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    for address, least in (
        (f"/services/{service.pk}/", 5),
        (f"/images/{image.pk}/", 3),
        (f"/jobs/{jobs_of_image[0].pk}/", 1),
    ):
        told = re.findall(r"<time [^>]*data-(?:ago|due)>([^<]*)</time>", text_of(admin, address))
        assert len(told) >= least, address
        assert [text for text in told if not re.fullmatch(f"{moment} UTC", text)] == [], address
    options = re.findall(r"<option value=\"\w{32}\"[^>]*>([^<]*)", text_of(admin, "/images/compare/"))
    assert len(options) == 4 and all(re.match(f"{moment} UTC · web · ", text) for text in options)


@pytest.mark.parametrize("imported", [False, True])
def test_values_are_offered_to_whom_they_are_shown(imported: bool) -> None:
    operator, client = member("operator"), Client()
    client.force_login(operator)
    for user in ("root", "games"):
        image = recorded_image(stopped_service(user=user))
        manifest = {"spec": {"user": user}} | ({"origin": {"imported_by": "boss"}} if imported else {})
        image.manifest, image.is_read = manifest, True
        image.save()
        data = NOTHING_SEEN | {"environment": {"1": ["NAME"]}, "counts": {}, "truncated": False}
        ImageContents.objects.create(image=image, read_at=timezone.now(), data=data)
        offered = "Show values" in text_of(client, f"/images/{image.pk}/")
        assert offered is (user != "root")
        with nullcontext() if offered else pytest.raises(Problem, match="may not run anything as root"):
            contents.request_environment(image, actor=operator, source="web")


def test_the_first_page_counts_in_whole_sentences(admin: Client) -> None:
    def said() -> str:
        page = admin.get("/").content.decode()
        return re.sub(r"\s+", " ", page.split('<p class="help">')[1].split(" A <em>dump")[0])

    running_service("one", pid=7)
    assert said() == "1 of 1 service runs, no job runs or waits."
    made_service("other")
    assert said() == "1 of 2 services run, 1 job running or waiting."


def test_two_images_differ_in_the_names_of_their_environment(admin: Client) -> None:
    service = stopped_service("web")
    images = []
    for name in ("OLD_NAME", "NEW_NAME"):
        images.append(recorded_image(service))
        ImageContents.objects.create(
            image=images[-1], read_at=timezone.now(), data=NOTHING_SEEN | {"environment": {"2": [name]}}
        )
    Image.objects.update(is_read=True)
    page = admin.get("/images/compare/", {"a": images[0].pk, "b": images[1].pk}).content.decode()
    assert re.findall(r'<span class="sign \w+">(\w+)</span> <span class="mono long">(\w+)<', page) == [
        ("came", "NEW_NAME"),
        ("went", "OLD_NAME"),
    ]
