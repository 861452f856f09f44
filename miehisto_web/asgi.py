"""The ASGI entry point that gunicorn loads. It knows only which settings to load."""

import os

from django.core.asgi import get_asgi_application

from miehisto_web.limits import Limits

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "miehisto_web.settings")

application = Limits(get_asgi_application())
