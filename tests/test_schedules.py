"""Schedules by their rows: who may, what is due when, what is skipped, which images go. There is no node."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone

from images import operations as image_operations
from images import schedules, timing
from images.models import Image, Schedule
from images.scheduler import Scheduler
from miehisto_web.celery import app
from services import operations
from services.models import AuditEvent, Job, Node, Service, new_id
from services.problems import Problem
from services.states import JobKind, ServiceState
from tests.rows import member, recorded_image, running_service, taken
from tests.test_operations import at_once

pytestmark = pytest.mark.django_db(transaction=True)

ROOT: dict[str, Any] = {"actor": "root", "source": "manage"}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENDED: dict[str, Any] = {"service_state": None, "result": {}, "statistics": {}}


def scheduled(service: Service, **wish: Any) -> Schedule:
    """Return a schedule of each hour that is due now, on a node whose worker is there."""
    Node.objects.update(last_seen_at=timezone.now())
    schedules.put(service, **({"every": "1h"} | wish), **ROOT)
    return due(service)


def due(service: Service, ago: float = 1) -> Schedule:
    """Let it be due since so many seconds."""
    Schedule.objects.update(next_at=timezone.now() - timedelta(seconds=ago))
    return schedules.of(service)


def look() -> None:
    schedules.look()


def dumps(service: Service) -> list[Job]:
    return list(Job.objects.filter(service_ref=service.pk, kind="dump").order_by("queued_at"))


def dumped(job: Job) -> Image:
    """Let a dump that leaves its service running end well."""
    image = recorded_image(job.service, job.image_id)  # type: ignore[arg-type]
    operations.succeed(taken(job), **ENDED)
    return image


def deleted() -> set[str]:
    return set(Job.objects.filter(kind="delete_image").values_list("image_id", flat=True))


PERIODS: tuple[Any, ...] = ("9s", 9, "367d", 32_000_000, "1w", "", "1.5h", "-1h", True, 1.5, [])
EXPRESSIONS: tuple[Any, ...] = ("@daily", "0 3 * *", "61 * * * *", "0 0 30 2 *", "x\0", "* " * 200, 5)


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"every": "1h", "cron": "0 3 * * *"},
        *({"every": each} for each in PERIODS),
        *({"cron": each} for each in EXPRESSIONS),
        *({"every": 10, "keep": each} for each in (0, 1001, -1, True, "3", 1.5)),
    ],
    ids=str,
)
def test_a_bad_wish_is_refused_in_a_sentence(wish: dict[str, Any]) -> None:
    service = running_service()
    with pytest.raises(Problem) as refused:
        schedules.put(service, **wish, **ROOT)
    assert refused.value.code == "bad_input"
    assert refused.value.remedy
    assert not Schedule.objects.exists()


def test_when_it_is_due_next() -> None:
    hour = timing.period("1h")
    assert hour == timing.period(3600) == timing.period("60m")
    assert timing.next_time(hour, "", NOON) == NOON + timedelta(hours=1)
    # A look that comes late doesn't move what follows, and what was missed is one.
    late = NOON + timedelta(hours=3, minutes=20)
    assert timing.next_time(hour, "", late, NOON) == NOON + timedelta(hours=4)
    assert timing.next_time(None, timing.expression(" 0  3 * * * "), NOON) == datetime(
        2026, 3, 2, 3, tzinfo=UTC
    )
    assert timing.next_time(None, "0 0 29 2 *", NOON) == datetime(2028, 2, 29, tzinfo=UTC)
    said = [timing.in_words(timing.period(each), "") for each in ("90s", "120s", "24h", 7200)]
    assert said == ["every 90s", "every 2m", "every 1d", "every 2h"]
    assert timing.in_words(None, "0 3 * * *") == "at 0 3 * * * UTC"


def test_an_operator_gives_and_takes_it_and_the_record_says_so() -> None:
    service = running_service("web")
    for nobody in (member("viewer"), member(None)):
        with pytest.raises(Problem, match="may not"):
            schedules.put(service, every=10, actor=nobody, source="api")
    anna = member("operator")
    made = schedules.put(service, every="1h", keep=2, actor=anna, source="api")
    first = made.next_at
    assert timedelta(minutes=59) < first - timezone.now() <= timedelta(hours=1)
    # Who only keeps more does not wait anew.
    assert schedules.put(service, every=3600, keep=5, actor=anna, source="api").next_at == first
    assert schedules.put(service, cron="0 3 * * *", actor=anna, source="api").next_at.hour == 3
    with pytest.raises(Problem, match="may not"):
        schedules.remove(service, actor=member("viewer"), source="api")
    schedules.remove(service, actor=anna, source="web")
    with pytest.raises(Problem, match="has no schedule") as none:
        schedules.remove(service, actor=anna, source="web")
    assert (none.value.code, none.value.http_status) == ("schedule_not_found", 404)
    said = list(AuditEvent.objects.filter(actor=anna.username).values_list("action", "source", "detail"))
    assert said == [
        ("set", "web", {"schedule": None}),
        ("set", "api", {"schedule": {"when": "at 0 3 * * * UTC", "keep": 5}}),
        ("set", "api", {"schedule": {"when": "every 1h", "keep": 5}}),
        ("set", "api", {"schedule": {"when": "every 1h", "keep": 2}}),
    ]
    # It goes with its service.
    schedules.put(service, every="1h", actor=anna, source="api")
    job = operations.request_delete_service(service, stop=True, **ROOT)
    operations.succeed(taken(job), **ENDED)
    assert not Schedule.objects.exists()


def test_one_due_time_makes_one_dump_that_says_whose_it_is() -> None:
    service = running_service("web")
    anna = member("operator")
    scheduled(service)
    Schedule.objects.update(made_by=anna.username)
    assert at_once(4, look) == [None] * 4
    (job,) = dumps(service)
    assert (job.requested_by, job.source, job.options) == ("schedule", "schedule", {"leave_running": True})
    assert job.events.earliest("id").text == f"the schedule that {anna.username} made: every 1h"
    asked = AuditEvent.objects.get(source="schedule")
    assert asked.action == "dump"
    assert anna.username in asked.detail["why"]
    look()
    assert dumps(service) == [job]
    shown = schedules.schedule_object(schedules.of(service))
    assert (shown["outcome"], shown["job"], shown["reason"]) == ("queued", job.pk, "")
    page = Client()
    page.force_login(anna)
    answer = page.get(f"/jobs/{job.pk}/").content.decode()
    assert "from schedule" in answer
    assert anna.username in answer


def test_what_is_skipped_is_shown_and_tried_again() -> None:
    service = running_service("web")
    scheduled(service)
    stop = operations.request_stop(service, **ROOT)
    look()  # just due, and a job works on it
    shown = schedules.schedule_object(schedules.of(service))
    assert (shown["outcome"], dumps(service)) == ("skipped", [])
    assert stop.pk in shown["reason"]
    assert datetime.fromisoformat(shown["next"]) > timezone.now()

    operations.succeed(taken(stop), **ENDED)
    due(service)
    look()
    assert "is stopped, not running" in schedules.of(service).skipped
    assert dumps(service) == []
    assert not AuditEvent.objects.filter(source="schedule").exists()

    start = operations.request_start(service, **ROOT)
    operations.succeed(taken(start), pid=5, **ENDED)
    due(service)
    look()
    (job,) = dumps(service)
    operations.fail(
        taken(job), code="pool_full", message="It is full.", remedy="", lines=[], service_state=None
    )
    shown = schedules.schedule_object(schedules.of(service))
    assert (shown["outcome"], shown["reason"]) == ("failed", "It is full.")
    due(service)
    look()
    assert len(dumps(service)) == 2  # a failure leaves it on


def test_missed_times_are_one_dump_once_the_worker_is_there() -> None:
    service = running_service("web")
    scheduled(service, every=10)
    due(service, ago=3600)
    Node.objects.update(last_seen_at=timezone.now() - timedelta(minutes=5))
    look()
    assert dumps(service) == []
    assert schedules.of(service).last_at is None  # it isn't skipped, it waits
    Node.objects.update(last_seen_at=timezone.now())
    # The boot's own restore goes first.
    Service.objects.update(status=ServiceState.DUMPED, pid=None)
    image = recorded_image(service)
    back = image_operations.bring_back(image, "The node was started anew.")
    look()
    assert schedules.of(service).last_at is None
    operations.succeed(taken(back), pid=7, **ENDED)
    look()
    look()
    assert len(dumps(service)) == 1
    assert timedelta() < schedules.of(service).next_at - timezone.now() <= timedelta(seconds=10)


def test_a_schedule_at_fault_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    first, second = sorted(
        (running_service("one"), running_service("two", pid=4343)), key=lambda each: each.pk
    )
    scheduled(first)
    scheduled(second)
    # As after a change of what expressions may be.
    Schedule.objects.filter(service=first).update(every=None, cron="@daily * * * *")
    look()
    assert (len(dumps(first)), len(dumps(second))) == (0, 1)
    assert f"the schedule of {first} failed" in caplog.text


def test_a_node_with_a_worker_alone_is_looked_after_too() -> None:
    service = running_service("web")
    scheduled(service)
    Service.objects.update(node=Node.objects.create(name="other", last_seen_at=timezone.now()))
    look()
    assert [job.node.name for job in dumps(service)] == ["other"]


def test_how_many_stay_is_changed_only_by_who_says_so() -> None:
    service = running_service("web")
    with pytest.raises(Problem):
        schedules.put(service, keep=7, **ROOT)
    schedules.put(service, every=60, **ROOT)
    assert schedules.of(service).keep == 3
    schedules.put(service, keep=7, **ROOT)
    assert (schedules.of(service).every, schedules.of(service).keep) == (60, 7)
    schedules.put(service, cron="0 3 * * *", **ROOT)
    assert (schedules.of(service).every, schedules.of(service).keep) == (None, 7)


def test_an_older_worker_deletes_a_service_that_has_a_schedule() -> None:
    service = running_service("web")
    scheduled(service)
    Job.objects.update(service=None)
    with connection.cursor() as cursor:  # it knows no table of schedules
        cursor.execute("DELETE FROM services_service WHERE id = %s", [service.pk])
        connection.check_constraints()
    look()


@pytest.mark.parametrize("wish", [{"every": 600}, {"cron": "*/10 * * * *"}], ids=str)
def test_a_clock_set_back_is_followed(wish: dict[str, Any]) -> None:
    service = running_service("web")
    schedules.put(service, **wish, **ROOT)
    ahead = timezone.now() + timedelta(days=30)
    Schedule.objects.update(made_at=ahead, last_at=ahead, next_at=ahead + timedelta(minutes=10))
    look()
    following = schedules.of(service).next_at
    assert timedelta() < following - timezone.now() <= timedelta(minutes=10)
    look()
    assert schedules.of(service).next_at == following


def test_only_its_own_images_beyond_the_newest_go() -> None:
    service = running_service("web")
    mine = recorded_image(service)
    made = []
    for number in range(6):
        scheduled(service, keep=2)
        look()
        if number == 5:
            look()
            assert deleted() == set()  # not before the newest is sealed
        made.append(dumped(dumps(service)[-1]))
        if number < 5:
            Schedule.objects.update(settled=True)  # so many have come without a look
    image_operations.rename(made[1], "keep-me", "root", "manage")
    image_operations.mark_verified(made[4].pk, ["pages-1.img is damaged"])
    Image.objects.filter(pk=made[2].pk).update(manifest={"origin": {"imported_by": "anna"}})
    look()
    # The newest and the third newest are sound; the second newest is not and is not among the two kept.
    assert deleted() == {made[0].pk}
    job = Job.objects.get(kind="delete_image")
    assert (job.requested_by, job.source) == ("schedule", "schedule")
    assert job.events.earliest("id").text == "the schedule of web keeps its newest 2"
    assert mine.pk not in deleted()


def test_a_clock_that_was_ahead_costs_no_new_image() -> None:
    service = running_service("web")
    made = []
    for _ in range(4):
        scheduled(service, keep=2)
        look()
        made.append(dumped(dumps(service)[-1]))
        Schedule.objects.update(settled=True)
    Image.objects.filter(pk__in=[made[0].pk, made[1].pk]).update(
        created_at=timezone.now() + timedelta(days=365)
    )
    Schedule.objects.update(settled=False)
    look()
    assert deleted() == {made[0].pk, made[1].pk}


def test_what_is_used_or_all_that_is_left_of_a_service_stays() -> None:
    service = running_service("web")
    made = []
    for _ in range(4):
        scheduled(service, keep=1)
        look()
        made.append(dumped(dumps(service)[-1]))
        Schedule.objects.update(settled=True)
    Schedule.objects.update(settled=False)
    Service.objects.update(status=ServiceState.DUMPED, pid=None, image_id=made[0].pk)
    operations.new_job(JobKind.RESTORE, node=service.node, image_id=made[1].pk, actor="root", source="manage")
    look()
    assert deleted() == {made[2].pk}


def test_a_database_that_is_away_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = Scheduler(app, lazy=True)
    service = running_service("web")
    scheduled(service)

    def away() -> None:
        raise OperationalError("the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(schedules, "look", away)
        assert [scheduler.tick() for _ in range(3)] == [2.0] * 3
    assert caplog.text.count("the database is away") == 1
    assert scheduler.tick() == 2.0
    assert len(dumps(service)) == 1


def test_an_unknown_service_gets_none() -> None:
    with pytest.raises(Problem, match="There is no service"):
        schedules.put(Service(id=new_id()), every=10, **ROOT)
