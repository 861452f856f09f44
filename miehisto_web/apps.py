"""Django's configuration of its admin pages here."""

from django.contrib.admin.apps import AdminConfig
from django.core.checks import Tags, register

from miehisto_web.checks import passwords_travel_openly


class SiteAdminConfig(AdminConfig):
    default_site = "miehisto_web.site_admin.SiteAdmin"

    def ready(self) -> None:
        super().ready()
        register(passwords_travel_openly, Tags.security, deploy=True)
