"""What open pages are told has changed, and what a look for it costs."""

from __future__ import annotations

import pytest
import redis
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dashboard.changes import Changes
from images import contents
from images.models import Image
from services import bell
from services.models import AuditEvent, Job, JobEvent, Node
from tests.rows import recorded_image, running_service, stopped_service

pytestmark = pytest.mark.django_db(transaction=True)


def test_what_is_read_out_of_an_image_is_told_to_its_page_alone() -> None:
    read, unread = (recorded_image(stopped_service()) for _ in range(2))
    changes = Changes()
    changes.look()
    contents.record(read.pk, {})
    assert changes.look() - {"tick"} == {f"image:{read.pk}"}
    assert not changes.look()
    contents.record(unread.pk, {}, "it is damaged")
    assert changes.look() == {f"image:{unread.pk}"}


def test_who_reads_an_image_rings_when_it_is_written(redis_server: redis.Redis) -> None:
    image = recorded_image(stopped_service())
    with redis_server.pubsub(ignore_subscribe_messages=True) as heard:  # type: ignore[no-untyped-call]
        heard.psubscribe(bell.EVERY_CHANNEL)
        heard.get_message(timeout=5)  # that it is subscribed
        with transaction.atomic():
            contents.record(image.pk, {})
            assert heard.get_message(timeout=0.2) is None, "nobody could see it yet"
        message = heard.get_message(timeout=5)
    assert message and message["channel"] == f"miehisto.image.{image.pk}".encode()


def test_what_is_committed_late_is_told_though_a_higher_number_was_first() -> None:
    """In PostgreSQL a transaction has its number before it commits."""
    job = Job.objects.get(service=running_service("web"))
    late = [model.objects.order_by("-pk")[0].pk + 1 for model in (AuditEvent, JobEvent)]

    def written(further: int) -> None:
        now = timezone.now()
        AuditEvent.objects.create(pk=late[0] + further, at=now, action="login", target_kind="user")
        JobEvent.objects.create(pk=late[1] + further, at=now, job=job, status="queued")

    written(3)
    changes = Changes()
    changes.look()
    told = {"audit", "users", "user:", "jobs", f"job:{job.pk}", "services", f"service:{job.service_ref}"}
    for further in (1, 2, 0, 4):
        written(further)
        assert changes.look() - {"tick"} == told, further
    assert not changes.look()


def test_a_look_costs_the_same_however_many_images_there_are() -> None:
    service = stopped_service()
    row = {"node": Node.objects.local(), "service_ref": service.pk, "created_at": timezone.now()}
    Image.objects.bulk_create([Image(id=f"{n:032x}", is_read=n > 3, **row) for n in range(500)])
    changes = Changes()
    changes.look()
    with CaptureQueriesContext(connection) as asked:
        assert not changes.look() - {"tick"}
    [question] = [each["sql"] for each in asked if '"images_image"' in each["sql"]]
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
        cursor.execute(f"EXPLAIN QUERY PLAN {question}")
        plan = " ".join(str(row[-1]) for row in cursor.fetchall())
    assert "images_image_not_read" in plan
