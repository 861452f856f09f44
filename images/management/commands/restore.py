"""manage.py restore: bring a service back from an image, from the server's own shell."""

from typing import Any

from django.core.management.base import CommandParser

from images import operations
from images.models import Image
from services.shell import JobCommand, me


class Command(JobCommand):
    help = "Restore the service of an image; prints the image's id."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--from", dest="image", required=True, metavar="IMAGE")
        parser.add_argument("--accept-changed-files", action="store_true")

    def work(self, **options: Any) -> None:
        image = Image.objects.for_display().by_reference(options["image"])
        job = operations.request_restore(
            image, actor=me(), source="manage", accept_changed_files=options["accept_changed_files"]
        )
        self.run_job(job, wait=not options["no_wait"], result=lambda ended: ended.image_id)
