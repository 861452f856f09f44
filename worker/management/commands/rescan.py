"""`manage.py rescan`: makes the rows agree with this node's disk, in both directions."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from services.models import Node
from worker import reconcile, tasks


class Command(BaseCommand):
    help = "Rebuild rows of services and images from this node's disk, and drop rows of images that are gone."

    def handle(self, *_args: Any, **_options: Any) -> None:
        node, _ = Node.objects.get_or_create(name=settings.MIEHISTO_NODE)
        changes = reconcile.rescan(tasks.paths(), node)
        for line in changes:
            self.stdout.write(line)
        self.stdout.write(f"{len(changes)} changes" if changes else "rows and disk agree")
