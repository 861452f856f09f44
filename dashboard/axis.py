"""A time axis for pictures: where a moment lies, in percent of the width, and where to write the time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_STEPS = tuple(
    timedelta(seconds=seconds)
    for seconds in (
        *(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
        *(60, 120, 300, 600, 900, 1800, 3600, 2 * 3600, 3 * 3600, 6 * 3600, 12 * 3600),
        *(86400 * days for days in (1, 2, 7, 14, 30, 90, 180, 365, 3650)),
    )
)


@dataclass(frozen=True)
class Tick:
    """A mark on the axis. x: percent. anchor: where its text is held, so that it stays inside."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Axis:
    """From `begin` to `end`, drawn over the whole width."""

    begin: datetime
    end: datetime

    def x(self, at: datetime) -> float:
        """Return where a moment lies, 0 to 100; what is outside lies on the edge."""
        share = (at - self.begin) / (self.end - self.begin)
        return round(100 * min(1.0, max(0.0, share)), 3)

    def width(self, begin: datetime, end: datetime, least: float = 0.0) -> float:
        """Return how wide a time is, in percent, at least `least`."""
        return round(max(least, self.x(end) - self.x(begin)), 3)

    def ticks(self, most: int = 6) -> list[Tick]:
        """Return at most `most` + 1 marks at round times."""
        span = self.end - self.begin
        step = next((step for step in _STEPS if span / step <= most), _STEPS[-1])
        epoch = datetime(2000, 1, 1, tzinfo=UTC)
        at = epoch + step * -(-(self.begin - epoch) // step)
        found = []
        while at <= self.end:
            x = self.x(at)
            anchor = "start" if x < 4 else "end" if x > 96 else "middle"
            found.append(Tick(x, _text(at, step), anchor))
            at += step
        return found


def _text(at: datetime, step: timedelta) -> str:
    if step < timedelta(minutes=1):
        return f"{at:%H:%M:%S}"
    if step < timedelta(days=1):
        return f"{at:%H:%M}" if (at.hour or at.minute) else f"{at:%b} {at.day}"
    return f"{at:%b} {at.day}" if step < timedelta(days=180) else f"{at:%Y-%m}"
