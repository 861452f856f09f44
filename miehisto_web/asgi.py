"""The ASGI entry point that gunicorn loads. It knows only which settings to load, and which to refuse."""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application

from miehisto_web.limits import Limits
from services.broker import refuse_open

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "miehisto_web.settings")

refuse_open(settings.CELERY_BROKER_URL)
application = Limits(get_asgi_application())
