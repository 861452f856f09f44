"""manage.py services: list services, as mhctl service list does."""

from typing import Any

from django.core.management.base import CommandParser

from services.models import Service
from services.presenting import service_object
from services.shell import ShellCommand, table


class Command(ShellCommand):
    help = "List services that have a process."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--all", action="store_true", help="also those without a process")
        parser.add_argument("--json", action="store_true", help="print the API's objects as JSON")

    def work(self, **options: Any) -> None:
        services = Service.objects.all() if options["all"] else Service.objects.with_process()
        services = services.for_display()
        if options["json"]:
            self.put_json([service_object(service) for service in services])
            return
        rows = [
            (service.pk, str(service.pid or "-"), str(service.supervisor_pid or "-"), service.command)
            for service in services
        ]
        self.stdout.write(table(("OBJECT_ID", "PID", "PPID", "ARGS"), rows, (32, 5, 5, 0)))
