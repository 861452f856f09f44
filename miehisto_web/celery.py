"""The Celery app shared by the site (which sends) and the worker (which runs). It knows no task by itself.

`worker.tasks` is only named here: Celery imports it when a worker starts, never in the site.
"""

import os
from typing import Any

from celery import Celery
from celery.signals import import_modules
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from services.broker import refuse_open

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "miehisto_web.settings")

app = Celery("miehisto", include=["worker.tasks"])
app.config_from_object("django.conf:settings", namespace="CELERY")


@app.on_after_finalize.connect
def forget_tasks_of_celery(**_: Any) -> None:
    """Let a worker run none but Miehistö's own tasks: Celery brings some, such as `celery.map`."""
    for name in [name for name in app.tasks if name.startswith("celery.")]:
        app.tasks.unregister(name)


@import_modules.connect
def refuse_open_broker(**_: Any) -> None:
    """End a worker or a scheduler whose broker strangers reach."""
    try:
        refuse_open(settings.CELERY_BROKER_URL)
    except ImproperlyConfigured as error:
        # Celery swallows any other exception of a signal's receiver.
        raise SystemExit(f"miehisto: {error}") from None
