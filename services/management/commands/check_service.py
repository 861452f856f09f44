"""manage.py check_service: could a service be dumped now, asked from the server's own shell."""

from typing import Any

from django.core.management.base import CommandParser

from services import inspection
from services.lookup import find_service
from services.models import Job
from services.shell import FAILED, JobCommand, me


class Command(JobCommand):
    help = "Say whether a running service could be dumped now; nothing is frozen. Exit code 1 if not."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("service", help="id, beginning of an id, or name")

    def work(self, **options: Any) -> None:
        job = inspection.request_check_service(find_service(options["service"]), actor=me(), source="manage")
        self.run_job(job, wait=not options["no_wait"], result=_told)
        job.refresh_from_db()
        if job.result and not job.result["able"]:
            raise SystemExit(FAILED)


def _told(job: Job) -> str:
    lines = [job.result["sentence"]]
    lines += [f"  {each['severity']}: {each['message']}" for each in job.result["findings"]]
    return "\n".join(lines)
