"""Who is calling the API: a Bearer token, or the session of someone logged in to the pages."""

import asyncio
import hashlib
import logging
import secrets
import time
from datetime import datetime, timedelta
from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from ninja.security import HttpBearer
from ninja.utils import check_csrf

from services.actors import Actor, may, require_viewer
from services.auditing import record_audit
from services.models import ApiToken
from services.problems import Problem, bad_input, not_allowed
from services.roles import SEE
from services.threads import in_thread
from services.throttle import TOKENS
from services.validation import text

# `last_used_at` is for people, who don't mind; a write each request would cost more than all the rest.
USED_EVERY = timedelta(minutes=10)
HEARD_FOR = 1.0  # seconds until it is asked again whether somebody may listen
MOST_LABEL = 100
MOST_DAYS = 3650

log = logging.getLogger(__name__)


def digest(token: str) -> str:
    """Return what is kept of a token. It is 256 random bits, so one round without salt is enough."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def issue(user: AbstractBaseUser, label: str = "", expires_at: datetime | None = None) -> str:
    """Make a token for `user` and return it; it can't be shown again. expires_at: None for never."""
    token = secrets.token_urlsafe(32)
    ApiToken.objects.create(user_id=user.pk, digest=digest(token), label=label, expires_at=expires_at)
    return token


def issue_as_asked(user: AbstractBaseUser, label: object, days: object, *, source: str) -> str:
    """Make a token as somebody asks for one, for himself or in the server's shell.

    label: what it is for. days: until it ends, 0 for never (in the server's shell alone).
    Raises Problem bad_input.
    """
    label = text(label, "label", limit=MOST_LABEL)
    least = 0 if source == "manage" else 1
    number = str(days)
    if not (number.isascii() and number.isdigit() and least <= int(number[:6]) <= MOST_DAYS):
        raise bad_input(
            f"A token cannot last {number[:80]!r} days.",
            f"Give a number from {least} to {MOST_DAYS}.",
            field="days",
        )
    expires_at = timezone.now() + timedelta(days=int(number)) if int(number) else None
    with transaction.atomic():
        token = issue(user, label, expires_at)
        record_audit(user, source, "make_token", detail={"label": label, "days": int(number)})
    return token


def revoke(token: ApiToken, *, actor: Actor, source: str) -> None:
    """End a token for good."""
    with transaction.atomic():
        record_audit(actor, source, "revoke_token", detail={"label": token.label, "of": token.user.username})
        token.delete()


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


class Hearing:
    """Whether somebody who was let in is still welcome, for answers that go on for minutes or hours.

    right: what he must be allowed. All that he listens to in this process is served by one question a second.
    """

    _asked: ClassVar[dict[object, tuple[float, asyncio.Task[bool]]]] = {}

    def __init__(self, request: HttpRequest, right: str = SEE) -> None:
        self._request = request
        self._right = right
        self._began = self._heard = time.monotonic()

    async def is_over(self, *, speaking: bool = True) -> bool:
        """Tell whether he was deactivated, logged out, lost the right, or his token has ended.

        speaking: whether there is something for him to hear now; then the answer is of the last second.
        """
        now = time.monotonic()
        if now - self._began < HEARD_FOR or (not speaking and now - self._heard < 10 * HEARD_FOR):
            return False
        self._heard = now
        # A loop's own, for tests have several.
        who = bearer_token(self._request) or self._request.session.session_key
        key = (asyncio.get_running_loop(), who, self._right)
        at, asking = self._asked.get(key, (now, None))
        if asking is None or now - at >= HEARD_FOR:
            for old in [key for key, (at, _) in self._asked.items() if now - at >= HEARD_FOR]:
                del self._asked[old]
            asking = asyncio.create_task(in_thread(self._is_welcome))
            self._asked[key] = (now, asking)
        return not await asyncio.shield(asking)  # who goes takes the answer from nobody

    def _is_welcome(self) -> bool:
        token = bearer_token(self._request)
        if token:
            user = user_of(token)
            return user is not None and may(user, self._right)
        session, user_id = self._request.session, self._request.user.pk
        user = User.objects.filter(pk=user_id).first() if user_id else None
        return user is not None and may(user, self._right) and session.exists(session.session_key or "")


class TokenOrSession(HttpBearer):
    """Ninja's hook. A session may change something only with Django's CSRF token (X-CSRFToken)."""

    async def __call__(self, request: HttpRequest) -> Any:
        token = bearer_token(request)
        if token:
            return await self.authenticate(request, token)
        user = getattr(request, "user", None)
        # In a thread that keeps its connection: a held answer (?wait=) must not hold one, too.
        if user is None or not await in_thread(lambda: user.is_authenticated):
            return None
        if await sync_to_async(check_csrf)(request) is not None:
            raise not_allowed(
                "The CSRF token is missing or wrong.", "Send the cookie's value as X-CSRFToken."
            )
        return await in_thread(_viewer, request, user)

    async def authenticate(self, request: HttpRequest, token: str) -> Any:
        user = await in_thread(lambda: _viewer(request, user_of(token)))
        if user is None:
            _count_guess(request)
        return user


def _count_guess(request: HttpRequest) -> None:
    """Remember a wrong token. Raises Problem too_many_guesses once an address has sent too many.

    A token is 256 random bits, so guessing is hopeless; this is for the log, and for the program that asks
    all day long with a token that has ended. A right token from the same address is still heard.
    """
    address = request.META.get("REMOTE_ADDR") or "unix"
    wait = TOKENS.wait(address)
    if not wait:
        count = TOKENS.count(address)
        if count in {1, TOKENS.limit}:
            log.warning("wrong or ended token from %s (%d within %d s)", address, count, TOKENS.window)
        return
    raise Problem(
        "too_many_guesses",
        "Too many wrong tokens came from your address.",
        f"Wait {wait} s; a token that has ended never comes back, so make another.",
        http_status=429,
        details={"retry_after": wait},
    )


def _viewer(request: HttpRequest, user: AbstractBaseUser | None) -> AbstractBaseUser | None:
    """Return who asks. Raises Problem not_allowed when he has no role at all."""
    if user is not None:
        request.auth = user  # type: ignore[attr-defined]  # ninja would set it too late for the record
        require_viewer(user)
    return user
