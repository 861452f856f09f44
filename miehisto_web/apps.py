"""Django's configuration of its admin pages here."""

from django.contrib.admin.apps import AdminConfig
from django.core.checks import Tags, register

from miehisto_web.checks import passwords_travel_openly


class SiteAdminConfig(AdminConfig):
    default_site = "miehisto_web.site_admin.SiteAdmin"

    def ready(self) -> None:
        super().ready()
        from miehisto_web import user_admin as user_admin  # noqa: PLC0414 - after Django's own, in its place

        register(passwords_travel_openly, Tags.security, deploy=True)
