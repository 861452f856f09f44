"""Where no supervisor can take a service over, its policy decides: it is dumped and restored, or runs on.

With agent.py and booting.py a module of the worker that touches rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

from services import operations
from services.models import Job, Service
from services.problems import Problem
from services.states import JobState, ServiceState
from worker.booting import Boot
from worker.errors import JobFailed, describe
from worker.pauses import Pauses

log = logging.getLogger(__name__)

_WHY = "Its supervisor was killed and none could take over, so it is dumped, to be restored with a new one."


class Untaken(NamedTuple):
    """A service that runs without a supervisor, for none could take over.

    Attributes:
        since: when that was first so, by the monotonic clock.
        tries: how often that has failed.
        again: when it is tried again, by the same clock.
        why: what was in the way at last.
    """

    since: float
    tries: int
    again: float
    why: JobFailed


class Replacing:
    """Gives services new supervisors by way of an image.

    Nothing is stopped without one: a service whose dump fails runs on, and is dumped again after a pause.

    Args:
        boot: what brings back those that are dumped.
        patience: seconds after which no supervisor is waited for any longer.
    """

    def __init__(self, boot: Boot, patience: float) -> None:
        self._boot = boot
        self._patience = patience
        self._pauses = Pauses(patience)
        self._asked: dict[str, str] = {}  # service → the dump that was asked for
        self._failed: dict[str, str] = {}  # service → why the last dump of it failed

    def sweep(self, untaken: Mapping[str, Untaken]) -> None:
        """Ask for a dump of those that have waited for too long; called before those are brought back."""
        for service_id in (self._asked.keys() | self._failed.keys()) - untaken.keys():
            self._asked.pop(service_id, None)
            self._failed.pop(service_id, None)
            self._pauses.forget(service_id)
        for service_id, found in untaken.items():
            if time.monotonic() - found.since >= self._patience and not self._pauses.last(service_id):
                self._put_away(service_id)

    def outlook(self, service_id: str, *, comes_back: bool) -> str:
        """Return what becomes of such a service, in a sentence or two.

        Args:
            comes_back: whether it may come back by itself.
        """
        if not comes_back:
            return (
                "To give it a new one, dump and restore it (mhctl service dump, mhctl service restore);"
                " with --restore-on-boot (mhctl service set) that is done without you."
            )
        failed = self._failed.get(service_id)
        if failed is not None:
            return (
                "It could not be dumped either, to be restored with a new one, and that is tried again:"
                f" {failed}"
            )
        return f"If none can within {self._patience:g} seconds, it is dumped and restored with a new one."

    def _put_away(self, service_id: str) -> None:
        service = Service.objects.filter(pk=service_id, restore_on_boot=True).first()
        if service is None or Job.objects.active().filter(service=service).exists():
            return  # what was asked for goes first
        asked = self._asked.get(service_id)
        job = Job.objects.filter(pk=asked).exclude(status=JobState.SUCCEEDED).first() if asked else None
        self._asked.pop(service_id, None)
        if job is not None:
            self._wait(service_id, job.error_message or f"The dump was {job.status}.")
        elif service.state is ServiceState.RUNNING:
            self._ask(service)

    def _ask(self, service: Service) -> None:
        # Noted before it is asked for: whatever dies meanwhile, a service that was dumped comes back.
        try:
            self._boot.expect(service.pk)
        except OSError as error:
            self._wait(service.pk, f"That it shall come back cannot be noted: {describe(error)}.")
            return
        try:
            job = operations.request_dump(service, actor="agent", source="agent", why=_WHY)
        except Problem as problem:
            self._wait(service.pk, problem.message)
            return
        self._asked[service.pk] = job.pk
        log.warning("service %s: %s", service.pk, _WHY, extra={"service": service.pk})

    def _wait(self, service_id: str, why: str) -> None:
        self._failed[service_id] = why
        self._pauses.begin(service_id)
