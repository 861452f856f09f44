"""How much services use: the newest figures of each, and those of the last hour. It measures nothing."""

from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from services.models import Service, ServiceLoad, ServiceSample
from services.presenting import moment
from services.states import ServiceState

EVERY = 10.0  # seconds between two samples
KEPT = timedelta(hours=1)
FRESH = timedelta(seconds=3 * EVERY)


def running(node_name: str) -> dict[str, tuple[int, int | None]]:
    """Return by id the process and the supervisor of each service of a node that runs."""
    rows = Service.objects.filter(
        node__name=node_name, status__in=[ServiceState.RUNNING, ServiceState.DUMPING], pid__isnull=False
    )
    found = rows.values_list("pk", "pid", "supervisor_pid")
    return {pk: (pid, supervisor) for pk, pid, supervisor in found if pid}


def record(node_name: str, loads: dict[str, dict[str, Any]]) -> None:
    """Write the figures of one pass, and delete those that are too old.

    loads: by service's id, cpu (cores), memory (bytes), processes and listening (addresses).
    """
    now = timezone.now()
    # Services may have been deleted since they were measured.
    known = set(Service.objects.filter(pk__in=loads).values_list("pk", flat=True)) if loads else set()
    rows = [(key, load) for key, load in loads.items() if key in known]
    with transaction.atomic():
        ServiceLoad.objects.bulk_create(
            [ServiceLoad(service_id=key, at=now, **load) for key, load in rows],
            update_conflicts=True,
            unique_fields=["service"],
            update_fields=["at", "cpu", "memory", "processes", "listening"],
        )
        figures = ("cpu", "memory", "processes")
        ServiceSample.objects.bulk_create(
            [
                ServiceSample(service_id=key, at=now, **{name: load[name] for name in figures})
                for key, load in rows
            ]
        )
        ServiceSample.objects.filter(service__node__name=node_name, at__lt=now - KEPT).delete()


def load_object(load: ServiceLoad | None) -> dict[str, Any] | None:
    """Return the newest figures of a service for the API; None when they are old, as of one that ended."""
    if load is None or load.at < timezone.now() - FRESH:
        return None
    return {
        "at": moment(load.at),
        "cpu": load.cpu,
        "memory": load.memory,
        "processes": load.processes,
        "listening": load.listening,
    }


def samples(service: Service) -> dict[str, Any]:
    """Return the figures of a service's last hour, oldest first, and the newest with its ports."""
    rows = ServiceSample.objects.filter(service=service).order_by("at")
    return {
        "object_id": service.pk,
        "every": EVERY,
        "now": load_object(ServiceLoad.objects.filter(service=service).first()),
        "samples": [
            {"at": moment(at), "cpu": cpu, "memory": memory, "processes": processes}
            for at, cpu, memory, processes in rows.values_list("at", "cpu", "memory", "processes")
        ],
    }


def all_loads() -> dict[str, dict[str, Any]]:
    """Return by id the newest figures of all services that have some."""
    fresh = ServiceLoad.objects.filter(at__gte=timezone.now() - FRESH)
    return {load.service_id: found for load in fresh if (found := load_object(load))}
