"""manage.py schedule: show, give or take a service's schedule, from the server's own shell."""

from typing import Any

from django.core.management.base import CommandParser

from images import schedules
from services.lookup import find_service
from services.problems import bad_input
from services.shell import ShellCommand, me


class Command(ShellCommand):
    help = "Dump a service at set times without ending it; without options, show its schedule as JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("service", help="id, beginning of an id, name, or pid:NNN")
        parser.add_argument("--every", metavar="TIME", help="the time between two dumps (90s, 30m, 1h, 2d)")
        parser.add_argument("--cron", default="", metavar="EXPRESSION", help='such as "0 3 * * *", in UTC')
        parser.add_argument("--keep", type=int, metavar="N", help="keep so many of its images (3 at first)")
        parser.add_argument("--off", action="store_true", help="take the schedule away; its images stay")

    def work(self, **options: Any) -> None:
        service = find_service(options["service"])
        who = {"actor": me(), "source": "manage"}
        asked = {name: options[name] for name in ("every", "cron", "keep") if options[name] not in (None, "")}
        if options["off"] and asked:
            raise bad_input("The option --off goes with no other.", "Leave the others out.")
        if options["off"]:
            schedules.remove(service, **who)
        elif asked:
            schedules.put(service, **asked, **who)
        else:
            self.put_json(schedules.schedule_object(schedules.of(service)))
            return
        self.stdout.write(service.pk)
