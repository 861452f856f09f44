"""The figures, their names and what they mean, in Prometheus's shapes. docs/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.db.models import Count, Sum
from django.utils import timezone
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from images.models import Image
from metrics.history import Histogram, History, Sums
from services.models import Job, Node, Service
from services.states import ACTIVE_JOB, JobKind, JobState, ServiceState

_history = History()


class _Rows(Collector):
    """Asks the rows at each scrape."""

    def collect(self) -> Iterator[Metric]:
        yield from _nodes()
        yield from _services()
        yield from _waiting()
        with _history.lock:
            _history.catch_up()
            yield from _ended(_history.sums)


def text() -> bytes:
    """Return all figures in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Rows())
    return generate_latest(registry)


def _nodes() -> Iterator[Metric]:
    age = GaugeMetricFamily(
        "miehisto_node_heartbeat_age_seconds", "Since a node's agent was heard of.", labels=["node"]
    )
    size = GaugeMetricFamily("miehisto_pool_size_bytes", "Size of the image pool's disk.", labels=["node"])
    free = GaugeMetricFamily("miehisto_pool_free_bytes", "What is free on it.", labels=["node"])
    used = GaugeMetricFamily("miehisto_images_bytes", "What all images of a node take.", labels=["node"])
    count = GaugeMetricFamily(
        "miehisto_images", "Images of a node, by what they are.", labels=["node", "status"]
    )
    told = GaugeMetricFamily(
        "miehisto_node_info", "Versions of a node; always 1.", labels=["node", "criu", "kernel"]
    )
    now = timezone.now()
    for node in Node.objects.order_by("name"):
        if node.last_seen_at is not None:
            age.add_metric([node.name], (now - node.last_seen_at).total_seconds())
        told.add_metric([node.name, node.criu_version, node.kernel], 1)
        for family, name in ((size, "pool_size"), (free, "pool_free")):
            if isinstance(node.capabilities.get(name), int):
                family.add_metric([node.name], node.capabilities[name])
    kept = Image.objects.order_by().values_list("node__name", "status")
    for name, status, number in kept.annotate(number=Count("pk")):
        count.add_metric([name, status], number)
    for name, total in Image.objects.order_by().values_list("node__name").annotate(total=Sum("size_bytes")):
        used.add_metric([name], total)
    yield from (age, told, size, free, used, count)


def _services() -> Iterator[Metric]:
    family = GaugeMetricFamily("miehisto_services", "Services of a node, by state.", labels=["node", "state"])
    rows = Service.objects.order_by().values_list("node__name", "status").annotate(number=Count("pk"))
    found = {(node, state): number for node, state, number in rows}
    for node in Node.objects.order_by("name").values_list("name", flat=True):
        for state in ServiceState:
            family.add_metric([node, state.value], found.get((node, state.value), 0))
    yield family


def _waiting() -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "miehisto_jobs_active", "Jobs not ended yet.", labels=["node", "kind", "status"]
    )
    oldest = GaugeMetricFamily(
        "miehisto_queue_oldest_seconds",
        "How long the first job in a node's queue has waited.",
        labels=["node"],
    )
    now = timezone.now()
    found: dict[tuple[str, str, str], int] = {}
    first: dict[str, float] = {}
    for node, kind, status, queued in (
        Job.objects.active().order_by().values_list("node__name", "kind", "status", "queued_at")
    ):
        found[node, kind, status] = found.get((node, kind, status), 0) + 1
        if status == JobState.QUEUED:
            first[node] = max(first.get(node, 0.0), (now - queued).total_seconds())
    for node in Node.objects.order_by("name").values_list("name", flat=True):
        for kind in JobKind:
            for state in sorted(ACTIVE_JOB):
                family.add_metric([node, kind.value, state.value], found.get((node, kind, state), 0))
        oldest.add_metric([node], first.get(node, 0.0))
    yield from (family, oldest)


def _ended(sums: Sums) -> Iterator[Metric]:
    jobs = CounterMetricFamily(
        "miehisto_jobs", "Jobs that ended, by kind and how.", labels=["node", "kind", "status"]
    )
    for (node, kind, status), number in sorted(sums.ended.items()):
        jobs.add_metric([node, kind, status], number)
    written = CounterMetricFamily("miehisto_dumped_bytes", "Memory that dumps wrote.", labels=["node"])
    for node, total in sorted(sums.dumped_bytes.items()):
        written.add_metric([node], total)
    yield from (jobs, written)
    yield _histogram("miehisto_job_seconds", "How long a worker had a job.", ["node", "kind"], sums.seconds)
    yield _histogram("miehisto_job_wait_seconds", "How long a job was queued.", ["node"], sums.waited)
    yield _histogram(
        "miehisto_dump_frozen_seconds",
        "How long a dump stopped its service, by CRIU's word.",
        ["node"],
        sums.frozen,
    )


def _histogram(
    name: str, text: str, labels: Sequence[str], found: dict[tuple[str, ...], Histogram]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in sorted(found.items()):
        family.add_metric(values, histogram.buckets(), histogram.sum)
    return family
