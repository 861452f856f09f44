"""Pages for when something is wrong or nothing is there yet: each says what is so, and what to do next."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from miehisto_web import errors
from services import operations
from services.models import Node
from tests.rows import member, running_service

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("address", "said", "onwards"),
    [
        ("/services/", "No services yet", "/services/new/"),
        ("/images/", "No images yet", "/services/"),
        ("/images/compare/", "No images yet", "/services/"),
        ("/images/prune/", "There is no image, so nothing can be freed here.", "/images/"),
        ("/jobs/", "No jobs yet", "/services/"),
        ("/services/gone/", "There is no service &#x27;gone&#x27;. It may have been deleted.", "/"),
        ("/nope/", "The address is wrong, or what it named was deleted.", "/"),
    ],
)
def test_where_nothing_is_a_page_says_so_and_leads_on(
    admin: Client, address: str, said: str, onwards: str
) -> None:
    text = admin.get(address).content.decode()
    assert said in text
    assert f'href="{onwards}"' in text.partition("<main")[2]


def test_who_has_no_role_is_not_led_in_a_circle() -> None:
    client = Client()
    client.force_login(User.objects.create_user("newcomer"))
    refused = client.get("/")
    assert refused.status_code == 403
    main = refused.content.decode().partition("<main")[2]
    assert 'href="/account/tokens/"' in main and 'href="/"' not in main
    client.force_login(member("viewer"))
    assert 'href="/"' in client.get("/audit/").content.decode().partition("<main")[2]


def test_a_fault_says_whether_the_database_is_away_and_offers_to_try_again() -> None:
    for error, status, said in (
        (OperationalError("gone"), 503, "The database does not answer"),
        (RuntimeError("a bug"), 500, "A fault in Miehistö"),
    ):
        try:
            raise error
        except type(error):
            answer = errors.fault(None)  # type: ignore[arg-type]  # it must not look at the request
        text = answer.content.decode()
        assert (answer.status_code, f"<h1>{said}</h1>" in text) == (status, True)
        assert 'href="">Try again</a>' in text


def test_a_job_that_waits_says_for_whom_and_whether_that_one_lives(admin: Client) -> None:
    job = operations.request_dump(running_service("web"), actor="root", source="manage")
    node = Node.objects.filter(pk=job.node_id)
    node.update(last_seen_at=timezone.now())
    assert "It waits until a worker of" in admin.get(f"/jobs/{job.pk}/").content.decode()
    node.update(last_seen_at=timezone.now() - timedelta(minutes=5))
    assert "see whether miehistod runs there" in admin.get(f"/jobs/{job.pk}/").content.decode()


def test_the_field_that_is_wrong_is_the_one_to_type_in(admin: Client) -> None:
    typed = {"command": "true", "name": "web", "user": "nobody", "cwd": "/", "env": ""}
    for field, value in (("env", "no variable"), ("name", "a/b"), ("cwd", "here"), ("command", "'open")):
        page = admin.post("/services/new/", {**typed, field: value})
        marked = [line for line in page.content.decode().splitlines() if 'aria-invalid="true"' in line]
        assert len(marked) == 1 and f'name="{field}"' in marked[0] and "autofocus" in marked[0], field
    running_service("web")
    assert (
        b'name="name" value="web" maxlength="63" autocomplete="off" aria-describedby="help-name" aria-inv'
        in (admin.post("/services/new/", typed).content)
    )
