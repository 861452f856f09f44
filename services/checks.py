"""What `manage.py check` says besides Django's own. It changes nothing."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from services import broker


@register("security")
def the_broker_is_closed(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:  # noqa: ARG001
    """Find a broker that strangers reach."""
    found = broker.fault(settings.CELERY_BROKER_URL)
    return [Error(found, hint=broker.REMEDY, id="miehisto.E001")] if found else []
