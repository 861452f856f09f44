"""manage.py export: write an archive of an image, from the server's own shell."""

from typing import Any

from django.core.management.base import CommandParser

from images import archives
from images.models import Image
from services.shell import JobCommand, me


class Command(JobCommand):
    help = "Write an archive of an image into the folder of archives; prints its path."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("image", help="id, beginning of an id, or name")
        parser.add_argument("file", nargs="?", default="", help="its name there (default: the image's id)")
        parser.add_argument(
            "-r", "--recipient", action="append", default=[], help="encrypt for this key of age"
        )
        parser.add_argument(
            "--gpg-recipient", action="append", default=[], help="encrypt for this key of GnuPG"
        )

    def work(self, **options: Any) -> None:
        job = archives.request_export(
            Image.objects.for_display().by_reference(options["image"]),
            file=options["file"],
            recipients=options["recipient"],
            gpg_recipients=options["gpg_recipient"],
            actor=me(),
            source="manage",
        )
        self.run_job(job, wait=not options["no_wait"], result=self._result)

    def _result(self, ended: Any) -> str:
        self.stderr.write(f"manage.py export: warning: {ended.result['warning']}")
        return str(ended.result["path"])
