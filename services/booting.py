"""Which services come back after their node was started anew, and what is said of it. It knows no images."""

from django.db import transaction

from services.models import Job, Service
from services.progress import write_reason
from services.states import JobKind, JobState, ServiceState

# Running, or put away as an image; what was stopped, had ended or never ran stays away.
_WANTED = frozenset(
    {
        ServiceState.RUNNING,
        ServiceState.STARTING,
        ServiceState.RESTORING,
        ServiceState.DUMPING,
        ServiceState.DUMPED,
    }
)
_UNWANTED_BY = frozenset({JobKind.STOP, JobKind.DELETE_SERVICE})


def wanted_back(node_name: str) -> list[str]:
    """Return the ids of the services that shall come back; to be read before their rows are settled."""
    found = []
    for service in Service.objects.filter(node__name=node_name, restore_on_boot=True):
        job = Job.objects.active().filter(service=service).first()
        kind = JobKind(job.kind) if job else None
        # A restart has stopped it for a moment only.
        if kind not in _UNWANTED_BY and (service.state in _WANTED or kind is JobKind.RESTART):
            found.append(service.pk)
    return found


def give_up(service_id: str, reason: str, state: ServiceState | None = None) -> None:
    """Write why a service is not back.

    state: what it has come to; None for what it is.
    """
    with transaction.atomic():
        service = Service.objects.select_for_update().filter(pk=service_id).first()
        if service is None or Job.objects.filter(service=service, status=JobState.RUNNING).exists():
            return
        write_reason(service, state or service.state, reason)
