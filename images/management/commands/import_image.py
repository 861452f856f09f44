"""manage.py import_image: make an image of an archive, from the server's own shell."""

from typing import Any

from django.core.management.base import CommandParser

from images import archives
from services.models import Node
from services.shell import JobCommand, me


class Command(JobCommand):
    help = "Make an image of an archive that lies in the folder of archives; prints the image's id."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("file", help="its name in the folder of archives")
        parser.add_argument("-i", "--identity", default="", help="the name there of age's secret key")

    def work(self, **options: Any) -> None:
        job = archives.request_import(
            node=Node.objects.local(),
            file=options["file"],
            identity=options["identity"],
            actor=me(),
            source="manage",
        )
        self.run_job(job, wait=not options["no_wait"], result=lambda ended: ended.image_id)
