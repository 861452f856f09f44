"""The dashboard as a Django app: Django looks for template tags in apps only."""

from django.apps import AppConfig


class DashboardConfig(AppConfig):
    name = "dashboard"
