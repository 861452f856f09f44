"""Django's configuration of its admin pages here."""

from django.contrib.admin.apps import AdminConfig


class SiteAdminConfig(AdminConfig):
    default_site = "miehisto_web.site_admin.SiteAdmin"
