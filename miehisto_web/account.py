"""One's own account: logging in, the password, tokens for programs. It knows no service.

These pages want no role, for who has none may still log out and change the password.
"""

from datetime import timedelta
from http import HTTPStatus
from typing import Any

from axes.models import AccessAttempt
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import views as auth
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse_lazy
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from dashboard.page import user_of_page
from miehisto_web.gate import without_role
from services import authentication
from services.actors import Actor
from services.auditing import record_audit
from services.models import ApiToken, AuditOutcome
from services.problems import Problem
from services.throttle import LOGINS

DAYS = (7, 30, 90, 365)
DEFAULT_DAYS = 90


class Login(auth.LoginView):
    """Log in; who fails too often waits."""

    template_name = "login.html"

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        wait = LOGINS.wait(request.META.get("REMOTE_ADDR", ""))
        if wait:
            return locked(request, "Too many failed logins from your address.", wait)
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        record_audit(form.get_user(), "web", "login")
        return super().form_valid(form)

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        # Each line once: whoever is kept out could fill the disk by trying on.
        if LOGINS.count(self.request.META.get("REMOTE_ADDR", "")) == LOGINS.limit:
            _record_lockout("", "address", LOGINS.window)
        # axes' own mark, which a form without a name or a password never got.
        failures = getattr(self.request, "axes_failures_since_start", 0)
        if failures:  # axes does not count, nor look at the password, while it keeps a name out
            # Of users only: a stranger could fill the disk, and what is no name may be a password.
            name = form.data.get("username", "").replace("\0", "")[:150]
            known = User.objects.filter(username=name).first()
            if known is not None:
                record_audit(known, "web", "login", outcome=AuditOutcome.REFUSED)
                if failures >= settings.AXES_FAILURE_LIMIT:
                    _record_lockout(known, "name", settings.AXES_COOLOFF_TIME.total_seconds())
        return super().form_invalid(form)


def _record_lockout(actor: Actor, counted: str, seconds: float) -> None:
    """Put on the record that from now on a name, or an address whatever the name, is not heard there."""
    detail = {"counted": counted, "minutes": round(seconds / 60)}
    record_audit(actor, "web", "locked_out", outcome=AuditOutcome.REFUSED, detail=detail)


@without_role
class Password(auth.PasswordChangeView):
    """Change one's password; other sessions end, tokens stay."""

    template_name = "account/password.html"
    success_url = reverse_lazy("tokens")

    def form_valid(self, form: Any) -> HttpResponse:
        record_audit(self.request.user, "web", "change_password")
        messages.success(self.request, "Your password is changed; you are logged out everywhere else.")
        return super().form_valid(form)


def locked_out(request: HttpRequest, *_axes: Any) -> HttpResponse:
    """Answer somebody whom axes refuses: the name, from this address, failed too often."""
    name = request.POST.get("username", "")[:150]
    attempts = AccessAttempt.objects.filter(username=name, ip_address=request.META.get("REMOTE_ADDR") or None)
    last = attempts.order_by("-attempt_time").first()
    until = (last.attempt_time if last else timezone.now()) + settings.AXES_COOLOFF_TIME
    seconds = max(1, round((until - timezone.now()).total_seconds()))
    return locked(request, "Too many failed logins for this name from your address.", seconds)


def locked(request: HttpRequest, message: str, seconds: int) -> HttpResponse:
    """Answer 429: what happened, and when to come back."""
    context = {
        "message": message,
        "minutes": -(-seconds // 60),
        "until": timezone.now() + timedelta(seconds=seconds),
    }
    answer = render(request, "429.html", context, status=HTTPStatus.TOO_MANY_REQUESTS)
    answer["Retry-After"] = str(seconds)
    return answer


@without_role
@never_cache
@require_http_methods(["GET", "POST"])
def tokens(request: HttpRequest) -> HttpResponse:
    """List one's own tokens; POST makes one and shows it, this once."""
    user = user_of_page(request)
    made, label, problem = "", "", None
    if request.method == "POST":
        label = request.POST.get("label", "").strip()
        try:
            made = authentication.issue_as_asked(user, label, request.POST.get("days", ""), source="web")
        except Problem as refused:
            problem = refused
    context = {
        "tokens": ApiToken.objects.filter(user=user).order_by("-created_at"),
        "made": made,
        "label": label,
        "problem": problem,
        "days": DAYS,
        "default_days": DEFAULT_DAYS,
        "now": timezone.now(),
    }
    status = problem.http_status if problem else HTTPStatus.OK
    return render(request, "account/tokens.html", context, status=status)


@without_role
@require_POST
def revoke_token(request: HttpRequest, pk: int) -> HttpResponse:
    """End one of one's own tokens; another's doesn't exist for who asks."""
    user: User = user_of_page(request)
    authentication.revoke(get_object_or_404(ApiToken, pk=pk, user=user), actor=user, source="web")
    messages.success(request, "The token has ended.")
    return redirect("tokens")
