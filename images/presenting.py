"""Image rows as the API's objects. It reads no more than it is given."""

from typing import Any

from images.models import Image
from services.presenting import moment


def image_object(image: Image) -> dict[str, Any]:
    """The image must come from `for_display()`, or each call costs two queries."""
    return {
        "object_id": image.pk,
        "name": image.name,
        "service": image.service_ref or None,
        "service_name": image.service.name if image.service else "",
        "node": image.node.name,
        "comm": image.comm,
        "page_size": image.pages_bytes,
        "size": image.size_bytes,
        "ctime": moment(image.created_at),
        "leave_running": image.leave_running,
        "carried": image.carried,
        "status": image.status,
        "damage": image.damage,
        "verified": moment(image.verified_at),
        "path": image.path,
        "criu_version": image.criu_version,
        "kernel": image.kernel,
        "args": image.argv,
        "statistics": image.statistics,
        "origin": image.origin,
    }
