"""The Celery app shared by the site (which sends) and the worker (which runs). It knows no task by itself.

`worker.tasks` is only named here: Celery imports it when a worker starts, never in the site.
"""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "miehisto_web.settings")

app = Celery("miehisto", include=["worker.tasks"])
app.config_from_object("django.conf:settings", namespace="CELERY")
