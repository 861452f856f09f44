"""What Prometheus reads."""

from __future__ import annotations

import http.client
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from images.models import ImageState
from metrics import families
from metrics.history import History
from services.models import Job, Node
from services.states import JobKind, JobState, ServiceState
from tests.rows import recorded_image, running_service, stopped_service
from tests.stack import CHECKOUT, Stack

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of this test's rows alone."""
    monkeypatch.setattr(families, "_history", History())


def figures(text: bytes) -> dict[str, float]:
    return {
        sample.name
        + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def ended(seconds: float, **more: object) -> Job:
    now = timezone.now()
    fields = {
        "kind": JobKind.DUMP,
        "node": Node.objects.local(),
        "status": JobState.SUCCEEDED,
        "queued_at": now - timedelta(seconds=seconds + 0.02),
        "started_at": now - timedelta(seconds=seconds),
        "finished_at": now,
        "statistics": {"frozen_time": 30_000, "pages_written": 10},
    }
    return Job.objects.create(**{**fields, **more})


def test_jobs_are_counted_once_however_often_they_are_asked_for() -> None:
    node = Node.objects.local().name
    ended(0.2)
    ended(0.2, status=JobState.FAILED, statistics={})
    families.text()
    ended(7)
    found = figures(families.text())
    assert found[f"miehisto_jobs_total kind=dump node={node} status=succeeded"] == 2
    assert found[f"miehisto_jobs_total kind=dump node={node} status=failed"] == 1
    assert found[f"miehisto_job_seconds_bucket kind=dump le=0.25 node={node}"] == 2
    assert found[f"miehisto_job_seconds_count kind=dump node={node}"] == 3
    assert found[f"miehisto_dumped_bytes_total node={node}"] == 2 * 10 * 4096
    assert found[f"miehisto_dump_frozen_seconds_sum node={node}"] == pytest.approx(0.06)
    assert found[f"miehisto_job_wait_seconds_count node={node}"] == 3


def test_a_job_that_is_seen_late_is_counted() -> None:
    node = Node.objects.local().name
    ended(1)
    families.text()
    ended(1, finished_at=timezone.now() - timedelta(seconds=30))  # its commit came after the look
    assert figures(families.text())[f"miehisto_job_seconds_count kind=dump node={node}"] == 2


def test_the_past_is_counted_by_one_process_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node.objects.local().name
    before = timezone.now() - timedelta(days=3)
    ended(0.2, queued_at=before, started_at=before, finished_at=before + timedelta(seconds=0.2))
    ended(7)
    first = figures(families.text())
    assert first[f"miehisto_job_seconds_count kind=dump node={node}"] == 2
    Job.objects.filter(finished_at__lt=timezone.now() - timedelta(days=2)).update(finished_at=None)
    monkeypatch.setattr(families, "_history", History())
    assert figures(families.text()) == first
    ended(1)
    assert figures(families.text())[f"miehisto_job_seconds_count kind=dump node={node}"] == 3
    # Another version has other bounds: it counts anew.
    monkeypatch.setattr("metrics.history.LONG", (0.5, 20.0))
    monkeypatch.setattr(families, "_history", History())
    assert figures(families.text())[f"miehisto_job_seconds_bucket kind=dump le=20.0 node={node}"] == 2


def test_services_images_queue_and_pool_are_told() -> None:
    node = Node.objects.local()
    Node.objects.filter(pk=node.pk).update(
        last_seen_at=timezone.now(), capabilities={"pool_size": 100, "pool_free": 40}
    )
    running_service()
    recorded_image(stopped_service())
    Job.objects.create(kind=JobKind.CHECK, node=node, queued_at=timezone.now() - timedelta(seconds=60))
    found = figures(families.text())
    assert found[f"miehisto_services node={node.name} state=running"] == 1
    assert found[f"miehisto_services node={node.name} state=failed"] == 0
    assert found[f"miehisto_images node={node.name} status=sealed"] == 1
    assert found[f"miehisto_jobs_active kind=check node={node.name} status=queued"] == 1
    assert found[f"miehisto_jobs_active kind=dump node={node.name} status=queued"] == 0
    assert found[f"miehisto_queue_oldest_seconds node={node.name}"] >= 60
    assert found[f"miehisto_pool_free_bytes node={node.name}"] == 40
    assert found[f"miehisto_node_heartbeat_age_seconds node={node.name}"] < 60


def test_every_figure_is_documented_and_on_the_board_there_is_no_other() -> None:
    ended(1)
    told = {family.name for family in text_string_to_metric_families(families.text().decode())}
    page = (CHECKOUT / "docs/metrics.md").read_text(encoding="utf-8")
    assert told == {name.removesuffix("_total") for name in re.findall(r"^\| `(miehisto_\w+)`", page, re.M)}
    board = Path(CHECKOUT / "deploy/grafana.json").read_text(encoding="utf-8")
    known: dict[str, set[str]] = {
        "kind": set(JobKind),
        "state": set(ServiceState),
        "status": {*JobState, *ImageState},
    }
    queries = re.findall(r'"expr": "(.*miehisto_.*)"', board)
    assert all(query.count("miehisto_") == query.count('{node=~\\"$node\\"') for query in queries), (
        "each heeds it"
    )
    used = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in re.findall(r"miehisto_\w+", board)}
    assert used <= told
    for label, how, values in re.findall(r'\b(kind|state|status)([!=~]+)\\?"([^"\\]*)', board + page):
        assert set(values.split("|")) <= known[label], f"{label}: {values}"
        assert "!" not in how, f"{label}: what is not {values} is more than one thinks of"


def test_a_real_dump_shows(stack: Stack) -> None:
    service = stack.create("sleep", "1000")
    stack.dump(service)
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=10)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {stack.token()}"})
    answer = connection.getresponse()
    found = figures(answer.read())
    connection.close()
    assert answer.status == 200
    assert found["miehisto_jobs_total kind=dump node=node-of-tests status=succeeded"] >= 1
    assert found["miehisto_dump_frozen_seconds_sum node=node-of-tests"] > 0
    assert found["miehisto_pool_size_bytes node=node-of-tests"] > 0
