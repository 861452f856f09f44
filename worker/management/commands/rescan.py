"""`manage.py rescan`: makes the rows agree with this node's disk, in both directions."""

from typing import Any

from django.conf import settings

from services.models import Node
from services.shell import FAILED, ShellCommand
from worker import reconcile, tasks
from worker.errors import describe


class Command(ShellCommand):
    help = "Rebuild rows of services and images from this node's disk, and drop rows of images that are gone."

    def work(self, **_options: Any) -> None:
        node, _ = Node.objects.get_or_create(name=settings.MIEHISTO_NODE)
        paths = tasks.paths()
        try:
            next(paths.images.iterdir(), None)
        except OSError as error:
            self.refuse(
                f"The pool cannot be read, so nothing was changed: {describe(error)}.",
                "Run it as root, on the node whose pool it is.",
                code=FAILED,
            )
        try:
            changes = reconcile.rescan(paths, node)
        except OSError as error:
            self.refuse(
                f"The rescan came to no end: {describe(error)}.",
                "Mend that, then rescan again; what it has changed is right.",
                code=FAILED,
            )
        for line in changes:
            self.stdout.write(line)
        self.stdout.write(f"{len(changes)} changes" if changes else "rows and disk agree")
