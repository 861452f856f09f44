"""manage.py jobs: list the newest jobs."""

from typing import Any

from django.core.management.base import CommandParser

from services.models import Job
from services.presenting import job_object
from services.shell import ShellCommand, table


class Command(ShellCommand):
    help = "List the newest jobs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--limit", type=int, default=50, help="how many")
        parser.add_argument("--json", action="store_true", help="print the API's objects as JSON")

    def work(self, **options: Any) -> None:
        jobs = Job.objects.for_display()[: max(1, options["limit"])]
        if options["json"]:
            self.put_json([job_object(job) for job in jobs])
            return
        rows = [
            (
                job.pk,
                job.kind,
                job.status,
                job.service_ref or "-",
                f"{job.queued_at:%Y-%m-%d %H:%M:%S %z}",
                job.error_message,
            )
            for job in jobs
        ]
        heads = ("OBJECT_ID", "KIND", "STATUS", "SERVICE", "QUEUED", "ERROR")
        self.stdout.write(table(heads, rows, (32, 7, 9, 32, 25, 0)))
