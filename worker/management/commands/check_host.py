"""`manage.py check_host`: looks at this host directly, without daemon, queue or database."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from worker import host, orphans, tasks


class Command(BaseCommand):
    help = "Tell whether this host can dump and restore, and what is missing."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *_args: Any, **options: Any) -> None:
        orphans.adopt()
        engine = tasks.engine(lambda _: None)
        found = host.check(engine.paths, engine.tools.criu, engine.tools.tini)
        orphans.reap()
        if options["json"]:
            self.stdout.write(json.dumps([item._asdict() for item in found]))
        for item in [] if options["json"] else found:
            mark = "ok" if item.ok else "MISSING" if item.needed else "lacks"
            self.stdout.write(f"{mark:8}{item.name}: {item.detail}")
            if not item.ok:
                self.stdout.write(f"        remedy: {item.remedy}")
        if not all(item.ok for item in found if item.needed):
            raise SystemExit(1)
