"""What the tables show for each order that they know, printed as JSON: `python -m tests.sorting`.

Run by test_postgresql.py with either database, for pytest-django has one.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from datetime import timedelta

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "miehisto_web.settings"
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.test import Client  # noqa: E402
from django.utils import timezone  # noqa: E402

from dashboard import audit, image_pages, job_pages, service_pages  # noqa: E402
from images.models import Image  # noqa: E402
from services.models import AuditEvent, Job, Node, Service, ServiceLoad  # noqa: E402

NAMES = ("Web", "web", "web-1", "web1", "we b", "cache", "über", "_", "")
COMMANDS = ("b", "a b c", "a-b", "a", "B z", "ä", "a b", '"x', "")
OF_NOBODY = "b" * 32
"""The image whose service was deleted."""
TABLES: dict[str, Iterable[str]] = {
    "services": service_pages._orders(timezone.now()),
    "images": image_pages.ORDERS,
    "jobs": job_pages.ORDERS,
    "audit": audit.ORDERS,
}


def make_rows() -> None:
    """Make rows that differ in what databases sort differently, some of them without a value."""
    now, node = timezone.now(), Node.objects.local()
    for number, (name, command) in enumerate(zip(NAMES, COMMANDS, strict=True)):
        at = now - timedelta(seconds=number)
        service = Service.objects.create(
            id=f"{number:032x}",
            node=node,
            name=name,
            argv=command.split(" "),
            status="running" if number % 2 else "stopped",
            pid=number * 7 % 5 + 100 * number if number % 2 else None,
            created_at=at,
            changed_at=at,
        )
        if number % 3:
            cpu = float(number) if number > 4 else None
            ServiceLoad.objects.create(service=service, at=now, cpu=cpu, memory=9 - number)
        Image.objects.create(
            id=f"a{number:031x}",
            node=node,
            service=service,
            service_ref=service.pk,
            name=name,
            comm=command[:15],
            created_at=at,
        )
        Job.objects.create(
            id=f"c{number:031x}",
            kind="dump",
            status="failed",
            queued_at=at,
            node=node,
            service_ref=service.pk,
        )
        AuditEvent.objects.create(at=at, actor="root", action="dump", target_id=service.pk)
    Image.objects.create(
        id=OF_NOBODY, node=node, service_ref="f" * 32, name="of nobody", comm="gone", created_at=now
    )


def shown() -> dict[str, dict[str, list[str]]]:
    """Return the ids of each table's rows in each order, both ways."""
    client = Client()
    client.force_login(User.objects.create_superuser("boss", password="long enough 1"))
    found: dict[str, dict[str, list[str]]] = {}
    for table, orders in TABLES.items():
        found[table] = {}
        for order in [f"{sign}{word}" for word in orders for sign in ("", "-")]:
            answer = client.get(f"/{table}/", {"sort": order}, headers={"Host": "localhost"})
            assert answer.status_code == 200, (table, order)
            found[table][order] = re.findall(r'<tr id="\w+-(\w+)"', answer.content.decode())
    return found


if __name__ == "__main__":
    make_rows()
    sys.stdout.write(json.dumps(shown()))
