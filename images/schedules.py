"""Dumps at set times: who gives a service a schedule, and what is done when it is due. It knows no clockwork.

Any scheduler looks after all of them, of whatever node. What is due is taken by a conditional UPDATE in the
transaction that asks for the dump, so that one due time makes one dump however many look.
"""

import logging
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django.db import Error as DatabaseAway
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from images import operations, timing
from images.models import Image, Schedule
from services import bell
from services.actors import Actor, name_of, require_operator
from services.auditing import record_audit
from services.concerning import concerning
from services.models import Job, Service
from services.operations import request_dump
from services.presenting import moment
from services.problems import Problem, bad_input
from services.references import not_found
from services.states import JobKind, JobState

log = logging.getLogger(__name__)

SOURCE = "schedule"
KEEP = 3
MOST_KEPT = 1000

_WORKER_SEEN = timedelta(seconds=60)
"""So long after its last heartbeat a worker counts as there; without one a due time waits for it."""
_LATE = timedelta(seconds=60)
"""What is later than this was missed: nobody looked."""
_SET_BACK = timedelta(seconds=60)
"""A clock that goes back by less was corrected, not set."""


def put(
    service: Service,
    *,
    actor: Actor,
    source: str,
    every: object = None,
    cron: object = "",
    keep: object = None,
) -> Schedule:
    """Give a service a schedule, or change the one that it has.

    every: seconds between two dumps, or such as "1h"; or cron: five fields, in UTC; neither for the times
    that it has. keep: so many of the images that it makes stay; None for as many as before, or KEEP.
    Raises Problem bad_input, service_not_found.
    """
    require_operator(actor)
    seconds = None if every is None else timing.period(every)
    text = timing.expression(cron) if cron else ""
    if keep is not None and (
        isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= MOST_KEPT
    ):
        raise bad_input(
            f"The value of keep must be a number of images from 1 to {MOST_KEPT}.",
            "Give such a number.",
            field="keep",
        )
    now = timezone.now()
    with transaction.atomic():
        _lock(service)
        before = Schedule.objects.filter(service=service).first()
        if before and keep is not None and seconds is None and not text:
            seconds, text = before.every, before.cron
        if (seconds is None) == (not text):
            raise bad_input(
                "A schedule needs either every or cron.",
                'Send for example {"every": "1h"} or {"cron": "0 3 * * *"}.',
                field="every",
            )
        kept = keep or (before.keep if before else KEEP)
        values = {"every": seconds, "cron": text, "keep": kept, "made_by": name_of(actor), "made_at": now}
        if before is None or (before.every, before.cron) != (seconds, text):
            values["next_at"] = timing.next_time(seconds, text, now)
        schedule, _made = Schedule.objects.update_or_create(service=service, defaults=values)
        _record(service, actor, source, {"when": timing.in_words(seconds, text), "keep": kept})
    return schedule


def remove(service: Service, *, actor: Actor, source: str) -> Schedule:
    """Take a service's schedule away and return what it was; its images stay. Raises schedule_not_found."""
    require_operator(actor)
    with transaction.atomic():
        _lock(service)
        schedule = of(service)
        Schedule.objects.filter(service=service).delete()
        _record(service, actor, source, None)
    return schedule


def of(service: Service) -> Schedule:
    """Return a service's schedule. Raises Problem schedule_not_found."""
    schedule = Schedule.objects.filter(service=service).first()
    if schedule is None:
        raise Problem(
            "schedule_not_found",
            f"Service {service} has no schedule.",
            "Give it one (mhctl service schedule SERVICE --every 1h).",
            http_status=404,
        )
    return schedule


def schedule_object(schedule: Schedule) -> dict[str, Any]:
    """A schedule as the API shows it: what was asked for, when it is due next, what came of the last time."""
    outcome, reason = outcome_of(schedule)
    return {
        "object_id": schedule.service_id,
        "every": schedule.every,
        "cron": schedule.cron,
        "when": timing.in_words(schedule.every, schedule.cron),
        "keep": schedule.keep,
        "made_by": schedule.made_by,
        "made": moment(schedule.made_at),
        "next": moment(schedule.next_at),
        "last": moment(schedule.last_at),
        "outcome": outcome,
        "reason": reason,
        "job": schedule.last_job or None,
    }


def outcome_of(schedule: Schedule) -> tuple[str, str]:
    """Return what came of the last time that it was due, and why: skipped, or a job's state; "" for never."""
    if schedule.skipped:
        return "skipped", schedule.skipped
    job = Job.objects.filter(pk=schedule.last_job).only("status", "error_message").first()
    return (job.status, job.error_message) if job else ("", "")


def as_typed(service_id: str) -> dict[str, str]:
    """Return what somebody would type for the schedule that a service has, by the arguments of `put`."""
    schedule = Schedule.objects.filter(service=service_id).first()
    if schedule is None:
        return {"keep": str(KEEP)}
    every = "" if schedule.every is None else timing.spelled(schedule.every)
    return {"every": every, "cron": schedule.cron, "keep": str(schedule.keep)}


def look() -> None:
    """Do all that is to be done now for the schedules; to be called every few seconds."""
    now = timezone.now()
    future = now + _SET_BACK
    under_way = Exists(Job.objects.active().filter(pk=OuterRef("last_job")))
    ended = Q(settled=False) & ~under_way
    wanting = Q(next_at__lte=now) | ended | Q(made_at__gt=future) | Q(last_at__gt=future)
    for schedule in Schedule.objects.filter(wanting).select_related("service__node"):
        with concerning(service=schedule.service_id):
            try:
                _attend_to(schedule, now)
            except DatabaseAway:
                raise
            except Exception:  # the others must not wait for the one that is at fault
                log.exception("the schedule of %s failed, and is tried again", schedule.service)


def _attend_to(schedule: Schedule, now: datetime) -> None:
    if not schedule.settled:
        _settle(schedule)
    if schedule.next_at <= now:
        with suppress(Problem):  # its service is gone by now, and it with that
            _run(schedule, now)
    elif max(schedule.made_at, schedule.last_at or schedule.made_at) > now + _SET_BACK:
        _follow_clock(schedule, now)


def _run(schedule: Schedule, now: datetime) -> None:
    """Ask for the dump that is due, or note why not."""
    service = schedule.service
    seen = service.node.last_seen_at
    if seen is None or seen < now - _WORKER_SEEN:
        return  # many missed times are one when the node's worker is back
    if schedule.next_at < now - _LATE and Job.objects.active().filter(service=service).exists():
        return  # after a boot it may be coming back just now
    following = timing.next_time(schedule.every, schedule.cron, now, schedule.next_at)
    row = Schedule.objects.filter(pk=schedule.pk, next_at=schedule.next_at)
    with transaction.atomic():
        _lock(service)  # before the schedule's row, as everybody else does
        if not row.update(next_at=following, last_at=now, skipped=""):
            return  # somebody else has it, or it is another schedule by now
        row = Schedule.objects.filter(pk=schedule.pk)
        try:
            with transaction.atomic():
                job = request_dump(
                    service,
                    actor=SOURCE,
                    source=SOURCE,
                    leave_running=True,
                    why=f"the schedule that {schedule.made_by} made: "
                    f"{timing.in_words(schedule.every, schedule.cron)}",
                )
            row.update(last_job=job.pk, settled=False)
        except Problem as problem:
            row.update(skipped=problem.message)
            log.info("the schedule skips a dump: %s", problem.message)
        transaction.on_commit(lambda: bell.ring_service(service.pk))


def _follow_clock(schedule: Schedule, now: datetime) -> None:
    """Bring the next time near again after the clock was set back; else it would wait as long as that was."""
    following = timing.next_time(schedule.every, schedule.cron, now)
    if following < schedule.next_at:
        Schedule.objects.filter(pk=schedule.pk, next_at=schedule.next_at).update(next_at=following)


def _settle(schedule: Schedule) -> None:
    """Once the last dump has ended well, ask for the end of the images that are too many."""
    job = Job.objects.filter(pk=schedule.last_job).first()
    if job is not None and job.is_active:
        return
    if job is not None and job.status == JobState.SUCCEEDED:
        for image in surplus(schedule):
            try:
                why = f"the schedule of {schedule.service} keeps its newest {schedule.keep}"
                operations.request_delete(image, actor=SOURCE, source=SOURCE, why=why)
            except Problem as problem:  # it is used, or all that a dumped service is: the next time, then
                log.info("the schedule leaves image %s: %s", image.pk, problem.message)
    Schedule.objects.filter(pk=schedule.pk, last_job=schedule.last_job).update(settled=True)


def surplus(schedule: Schedule) -> list[Image]:
    """Return the images beyond the newest that a schedule keeps, the oldest last.

    Only what it made itself can go, and of that neither what somebody has named since nor what came back as
    an archive. Damaged ones don't count as kept: nothing can be restored from them. Those of a clock that was
    ahead are older than they say, and the last one is the newest whatever the clock says.
    """
    now = timezone.now()
    last = Job.objects.filter(pk=schedule.last_job).values_list("image_id", flat=True).first()
    images = Image.objects.filter(
        Exists(Job.objects.filter(image_id=OuterRef("pk"), source=SOURCE, kind=JobKind.DUMP)),
        service_ref=schedule.service_id,
        node=schedule.service.node,
        name="",
    )
    kept = 0
    found = []
    for image in sorted(
        images, key=lambda each: (each.pk == last, each.created_at <= now, each.created_at), reverse=True
    ):
        if image.is_foreign:
            continue
        if kept >= schedule.keep:
            found.append(image)
        elif not image.is_damaged:
            kept += 1
    return found


def _lock(service: Service) -> None:
    if not Service.objects.select_for_update().filter(pk=service.pk).exists():
        raise not_found("service", service.pk)


def _record(service: Service, actor: Actor, source: str, detail: dict[str, Any] | None) -> None:
    record_audit(
        actor, source, "set", target_kind="service", target_id=service.pk, detail={"schedule": detail}
    )
    transaction.on_commit(lambda: bell.ring_service(service.pk))
