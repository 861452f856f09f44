"""Django's configuration of the app `services`."""

from django.apps import AppConfig


class ServicesConfig(AppConfig):
    name = "services"
