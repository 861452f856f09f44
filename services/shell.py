"""What the manage.py commands share: asking for a job, waiting, printing as mhctl does. It knows no verb."""

import asyncio
import getpass
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandParser

from services import waiting
from services.models import Job
from services.presenting import NOT_SENT
from services.problems import Problem
from services.states import ENDED_JOB, JobState

# As mhctl's: 0 done, 1 failed or refused, 2 usage, 4 not found, 5 not allowed.
FAILED, USAGE, NOT_FOUND, NOT_ALLOWED = 1, 2, 4, 5
EXIT_CODES = {401: NOT_ALLOWED, 403: NOT_ALLOWED, 404: NOT_FOUND, 422: USAGE}


class ShellCommand(BaseCommand, ABC):
    """A command whose Problems are said on stderr with their remedy; a subclass implements `work`."""

    requires_system_checks: tuple[str, ...] = ()

    @abstractmethod
    def work(self, **options: Any) -> None:
        """Do what the command is for. Raises Problem."""

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            self.work(**options)
        except Problem as problem:
            self.refuse(problem.message, problem.remedy, code=EXIT_CODES.get(problem.http_status, FAILED))

    def refuse(self, message: str, remedy: str = "", lines: Iterable[str] = (), *, code: int) -> NoReturn:
        """Say what went wrong and leave with an exit code."""
        name = type(self).__module__.rpartition(".")[2]
        self.stderr.write(f"manage.py {name}: {message}")
        if remedy:
            self.stderr.write(f"  remedy: {remedy}")
        for line in lines:
            self.stderr.write(f"    {line}")
        raise SystemExit(code)

    def put_json(self, value: Any) -> None:
        self.stdout.write(json.dumps(value, indent=2))


class JobCommand(ShellCommand):
    """A command that makes one job and waits for its end."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--no-wait", action="store_true", help="print the job's id, don't wait")

    def run_job(self, job: Job, *, wait: bool, result: Callable[[Job], str]) -> None:
        """Wait for the job, show its steps on a terminal, print `result(job)`."""
        if not wait:
            self.stdout.write(job.pk)
            return
        if job.sent_at is None:
            self.stderr.write(NOT_SENT)
        try:
            asyncio.run(self._watch(job))
        except KeyboardInterrupt:
            self.refuse(f"Interrupted; job {job.pk} goes on.", "See `manage.py jobs`.", code=FAILED)
        ended = waiting.load(job.pk)
        if ended.status != JobState.SUCCEEDED:
            of_service = f" It was about service {ended.service_ref}." if ended.service_ref else ""
            message = ended.error_message or f"The job was {ended.status}."
            self.refuse(message + of_service, ended.error_remedy, ended.error_lines, code=FAILED)
        self.stdout.write(result(ended))

    async def _watch(self, job: Job) -> None:
        # A job longer than the API's longest wait is simply watched again.
        while True:
            async with aclosing(waiting.events(job, waiting.LONGEST)) as happening:
                async for event in happening:
                    if event and event.step and sys.stderr.isatty():
                        self.stderr.write(event.step)
                    if event and JobState(event.status) in ENDED_JOB:
                        return
            job.known_events = None


def me() -> str:
    """Return who types: in the server's own shell that is who owns the database, so nothing else is asked."""
    return getpass.getuser()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], least: Sequence[int]) -> str:
    """Return aligned columns; least: the least width of each, the last column is never padded."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(minimum, *(len(line[index]) for line in lines)) for index, minimum in enumerate(least)]
    return "\n".join(
        " ".join(cell.ljust(width) for cell, width in zip(line, [*widths[:-1], 0], strict=True)).rstrip()
        for line in lines
    )
