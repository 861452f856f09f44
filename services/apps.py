"""Django's configuration of the app `services`."""

from django.apps import AppConfig

from services import roles


class ServicesConfig(AppConfig):
    name = "services"

    def ready(self) -> None:
        from services import checks as checks  # noqa: PLC0414 - its import registers them

        roles.connect()
