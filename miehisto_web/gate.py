"""Who may open a page: nobody who isn't logged in, nobody without a role, unless the view says so.

The API asks for itself, in `services.authentication`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseBase

from services.actors import require_viewer
from services.problems import Problem

V = TypeVar("V", bound=Callable[..., Any])


def without_role(view: V) -> V:
    """Mark a view that everybody may open who is logged in; Django's login_not_required opens it to all."""
    view.without_role = True  # type: ignore[attr-defined]
    return view


class RoleRequired(LoginRequiredMiddleware):
    """Django's middleware that asks for a login, and for a role too."""

    def process_view(
        self, request: HttpRequest, view_func: Any, view_args: Any, view_kwargs: Any
    ) -> HttpResponseBase | None:
        refused: HttpResponseBase | None = super().process_view(request, view_func, view_args, view_kwargs)
        if refused is None and _wants_role(view_func):
            try:
                require_viewer(request.user)
            except Problem as problem:
                raise PermissionDenied(f"{problem.message} {problem.remedy}") from problem
        return refused


def _wants_role(view: Any) -> bool:
    if not getattr(view, "login_required", True):
        return False
    return not any(getattr(part, "without_role", False) for part in (view, getattr(view, "view_class", None)))
