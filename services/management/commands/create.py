"""manage.py create: make a service and start it, from the server's own shell."""

import argparse
from typing import Any

from django.core.management.base import CommandParser

from services import operations
from services.models import Node
from services.problems import bad_input
from services.shell import JobCommand, me


class Command(JobCommand):
    help = "Make a service and start it; prints its id."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "-u", "--user", default="root", metavar="USER[:GROUP]", help="run it as this user"
        )
        parser.add_argument("-C", "--cwd", default="/", metavar="DIR", help="run it in this folder")
        parser.add_argument(
            "-e",
            "--env",
            action="append",
            default=[],
            metavar="K=V",
            help="set an environment variable; may be given many times",
        )
        parser.add_argument(
            "-b",
            "--bind",
            action="append",
            default=[],
            metavar="SRC:DST[:ro]",
            help="show SRC to the service at DST",
        )
        parser.add_argument(
            "--data",
            action="append",
            default=[],
            metavar="PATH",
            help="a restore compares this file or folder, too",
        )
        parser.add_argument(
            "--carry", action="append", default=[], metavar="PATH", help="its images hold this file or folder"
        )
        parser.add_argument(
            "--cap-add", action="append", default=[], metavar="NAME", help="let it keep a capability"
        )
        parser.add_argument(
            "--cap-drop", action="append", default=[], metavar="NAME", help="take a capability that root has"
        )
        parser.add_argument(
            "--new-privileges", action="store_true", help="let setuid programs give it their rights"
        )
        parser.add_argument("--private-tmp", metavar="SIZE", help="give it a /tmp of its own, in memory")
        parser.add_argument("--memory", metavar="SIZE", help="let it have so much memory (512M)")
        parser.add_argument(
            "--tasks", type=int, metavar="N", help="let it have so many processes and threads"
        )
        parser.add_argument("--open-files", type=int, metavar="N", help="let each process open so many files")
        parser.add_argument("--restore-on-boot", action="store_true", help="bring it back after a boot")
        parser.add_argument("--name", default="", help="a name for the service")
        parser.add_argument("command", nargs=argparse.REMAINDER, metavar="[--] CMD ARG...")

    def work(self, **options: Any) -> None:
        command = options["command"]
        user, _, group = options["user"].partition(":")
        job = operations.request_create(
            node=Node.objects.local(),
            # Only the first "--" is ours; one further on belongs to the command.
            argv=command[1:] if command[:1] == ["--"] else command,
            user=user,
            group=group,
            cwd=options["cwd"],
            env=dict(_pair(item) for item in options["env"]),
            name=options["name"],
            binds=options["bind"],
            data=options["data"],
            carry=options["carry"],
            privileges={
                name: options[name] for name in ("cap_add", "cap_drop", "new_privileges", "private_tmp")
            },
            limits={name: options[name] for name in ("memory", "tasks", "open_files")},
            restore_on_boot=options["restore_on_boot"],
            actor=me(),
            source="manage",
        )
        self.run_job(job, wait=not options["no_wait"], result=lambda ended: ended.service_ref)


def _pair(item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals:
        raise bad_input(f"The option -e needs K=V, not {item!r}.", "Write for example -e PORT=8080.")
    return key, value
