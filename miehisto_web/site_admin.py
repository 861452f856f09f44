"""Django's admin pages, for the role admin, behind the one login of the site."""

from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.decorators import method_decorator

from services.actors import may, refusal
from services.roles import ADMIN, ADMINISTER


class SiteAdmin(AdminSite):
    """Open to whoever may administer; what he may do in it, his permissions say."""

    site_header = site_title = "Miehistö"
    site_url = "/"
    enable_nav_sidebar = False  # the tables want its room

    def has_permission(self, request: HttpRequest) -> bool:
        return may(request.user, ADMINISTER)

    @method_decorator(login_not_required)
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:  # noqa: ARG002
        """Lead to the site's own login, the only door that counts who knocks."""
        if request.user.is_authenticated and not self.has_permission(request):
            problem = refusal(request.user, "administer", ADMIN)
            raise PermissionDenied(f"{problem.message} {problem.remedy}")
        return redirect_to_login(reverse("admin:index"))
