"""A job's steps with their times, as the bars of a waterfall. It knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from services.models import Job
from services.states import JobState

LEAST = 0.4  # percent: a step that took no time is still seen


@dataclass(frozen=True)
class Bar:
    """A step. x, width: percent of the job's whole time. look: wait, done, now or bad. open: it goes on."""

    name: str
    x: float
    width: float
    seconds: float
    look: str
    text: str
    open: bool


def waterfall(job: Job) -> list[Bar]:
    """Return the bars of a job with known events, from queued to its end or to now."""
    events = list(job.known_events or [])
    if not events:
        return []
    begin = events[0].at
    end = job.finished_at or timezone.now()
    whole = max((end - begin).total_seconds(), 1e-6)
    found = []
    for event, following in zip(events, [*events[1:], None], strict=True):
        if JobState(event.status) not in {JobState.QUEUED, JobState.RUNNING}:
            continue  # an end takes no time
        until: datetime = following.at if following else end
        seconds = max(0.0, (until - event.at).total_seconds())
        name = event.step or ("waiting in the queue" if event.status == JobState.QUEUED else "beginning")
        look = "wait" if event.status == JobState.QUEUED else "done"
        if following is None and job.is_active:
            look = "now" if look == "done" else look
        elif following is not None and following.status in {JobState.FAILED, JobState.ERRORED, JobState.LOST}:
            look = "bad"
        width = max(LEAST, 100 * seconds / whole)
        x = min(100 * (event.at - begin).total_seconds() / whole, 100 - width)
        goes_on = following is None and job.is_active
        found.append(Bar(name, round(max(0.0, x), 3), round(width, 3), seconds, look, event.text, goes_on))
    return found
