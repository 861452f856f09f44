"""Django's configuration of the app `images`."""

from django.apps import AppConfig


class ImagesConfig(AppConfig):
    name = "images"
