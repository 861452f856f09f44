"""manage.py restore: bring a service back from an image, from the server's own shell."""

from typing import Any

from django.core.management.base import CommandParser

from images import operations
from images.models import Image
from services.lookup import find_service
from services.problems import bad_input
from services.shell import JobCommand, me


class Command(JobCommand):
    help = "Restore a dumped service, or any from one of its images; prints the image's id."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("service", nargs="?", default="", help="id, beginning of an id, or name")
        parser.add_argument("--from", dest="image", default="", metavar="IMAGE", help="the image, instead")
        parser.add_argument(
            "--accept-changed-files",
            action="store_true",
            help="even if files on the disk have moved on since the dump",
        )

    def work(self, **options: Any) -> None:
        named, image = options["service"], options["image"]
        if bool(named) == bool(image):
            raise bad_input(
                "Either SERVICE or --from IMAGE is needed.",
                "Name a dumped service, or an image that `manage.py images` shows.",
            )
        asked = {"accept_changed_files": options["accept_changed_files"], "actor": me(), "source": "manage"}
        if named:
            job = operations.request_restore_of(find_service(named), **asked)
        else:
            job = operations.request_restore(Image.objects.for_display().by_reference(image), **asked)
        self.run_job(job, wait=not options["no_wait"], result=lambda ended: ended.image_id)
