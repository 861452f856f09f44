"""manage.py dump: dump a running service, from the server's own shell."""

from typing import Any

from django.core.management.base import CommandParser

from services import operations
from services.lookup import find_service
from services.problems import bad_input
from services.shell import JobCommand, me


class Command(JobCommand):
    help = "Dump a running service; prints the image's folder."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("service", nargs="?", default="", help="id, beginning of an id, or name")
        parser.add_argument("-t", "--pid", type=int, help="the service's process")
        parser.add_argument("--leave-running", action="store_true", help="let the service run on")
        parser.add_argument(
            "--carry", action="append", default=[], metavar="PATH", help="the image holds this, too"
        )

    def work(self, **options: Any) -> None:
        pid = options["pid"]
        if bool(options["service"]) == (pid is not None):
            raise bad_input("Either SERVICE or -t PID is needed.", "Name the service once.")
        service = find_service(options["service"] or f"pid:{pid}")
        job = operations.request_dump(
            service,
            actor=me(),
            source="manage",
            leave_running=options["leave_running"],
            carry=options["carry"],
        )
        self.run_job(
            job,
            wait=not options["no_wait"],
            result=lambda ended: str(ended.result.get("path") or ended.image_id),
        )
