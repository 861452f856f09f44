"""The API's calls about the schedule of a service: fetch, call one operation, answer."""

# ruff: noqa: ARG001 (Django and ninja fix the arguments)

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from ninja import Router, Schema

from images import schedules
from services.answers import source_of
from services.authentication import caller
from services.lookup import find_service
from services.schemas import ErrorAnswer, Input
from services.threads import in_thread

router = Router(tags=["services"])


class NewSchedule(Input):
    """every: seconds between two dumps, or such as "90s", "30m", "1h", "2d"; from 10 seconds to 366 days.
    cron: instead of that minute, hour, day of the month, month and day of the week, in UTC; all must fit.
    keep: so many of the images that the schedule makes stay; without it as many as before, or 3. With keep
    alone the times stay.
    """

    every: int | str | None = None
    cron: str = ""
    keep: int | None = None


class ScheduleAnswer(Schema):
    """when: every or cron in words. last: when it was due last. outcome: what came of that, "" (it was never
    due), skipped, or the state of its job; reason: why it was skipped or failed. job: the last that it asked
    for.
    """

    object_id: str
    every: int | None
    cron: str
    when: str
    keep: int
    made_by: str
    made: str
    next: str
    last: str | None
    outcome: str
    reason: str
    job: str | None


RESPONSES: dict[Any, Any] = {200: ScheduleAnswer, (404, 409, 422): ErrorAnswer}


@router.get("/services/{reference}/schedule", response=RESPONSES)
async def show_schedule(request: HttpRequest, reference: str) -> HttpResponse:
    """Show a service's schedule: when it is dumped by itself, and what came of the last time."""
    return JsonResponse(
        await in_thread(lambda: schedules.schedule_object(schedules.of(find_service(reference))))
    )


@router.put("/services/{reference}/schedule", response=RESPONSES)
async def put_schedule(request: HttpRequest, reference: str, body: NewSchedule) -> HttpResponse:
    """Have a service dumped at set times, without ending it; replaces the schedule that it has."""

    def change() -> dict[str, Any]:
        service = find_service(reference)
        return schedules.schedule_object(
            schedules.put(service, actor=caller(request), source=source_of(request), **body.dict())
        )

    return JsonResponse(await in_thread(change))


@router.delete("/services/{reference}/schedule", response=RESPONSES)
async def delete_schedule(request: HttpRequest, reference: str) -> HttpResponse:
    """Take a service's schedule away; the answer is what it was. Its images stay."""

    def change() -> dict[str, Any]:
        service = find_service(reference)
        return schedules.schedule_object(
            schedules.remove(service, actor=caller(request), source=source_of(request))
        )

    return JsonResponse(await in_thread(change))
