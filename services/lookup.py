"""Finds services and jobs by what a person typed. It knows no requests."""

from django.conf import settings

from services.models import Job, Service
from services.problems import Problem, bad_input

PID = "pid:"
MOST_PID = 2**22  # the kernel's limit, proc(5)


def find_service(reference: str, *, shown: bool = False) -> Service:
    """Return the service of an id, a name, the unique beginning of an id, or pid:NNN on this node.

    shown: load also what its object shows. Raises Problem service_not_found, ambiguous_reference, bad_input.
    """
    services = Service.objects.for_display() if shown else Service.objects.select_related("node")
    if not reference.startswith(PID):
        return services.by_reference(reference)
    digits = reference.removeprefix(PID)
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits[:10]) <= MOST_PID):
        raise bad_input(
            f"The text {digits[:80]!r} is no process id.", "Take a PID that `mhctl service list` shows."
        )
    found = services.filter(pid=int(digits), node__name=settings.MIEHISTO_NODE).first()
    if found is None:
        raise Problem(
            "service_not_found",
            f"No service has the process {digits}.",
            "See `mhctl service list` for each service's process.",
            http_status=404,
        )
    return found


def find_job(reference: str) -> Job:
    """Return the job of an id or its unique beginning."""
    return Job.objects.by_reference(reference)
