"""What `manage.py check --deploy` says about this site besides Django's own checks."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Warning

from miehisto_web.environment import is_loopback


def passwords_travel_openly(
    app_configs: Sequence[AppConfig] | None,  # noqa: ARG001 (Django's)
    **_how: Any,
) -> list[CheckMessage]:
    """Warn of a site that other hosts reach without HTTPS."""
    if settings.HTTPS or is_loopback(settings.MIEHISTO_BIND):
        return []
    return [
        Warning(
            f"{settings.MIEHISTO_BIND} can be reached from elsewhere without HTTPS, so passwords and tokens "
            "can be read on the way.",
            hint="Put a proxy that speaks HTTPS before it and set MIEHISTO_HTTPS=1.",
            id="miehisto.W001",
        )
    ]
