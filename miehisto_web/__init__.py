"""The site: settings, routes and the Celery app that sends job ids. It doesn't know how a dump is made."""

from miehisto_web.celery import app as celery_app

__all__ = ("celery_app",)
