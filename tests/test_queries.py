"""No page asks more of the database when there is more in it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import User
from django.db.backends.utils import CursorWrapper
from django.db.models import F
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.actions import IMAGE_ACTIONS, SERVICE_ACTIONS
from images.models import Image
from services.models import ApiToken, AuditEvent, Job, JobEvent, Node, Service, ServiceEvent, ServiceSample
from tests.rows import in_bulk, jobs_of, member, running_service

pytestmark = pytest.mark.django_db(transaction=True)

FEW, MANY = 3, 60


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each question to the database, in whichever thread of the site it is asked."""
    found: list[str] = []
    execute = CursorWrapper.execute

    def noted(cursor: CursorWrapper, sql: str, params: Any = None) -> Any:
        if sql.startswith("SELECT"):
            found.append(sql)
        return execute(cursor, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", noted)
    return found


def lived(service: Service, user: User, count: int) -> None:
    """Let a service have more of all that hangs on it: images, jobs, events, figures; and its user tokens."""
    now, node = timezone.now(), service.node
    moments = [now + timedelta(microseconds=number) for number in range(count)]
    tag = f"{Job.objects.count():08x}"
    images = [
        Image(id=f"{tag}{number:024x}", node=node, service=service, service_ref=service.pk, created_at=moment)
        for number, moment in enumerate(moments)
    ]
    Image.objects.bulk_create(images)
    one = Image.objects.filter(service=service).earliest("created_at")
    jobs = [job for moment in moments for job in jobs_of(service, one.pk, moment)]
    Job.objects.bulk_create(jobs)
    looked_at = Job.objects.filter(service=service, status="failed").earliest("queued_at")
    JobEvent.objects.bulk_create(
        [JobEvent(job=looked_at, at=moment, status="running", step="freezing") for moment in moments]
    )
    ServiceEvent.objects.bulk_create(
        [ServiceEvent(service_ref=service.pk, at=moment, status="running") for moment in moments]
    )
    ServiceSample.objects.bulk_create([ServiceSample(service=service, at=moment) for moment in moments])
    AuditEvent.objects.bulk_create(
        [
            AuditEvent(
                at=each.queued_at,
                actor="root",
                action=each.kind,
                target_kind=kind,
                target_id=target,
                detail={"job": each.pk},
            )
            for each in jobs
            for kind, target in (("service", service.pk), ("image", one.pk), ("job", looked_at.pk))
        ]
    )
    ApiToken.objects.bulk_create([ApiToken(user=user, digest=each.pk, label="a laptop") for each in jobs])


def put_away() -> None:
    """Let some services in bulk be the images that they have."""
    Service.objects.filter(name__endswith="0").update(status="dumped", pid=None, image_id=F("pk"))


def spread_out() -> None:
    """Let some services be another node's, with their images and jobs; and of these, some down."""
    other, _made = Node.objects.get_or_create(name="another")
    theirs = Service.objects.filter(name__regex="-[0-9]*[12]$")
    for rows in (Image.objects, Job.objects):
        rows.filter(service__in=theirs).update(node=other)
    theirs.update(node=other)
    theirs.filter(name__endswith="1").update(status="failed", pid=None)


def test_no_page_asks_more_of_the_database_when_there_is_more(asked: list[str]) -> None:
    boss = User.objects.create_superuser("boss", password="long enough 1")
    client, operator = Client(), Client()
    client.force_login(boss)
    operator.force_login(member("operator"))
    service = running_service("web")
    in_bulk(FEW)
    put_away()
    spread_out()
    lived(service, boss, FEW)
    image, newer = Image.objects.filter(service=service).order_by("created_at")[:2]
    job = Job.objects.filter(service=service, status="failed").earliest("queued_at")
    addresses = [
        "/",
        "/services/",
        "/services/new/",
        f"/services/{service.pk}/",
        f"/services/{service.pk}/logs/",
        *(f"/services/{service.pk}/{action}/" for action in SERVICE_ACTIONS),
        "/images/",
        f"/images/{image.pk}/",
        *(f"/images/{image.pk}/{action}/" for action in IMAGE_ACTIONS),
        "/images/compare/",
        f"/images/compare/?a={image.pk}&b={newer.pk}",
        "/images/prune/",
        "/jobs/",
        f"/jobs/{job.pk}/",
        "/audit/",
        "/account/tokens/",
        "/account/password/",
        "/admin/",
        *(
            reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
            for model in site._registry
        ),
        f"/admin/services/job/{job.pk}/change/",
        f"/admin/services/service/{service.pk}/change/",
        f"/admin/images/image/{image.pk}/change/",
    ]

    def questions() -> dict[str, int]:
        """Return how many questions each page asks, a choice of all services among them."""
        chosen = "&id=".join(Service.objects.values_list("pk", flat=True))
        found = {}
        for address in [*addresses, *(f"/services/bulk/?do={verb}" for verb in ("dump", "stop", "restore"))]:
            asked.clear()
            whole = f"{address}&id={chosen}" if "bulk" in address else address
            assert client.get(whole).status_code == 200, address
            found[address] = len(asked)
        for address in ("/services/", "/images/"):  # which say what he may not bring back
            asked.clear()
            assert operator.get(address).status_code == 200, address
            found[f"{address} of an operator"] = len(asked)
        return found

    questions()  # some of what the first ones learn is remembered
    few = questions()
    in_bulk(MANY - FEW)
    put_away()
    spread_out()
    lived(service, boss, MANY - FEW)
    many = questions()
    more = {address: count - few[address] for address, count in many.items() if count != few[address]}
    assert more == {}
    assert max(many.values()) <= 25, many
