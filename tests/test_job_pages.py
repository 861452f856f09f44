"""The page of a job that failed: what it offers, and what becomes of what is pressed."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from dashboard import job_pages
from dashboard.templatetags.dashboard import DOES
from images import operations as operations_of_images
from images import schedules, timing
from images.models import Image
from services import inspection, operations
from services.models import Job, Node, Service
from services.states import JobKind
from tests.rows import member, recorded_image, running_service, stopped_service, taken
from tests.site_fixtures import text_of
from worker import remedies

pytestmark = pytest.mark.django_db(transaction=True)


def failed_restore(code: str, lines: list[str] | None = None) -> Job:
    """Return a restore that failed so, as the worker writes it."""
    image = recorded_image(stopped_service())
    job = taken(operations_of_images.request_restore(image, actor="root", source="manage"))
    operations.fail(
        job,
        code=code,
        message="No.",
        remedy="",
        lines=lines or [],
        service_state=None,
        actions=remedies.actions(code, restoring=True),
    )
    return job


def test_jobs_are_found_by_from_where_when_and_on_which_node(admin: Client) -> None:
    hourly, by_hand = running_service("hourly-7"), running_service("by-hand-7")
    Job.objects.all().delete()
    operations.request_dump(hourly, actor="schedule", source="schedule")
    operations.request_dump(by_hand, actor="root", source="web")

    def found(query: str) -> set[str]:
        page = text_of(admin, f"/jobs/?{query}")
        return {name for name in ("hourly-7", "by-hand-7") if name in page}

    assert found("source=schedule") == {"hourly-7"}
    assert found("source=web") == {"by-hand-7"}
    Job.objects.filter(service=hourly).update(queued_at=timezone.now() - timedelta(days=2))
    assert found("since=last_day") == {"by-hand-7"} and found("since=last_week") == {"hourly-7", "by-hand-7"}
    for table in ("jobs", "images"):
        assert 'name="node__name"' not in text_of(admin, f"/{table}/?q=x"), "there is one"
    other = Node.objects.create(name="other")
    Job.objects.filter(service=hourly).update(node=other)
    assert found("node__name=other") == {"hourly-7"}
    image = recorded_image(by_hand)
    assert image.pk not in text_of(admin, "/images/?node__name=other")
    assert image.pk in text_of(admin, f"/images/?node__name={image.node.name}")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("restore_failed", 1),  # of which nothing is known
        ("criu_too_old", 1),
        ("network_lock_failed", 1),
        ("image_damaged", 1),
        ("files_changed", 1),  # they may have been put back
        ("port_in_use", 1),  # its own remedy says it, and not a second button
    ],
)
def test_whatever_a_restore_failed_of_it_can_be_tried_again(admin: Client, code: str, said: int) -> None:
    job = failed_restore(code)
    page = text_of(admin, f"/jobs/{job.pk}/")
    assert len(re.findall(r'<button form="retry-form"[^>]*>(?:<svg.*?</svg>)?Try again', page)) == said
    admin.post(f"/jobs/{job.pk}/retry/")
    assert Job.objects.get(retry_of=job.pk).image_id == job.image_id


WANT_A_PROCESS = {JobKind.STOP, JobKind.DUMP, JobKind.CHECK_SERVICE}
ABOUT_IMAGES = {JobKind.VERIFY_IMAGE, JobKind.DELETE_IMAGE, JobKind.READ_ENVIRONMENT, JobKind.EXPORT_IMAGE}


def subject(whose: str, kind: JobKind) -> tuple[Service, Image]:
    """Return a service in whose state a job may begin, and its image: root's, a user's own, or imported."""
    user = "root" if "root" in whose else "games"
    service = (running_service if kind in WANT_A_PROCESS else stopped_service)(user=user)
    image = recorded_image(service)
    manifest: dict[str, object] = {"spec": {"argv": service.argv, "user": user, "cwd": "/"}}
    if "imported" in whose:
        manifest["origin"] = {"imported_by": "boss"}
    Image.objects.filter(pk=image.pk).update(manifest=manifest)
    return service, image


def failed_job(kind: JobKind, service: Service, image: Image, **more: object) -> Job:
    """Return a job that failed, of whatever kind, and offers to be tried again."""
    about: dict[str, object] = {"service_ref": service.pk}
    if kind in ABOUT_IMAGES | {JobKind.RESTORE}:
        about["image_id"] = image.pk
    if kind not in ABOUT_IMAGES | {JobKind.CHECK_SERVICE}:
        about["service"] = service
    return Job.objects.create(
        kind=kind.value,
        node=service.node,
        status="failed",
        queued_at=timezone.now(),
        error_code="x",
        error_message="No.",
        **about | more,
    )


@pytest.mark.parametrize("remedy", [False, True])
@pytest.mark.parametrize(
    ("kind", "options", "refused"),
    [
        (JobKind.START, {}, {"root", "imported root"}),
        (JobKind.RESTART, {}, {"root", "imported root"}),
        (JobKind.STOP, {}, set()),
        (JobKind.DUMP, {}, set()),
        (JobKind.DUMP, {"carry": ["/srv"]}, {"root", "imported root"}),
        (JobKind.CHECK_SERVICE, {"carry": ["/srv"]}, {"root", "imported root"}),
        (JobKind.RESTORE, {}, {"root", "imported", "imported root"}),
        (JobKind.DELETE_SERVICE, {}, {"root", "own", "imported", "imported root"}),
        (JobKind.DELETE_IMAGE, {}, {"root", "own", "imported", "imported root"}),
        (JobKind.VERIFY_IMAGE, {}, set()),
        (JobKind.READ_ENVIRONMENT, {}, {"root", "imported root"}),
        (JobKind.EXPORT_IMAGE, {}, {"root", "own", "imported", "imported root"}),  # for nobody
    ],
)
def test_an_operator_is_offered_to_try_again_what_he_may(
    kind: JobKind, options: dict[str, object], refused: set[str], remedy: bool
) -> None:
    operator = Client()
    operator.force_login(member("operator"))
    again = [{"action": "retry", "label": "Try again", "options": {}}] if remedy else []
    for whose in ("root", "own", "imported", "imported root"):
        job = failed_job(kind, *subject(whose, kind), options=options, error_actions=again)
        page = text_of(operator, f"/jobs/{job.pk}/")
        operator.post(f"/jobs/{job.pk}/retry/", {"remedy": "0"} if remedy else {})
        done = Job.objects.filter(retry_of=job.pk).exists()
        assert (">Try again<" in page) is done is (whose not in refused), whose
        assert ("only an admin can" in page.lower()) is (not done and kind is not JobKind.EXPORT_IMAGE), whose


@pytest.mark.parametrize("kind", sorted(set(JobKind) - {JobKind.CHECK_COMMAND, JobKind.IMPORT_IMAGE}))
def test_what_is_gone_is_not_offered_to_anybody(admin: Client, kind: JobKind) -> None:
    service, image = subject("own", kind)
    ways = ("retry", "verify", "start")
    actions = [{"action": each, "label": each.upper(), "options": {}} for each in ways]
    job = failed_job(kind, service, image, image_id=image.pk, error_actions=actions)
    offered = text_of(admin, f"/jobs/{job.pk}/")
    assert ("RETRY" in offered) is (kind is not JobKind.EXPORT_IMAGE)
    assert "VERIFY" in offered
    Image.objects.all().delete()
    Job.objects.exclude(pk=job.pk).delete()
    Service.objects.all().delete()
    page = text_of(admin, f"/jobs/{job.pk}/")
    assert ("RETRY" in page) is (kind is JobKind.CHECK), "the node is always there"
    assert "VERIFY" not in page and "START" not in page


def test_an_operator_is_not_led_to_a_start_that_would_be_refused() -> None:
    operator = Client()
    operator.force_login(member("operator"))
    for whose, said in (("root", "It runs as root: only an admin can bring it back."), ("own", "")):
        service, image = subject(whose, JobKind.DUMP)
        ended = remedies.actions("service_died_with_criu")
        job = failed_job(JobKind.DUMP, service, image, error_actions=ended)
        page = text_of(operator, f"/jobs/{job.pk}/")
        start = f'href="/services/{service.pk}/start/?job={job.pk}"'
        assert (start in page) is (not said) and said in page
        assert ("Ask an administrator" in text_of(operator, f"/services/{service.pk}/start/")) is bool(said)
        assert "See its images" in page and "</svg>Try again<" in page


def test_a_remedy_that_is_none_is_only_a_retry(admin: Client) -> None:
    for remedy in ("²", "9" * 5000, "-1", "7", "x"):
        job = taken(operations.request_dump(running_service(), actor="root", source="manage"))
        offered = remedies.actions("connection_lost")
        operations.fail(
            job,
            code="connection_lost",
            message="No.",
            remedy="",
            lines=[],
            service_state=None,
            actions=offered,
        )
        answer = admin.post(f"/jobs/{job.pk}/retry/", {"remedy": remedy})
        again = Job.objects.get(retry_of=job.pk)
        assert (answer.headers["Location"], again.options) == (f"/jobs/{again.pk}/", {"leave_running": False})


def test_a_job_that_waits_turns_to_say_that_its_worker_was_not_heard_of_for_long(admin: Client) -> None:
    job = operations.request_dump(running_service(), actor="root", source="manage")
    Node.objects.update(last_seen_at=timezone.now())
    assert "It waits until a worker" in text_of(admin, f"/jobs/{job.pk}/")
    Node.objects.update(last_seen_at=timezone.now() - timedelta(minutes=1))
    assert "was last heard" in text_of(admin, f"/jobs/{job.pk}/")
    # Nothing but time passes in between, so an open page has to be looked at for that.
    assert "tick" in job_pages.job.topics_of({"reference": job.pk})


def test_changed_files_are_accepted_in_a_dialog_that_lists_them(admin: Client) -> None:
    job = failed_restore("files_changed", ["/srv/app/db was 5 bytes", "/srv/<app>/log was not there"])
    page = text_of(admin, f"/jobs/{job.pk}/")
    link = re.search(r'href="([^"]+)" data-dialog>Restore it with the files as they are', page)
    assert link
    dialog = text_of(admin, html.unescape(link[1]))
    assert "/srv/app/db was 5 bytes\n/srv/&lt;app&gt;/log was not there" in dialog
    assert re.search(r'name="accept_changed_files" checked', dialog)
    assert not re.search(r'name="tcp_close" checked', dialog)
    carried = dict(re.findall(r'type="hidden" name="(job)" value="(\w+)"', dialog))
    asked = {"accept_changed_files": "on", "tcp_close": "on"}
    admin.post(f"/images/{job.image_id}/restore/", carried | asked)
    again = Job.objects.exclude(pk=job.pk).get(kind="restore")
    assert again.options == {"accept_changed_files": True, "tcp_close": True}
    assert again.retry_of == job.pk
    assert f'<dt>Tries again</dt><dd><a class="id" href="/jobs/{job.pk}/">' in text_of(
        admin, f"/jobs/{again.pk}/"
    )
    # The list is this image's only.
    other = failed_restore("files_changed", ["/srv/other"])
    assert "/srv/other" not in text_of(admin, f"/images/{job.image_id}/restore/?job={other.pk}")


def test_a_failed_job_says_that_it_was_tried_again(admin: Client) -> None:
    job = failed_restore("port_in_use")
    assert "Tried again" not in text_of(admin, f"/jobs/{job.pk}/")
    admin.post(f"/jobs/{job.pk}/retry/")
    again = Job.objects.get(retry_of=job.pk)
    for status in ("queued", "running", "failed"):
        Job.objects.filter(pk=again.pk).update(status=status)
        page = text_of(admin, f"/jobs/{job.pk}/")
        said = f'<dt>Tried again</dt><dd><a class="id" href="/jobs/{again.pk}/">{again.pk[:12]}</a> <span'
        assert re.search(rf"{re.escape(said)}[^\n]+</svg>{status}</span></dd>", page), status
    assert "<dt>Tried again" not in text_of(admin, f"/jobs/{again.pk}/"), "it is the last"
    admin.post(f"/jobs/{again.pk}/retry/")
    assert f'href="/jobs/{again.pk}/">' in text_of(admin, f"/jobs/{job.pk}/"), "the first of them"
    # A check of a node is about no service.
    check = failed_job(JobKind.CHECK, *subject("own", JobKind.CHECK))
    check.service, check.service_ref = None, ""
    check.save()
    admin.post(f"/jobs/{check.pk}/retry/")
    assert f'href="/jobs/{Job.objects.get(retry_of=check.pk).pk}/"' in text_of(admin, f"/jobs/{check.pk}/")
    # Neither is looked for among all jobs.
    for each, index in ((job, "services_job_by_service"), (check, "services_job_by_kind")):
        assert re.search(rf"SEARCH .* USING INDEX {index} \(.*queued_at", job_pages.tries_of(each).explain())


def test_what_a_job_was_asked_for_is_said_as_its_dialog_says_it(admin: Client) -> None:
    service = running_service("web")
    asked: dict[str, Any] = {
        "ghost_limit": 261 << 20,
        "force_irmap": ["/srv/app", "/srv/<b>"],
        "carry": ["/var/lib/app"],
        "freeze_timeout": 60.0,
    }
    told = [
        ("Leave it running", "yes"),
        ("Deleted files up to (MiB)", "261"),
        ("Search watched files in", "/srv/app /srv/&lt;b&gt;"),
        ("Carry the data in", "/var/lib/app"),
        ("Seconds to freeze", "60"),
    ]
    look = inspection.request_check_service(
        service, actor="root", source="manage", options=asked | {"leave_running": True}
    )
    dump = operations.request_dump(service, actor="root", source="manage", **asked, leave_running=True)
    for job in (look, dump):
        page = text_of(admin, f"/jobs/{job.pk}/")
        assert [each for each in told if f"<dt>{each[0]}</dt><dd>{each[1]}</dd>" in page] == told
    for action in ("dump", "check_service"):
        page = text_of(admin, "/audit/", action=action)
        assert [f"{label}: {value}" for label, value in told if f"{label}: {value}" not in page] == []
    # What has no such dialog is called by its name.
    file = failed_job(
        JobKind.EXPORT_IMAGE, *subject("own", JobKind.EXPORT_IMAGE), options={"recipients": ["age1", "age2"]}
    )
    assert "<dt>Recipients</dt><dd>age1, age2</dd>" in text_of(admin, f"/jobs/{file.pk}/")
    schedules.put(service, every="1h", actor="root", source="manage")
    operations.change(service, restore_on_boot=True, name="", actor="root", source="manage")
    page = text_of(admin, "/audit/")
    assert f"schedule: when {timing.in_words(3600, '')}, keep 3" in page
    assert "restore on boot: yes" in page and "name: none" in page


def test_a_jobs_page_says_what_its_kind_does(admin: Client) -> None:
    assert set(DOES) == set(JobKind)
    for kind in JobKind:
        job = failed_job(kind, *subject("own", kind))
        said = re.findall(r'<p class="help">([^<]+)</p>', text_of(admin, f"/jobs/{job.pk}/"))
        assert [html.unescape(text) for text in said] == [DOES[kind]], kind


@pytest.mark.parametrize(
    "other", ["what succeeded", "of another kind", "of another service", "of another image", "none"]
)
def test_a_dialogs_job_is_no_second_try_of_something_else(admin: Client, other: str) -> None:
    failed = failed_restore("files_changed")
    image = failed.image_id
    if other == "what succeeded":
        Job.objects.filter(pk=failed.pk).update(status="succeeded")
    elif other == "of another kind":
        Job.objects.filter(pk=failed.pk).update(kind="verify_image")
    elif other == "of another service":
        Job.objects.filter(pk=failed.pk).update(service_ref="0" * 32)
    elif other == "of another image":
        Job.objects.filter(pk=failed.pk).update(image_id="0" * 32)
    named = "\x00'" if other == "none" else failed.pk
    admin.post(f"/images/{image}/restore/", {"job": named})
    again = Job.objects.exclude(pk=failed.pk).get(kind="restore")
    assert again.retry_of == ""
