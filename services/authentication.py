"""Who is calling the API: a Bearer token, or the session of someone logged in to the pages."""

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from ninja.security import HttpBearer
from ninja.utils import check_csrf

from services.actors import require_viewer
from services.models import ApiToken
from services.problems import not_allowed
from services.threads import in_thread

# `last_used_at` is for people, who don't mind; a write each request would cost more than all the rest.
USED_EVERY = timedelta(minutes=10)


def digest(token: str) -> str:
    """Return what is kept of a token. It is 256 random bits, so one round without salt is enough."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def issue(user: AbstractBaseUser, label: str = "") -> str:
    """Make a token for `user` and return it; it can't be shown again."""
    token = secrets.token_urlsafe(32)
    ApiToken.objects.create(user_id=user.pk, digest=digest(token), label=label)
    return token


def user_of(token: str) -> AbstractBaseUser | None:
    """Return the active user whose unexpired token this is, or None; one query."""
    now = timezone.now()
    unexpired = Q(expires_at__isnull=True) | Q(expires_at__gt=now)
    tokens = ApiToken.objects.select_related("user").filter(unexpired, user__is_active=True)
    found = tokens.filter(digest=digest(token)).first()
    if found is None:
        return None
    if found.last_used_at is None or found.last_used_at < now - USED_EVERY:
        ApiToken.objects.filter(pk=found.pk).update(last_used_at=now)
    return found.user


def bearer_token(request: HttpRequest) -> str:
    """Return the token of the Authorization header, or ""."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def caller(request: HttpRequest) -> AbstractBaseUser | AnonymousUser:
    """Return whom TokenOrSession found, or on a page who is logged in."""
    found = getattr(request, "auth", None) or getattr(request, "user", None)
    return found if isinstance(found, AbstractBaseUser) else AnonymousUser()


class TokenOrSession(HttpBearer):
    """Ninja's hook. A session may change something only with Django's CSRF token (X-CSRFToken)."""

    async def __call__(self, request: HttpRequest) -> Any:
        token = bearer_token(request)
        if token:
            return await self.authenticate(request, token)
        if not hasattr(request, "auser"):
            return None
        user = await request.auser()
        if not user.is_authenticated:
            return None
        if await sync_to_async(check_csrf)(request) is not None:
            raise not_allowed(
                "The CSRF token is missing or wrong.", "Send the cookie's value as X-CSRFToken."
            )
        return await in_thread(_viewer, request, user)

    async def authenticate(self, request: HttpRequest, token: str) -> Any:
        return await in_thread(lambda: _viewer(request, user_of(token)))


def _viewer(request: HttpRequest, user: AbstractBaseUser | None) -> AbstractBaseUser | None:
    """Return who asks. Raises Problem not_allowed when he has no role at all."""
    if user is not None:
        request.auth = user  # type: ignore[attr-defined]  # ninja would set it too late for the record
        require_viewer(user)
    return user
