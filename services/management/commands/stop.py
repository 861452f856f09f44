"""manage.py stop: stop a running service, from the server's own shell."""

from typing import Any

from django.core.management.base import CommandParser

from services import operations
from services.lookup import find_service
from services.shell import JobCommand, me


class Command(JobCommand):
    help = "Stop a running service; prints its id."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("service", help="id, beginning of an id, name, or pid:NNN")
        parser.add_argument("--grace", type=float, help="seconds between SIGTERM and SIGKILL")

    def work(self, **options: Any) -> None:
        service = find_service(options["service"])
        job = operations.request_stop(service, actor=me(), source="manage", grace=options["grace"])
        self.run_job(job, wait=not options["no_wait"], result=lambda ended: ended.service_ref)
