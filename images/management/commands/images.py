"""manage.py images: list images, as mhctl image list does."""

from typing import Any

from django.core.management.base import CommandParser

from images.models import Image
from images.presenting import image_object
from services.shell import ShellCommand, table

MIB = 1024 * 1024


class Command(ShellCommand):
    help = "List images."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print the API's objects as JSON")

    def work(self, **options: Any) -> None:
        images = Image.objects.for_display()
        if options["json"]:
            self.put_json([image_object(image) for image in images])
            return
        rows = [
            (
                image.pk,
                image.comm,
                f"{image.pages_bytes / MIB:.2f}MiB",
                f"{image.created_at:%Y-%m-%d %H:%M:%S %z}",
            )
            for image in images
        ]
        self.stdout.write(table(("OBJECT_ID", "COMM", "PAGE_SIZE", "CTIME"), rows, (32, 12, 10, 0)))
