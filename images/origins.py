"""What an image says of its service, and how far that is believed when the image was imported.

It asks for no job.
"""

from functools import partial
from pathlib import PurePosixPath
from typing import Any

from django.db import IntegrityError, transaction

from images.models import Image
from services import validation
from services.actors import Actor, require
from services.models import Service
from services.operations import adopt
from services.problems import Problem
from services.roles import ADMIN, RESTORE_FOREIGN
from services.states import ServiceState

_SPEC: dict[str, Any] = {
    "argv": [],
    "user": "",
    "group": "",
    "cwd": "",
    "env": {},
    "binds": [],
    "data": [],
    "carry": [],
    "privileges": {},
}
"""What must be the same, with what an image says that was made before there was such a thing."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of a service whose environment names none, as its supervisor sets it."""


def check_spec(spec: dict[str, Any]) -> None:
    """Raise Problem bad_input for what an image says of its service if nobody could have created it here."""
    argv = validation.command(spec.get("argv"))
    env = validation.environment(spec.get("env", {}))
    validation.command_size(argv, env)
    validation.account(spec.get("user", ""), "user")
    validation.account(spec.get("group", ""), "group")
    validation.folder(spec.get("cwd") or "/")
    validation.binds(spec.get("binds", []))


def require_trusted(image: Image, actor: Actor) -> None:
    """Raise Problem not_allowed unless `actor` may restore the image: a foreign one runs as root whatever is
    in it, and nobody on this node has seen that run.
    """
    if image.is_foreign:
        require(actor, RESTORE_FOREIGN, "restore an image that was imported", ADMIN)


def require_same(image: Image, service: Service) -> None:
    """Raise Problem service_differs when a foreign image claims a service that is another one here.

    Its limits may be more than the service's: root's policy, where the image comes from, adds its own, and
    gives a command that was asked for by its name the path at which it was found.
    """
    if not image.is_foreign:
        return
    spec = (image.manifest or {}).get("spec") or {}
    other = [key for key, unsaid in _SPEC.items() if spec.get(key, unsaid) != getattr(service, key)]
    if "argv" in other and _is_same_command(spec.get("argv"), service):
        other.remove("argv")
    limits = spec.get("limits") or {}
    if not isinstance(limits, dict) or not service.limits.items() <= limits.items():
        other.append("limits")
    if service.node_id != image.node_id or other:
        what = f" (by its {', '.join(other)})" if other else ""
        raise Problem(
            "service_differs",
            f"The image says that it is of service {service}, which is another one here{what}.",
            "Delete that service first if the image's shall take its place.",
            details={"service": service.pk, "different": other},
        )


def _is_same_command(argv: Any, service: Service) -> bool:
    """Tell whether an image's command runs what the service's does, one of them by a name that the service
    looks for in its PATH, the other by a path at which it does so.
    """
    if not argv or not isinstance(argv, list) or argv[1:] != service.argv[1:]:
        return False
    word, path = sorted((str(argv[0]), service.argv[0]), key=lambda first: "/" in first)
    folders = service.env.get("PATH", DEFAULT_PATH).split(":")
    places = {PurePosixPath(service.cwd or "/", folder, word) for folder in folders}
    return "/" not in word and PurePosixPath(path) in places


def service_again(image: Image, actor: Actor) -> Service:
    """Make the row of a service that this node doesn't have (any more); it is what the image says.

    It has the name that it had where the image comes from, with a number behind it if that is taken.
    Raises Problem service_not_found when the image doesn't say.
    """
    spec = (image.manifest or {}).get("spec") or {}
    if not spec.get("argv"):
        raise Problem(
            "service_not_found",
            f"The service of image {image} was deleted, and the image does not say what it was.",
            "Create the service anew (mhctl service create).",
            http_status=404,
            details={"service": image.service_ref},
        )
    again = partial(
        adopt, image.service_ref, node=image.node, spec=spec, state=ServiceState.DUMPED, actor=actor
    )
    try:
        with transaction.atomic():
            return again(name=_free_name(image))
    except IntegrityError:  # the name was taken a moment ago
        return again()


def _free_name(image: Image) -> str:
    wanted = str((image.origin or {}).get("from", {}).get("service_name", ""))
    try:
        candidates = [validation.name(name) for name in (wanted, *(f"{wanted}-{n}" for n in range(2, 100)))]
    except Problem:
        return ""
    taken = set(Service.objects.filter(node=image.node, name__in=candidates).values_list("name", flat=True))
    return next((name for name in candidates if wanted and name not in taken), "")
