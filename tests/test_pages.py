"""The plain pages: who may see them, what they show, what their forms do."""

import gzip
import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from services import operations
from services.models import Job
from tests.rows import made_service, running_service, taken

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def browser() -> Client:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("boss", password="long enough 1"))
    return client


def csrf(browser: Client, page: str) -> dict[str, str]:
    found = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', browser.get(page).content.decode())
    assert found
    return {"csrfmiddlewaretoken": found[1]}


def test_a_stranger_is_asked_to_log_in() -> None:
    for page in ("/", "/services/", "/services/0/", "/services/0/dump/", "/images/", "/jobs/", "/jobs/0/"):
        answer = Client().get(page)
        assert (answer.status_code, answer["Location"]) == (302, f"/login/?next={page}")


def test_logging_in_and_out() -> None:
    User.objects.create_superuser("boss", password="long enough 1")
    client = Client(enforce_csrf_checks=True)
    form = csrf(client, "/login/") | {"username": "boss", "password": "wrong"}
    assert b"fit together" in client.post("/login/", form).content
    answer = client.post("/login/", form | {"password": "long enough 1"}, follow=True)
    assert b"No services yet" in answer.content
    assert client.post("/logout/", csrf(client, "/")).status_code == 302
    assert client.get("/").status_code == 302


def test_styles_and_scripts_are_sent_packed_to_whoever_takes_that() -> None:
    for path in ("/static/miehisto.css", "/static/miehisto.js", "/static/icons.svg"):
        plain = Client().get(path)
        assert "Content-Encoding" not in plain and plain["Vary"] == "Accept-Encoding"
        assert "Content-Encoding" not in Client().get(path, HTTP_ACCEPT_ENCODING="br, gzip;q=0")
        packed = Client().get(path, HTTP_ACCEPT_ENCODING="gzip, deflate, br")
        assert (packed["Content-Encoding"], packed["Vary"]) == ("gzip", "Accept-Encoding")
        assert int(packed["Content-Length"]) == len(packed.content) < len(plain.content) / 2
        assert gzip.decompress(packed.content) == plain.content
        again = Client().get(
            path, HTTP_IF_MODIFIED_SINCE=packed["Last-Modified"], HTTP_ACCEPT_ENCODING="gzip"
        )
        assert (again.status_code, again.content) == (304, b"")


def test_a_dump_by_a_button(browser: Client) -> None:
    service = running_service("web", pid=4711)
    page = browser.get("/services/").content.decode()
    assert "web" in page and "4711" in page
    dialog = f"/services/{service.pk}/dump/"
    assert "Open connections are held" in browser.get(dialog).content.decode()
    assert browser.post(f"/services/{service.pk}/dump/").status_code == 403, "without the form's token"
    answer = browser.post(f"/services/{service.pk}/dump/", csrf(browser, dialog) | {"leave_running": "on"})
    job = Job.objects.get(kind="dump")
    assert answer["Location"] == f"/jobs/{job.pk}/"
    assert (job.source, job.requested_by, job.options) == ("web", "boss", {"leave_running": True})
    assert '<noscript><meta http-equiv="refresh"' in browser.get(f"/jobs/{job.pk}/").content.decode()
    again = browser.post(dialog, csrf(browser, "/images/"), follow=True)
    assert "has an active job" in again.content.decode()
    assert browser.post("/services/", csrf(browser, "/")).status_code == 405
    assert browser.post(f"/services/{service.pk}/explode/", csrf(browser, "/")).status_code == 404


def test_a_failed_job_shows_what_happened_and_what_to_do(browser: Client) -> None:
    job = taken(operations.request_dump(running_service(), actor="root", source="manage"))
    operations.enter_step(job, "freezing")
    operations.fail(
        job,
        code="external_socket",
        message="the peer of a socket is <outside>",
        remedy="close it first",
        lines=["Error (criu/sk-unix.c:1): Can't dump half of stream unix connection"],
        service_state=None,
    )
    page = browser.get(f"/jobs/{job.pk}/").content.decode()
    for text in ("&lt;outside&gt;", "close it first", "Can&#x27;t dump half", "freezing", "external_socket"):
        assert text in page
    assert browser.get("/jobs/").status_code == 200


def test_pages_have_nothing_inline_and_say_so_in_their_headers(browser: Client) -> None:
    service = made_service("web")
    job = Job.objects.get()
    for path in ("/", "/images/", "/jobs/", f"/jobs/{job.pk}/", f"/services/{service.pk}/logs/", "/nope/"):
        answer = browser.get(path)
        page = answer.content.decode()
        assert not re.search(r"<script(?! src=)|<style|\s(style|on\w+)=", page)
        assert "default-src 'self'" in answer["Content-Security-Policy"]
        assert answer["X-Frame-Options"] == "DENY"
        assert answer["X-Content-Type-Options"] == "nosniff"
    assert browser.get("/nope/").status_code == 404
    assert browser.get("/static/miehisto.css").status_code == 200
    assert browser.get("/admin/services/job/").status_code == 200
    assert browser.get(f"/admin/services/job/{job.pk}/change/").status_code == 200


def test_the_page_of_a_fault_needs_no_database(monkeypatch: pytest.MonkeyPatch, browser: Client) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("services.models.Service.objects.order_by", broken)
    browser.raise_request_exception = False
    answer = browser.get("/services/")
    assert (answer.status_code, b"A fault in" in answer.content) == (500, True)
