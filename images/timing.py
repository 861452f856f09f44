"""When a schedule is due next, by a number of seconds or a cron expression in UTC. It knows no rows."""

import re
from datetime import datetime, timedelta

from celery.schedules import ParseException, crontab

from services import validation
from services.problems import bad_input

# A dump freezes the service and writes all of its memory, and its image is then read. More often than this a
# service would do little else, and a node with a few of them nothing.
SHORTEST = 10
LONGEST = 366 * 86_400
UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}

_PERIOD = re.compile(r"([0-9]{1,9})([smhd]?)\Z")
_LONGEST_CRON = 200  # characters
_FIELDS = 5


def period(value: object) -> int:
    """Return seconds of a number of them, or of a text such as 90s, 30m, 1h or 2d."""
    seconds = None
    if isinstance(value, int) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str) and (found := _PERIOD.match(value)):
        seconds = int(found[1]) * UNITS[found[2] or "s"]
    if seconds is None or not SHORTEST <= seconds <= LONGEST:
        raise bad_input(
            f"The value of every must be a time from {SHORTEST}s to {LONGEST // UNITS['d']}d.",
            "Write for example 30m, 1h or 2d, or a number of seconds.",
            field="every",
        )
    return seconds


def expression(value: object) -> str:
    """Return a cron expression, its fields with one space between, that comes true some day."""
    text = validation.text(value, "cron", limit=_LONGEST_CRON)
    fields = text.split()
    tidy = " ".join(fields)
    try:
        if len(fields) != _FIELDS:
            raise ValueError(f"it has {len(fields)} fields")
        _next_of_cron(tidy, datetime.fromisoformat("2000-01-01T00:00:00+00:00"))
    except (ParseException, ValueError, RuntimeError):  # the last two also for the 30th of February
        raise bad_input(
            f"The text {text[:80]!r} is no cron expression that comes true some day.",
            'Write minute, hour, day of the month, month and day of the week (0-6), such as "0 3 * * *".',
            field="cron",
        ) from None
    return tidy


def next_time(every: int | None, cron: str, after: datetime, due: datetime | None = None) -> datetime:
    """Return when it is due first after a moment.

    every: seconds. cron: an expression, where `every` is None. after: the moment, in UTC. due: when it was
    due before, so that a period doesn't drift by what each look comes too late; None to begin anew.
    """
    if every is None:
        return _next_of_cron(cron, after)
    step = timedelta(seconds=every)
    if due is None or due > after:
        return after + step
    return due + step * ((after - due) // step + 1)


def in_words(every: int | None, cron: str) -> str:
    """Return it in words: "every 1h", "at 0 3 * * * UTC"."""
    return f"at {cron} UTC" if every is None else f"every {spelled(every)}"


def spelled(every: int) -> str:
    """Return seconds as a person would type them: "90s", "1h"."""
    unit = next(unit for unit, seconds in UNITS.items() if every % seconds == 0)
    return f"{every // UNITS[unit]}{unit}"


def _next_of_cron(cron: str, after: datetime) -> datetime:
    minute, hour, day, month, weekday = cron.split(" ")
    # Celery's own clock would be asked what time it is.
    rule = crontab(minute, hour, weekday, day, month, nowfun=lambda: after)
    return after + rule.remaining_estimate(after)
