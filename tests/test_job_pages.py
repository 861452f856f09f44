"""The page of a job that failed: what it offers, and what becomes of what is pressed."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from images import operations as operations_of_images
from services import operations
from services.models import Job
from tests.rows import recorded_image, running_service, stopped_service, taken
from worker import remedies

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def admin() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("boss", password="long enough 1"))
    return client


def text_of(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200, address
    return answer.content.decode()


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
