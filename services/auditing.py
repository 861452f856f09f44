"""The record of who did what, when, from where, and what came of it. It knows no operation.

A job says what became of it in its events; this says that somebody asked, also for what is no job: a look at
a service's environment, a name, a refusal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.utils import timezone

from services.actors import Actor, name_of
from services.models import AuditEvent, AuditOutcome
from services.states import JobKind

# The words that a record can have; who looks for one need not ask a table that only grows.
ACTIONS = (
    *(kind.value for kind in JobKind),
    "cancel",
    "rename",
    "set",
    "show_env",
    "login",
    "locked_out",
    "change_password",
    "make_token",
    "revoke_token",
    "add",
    "edit",
    "remove",
    "refused",
)
TARGETS = ("service", "image", "job", "node", "user", "role", "token")
SOURCES = ("web", "api", "mhctl", "manage", "agent", "schedule")

address: ContextVar[str] = ContextVar("address", default="")
"""Where this request comes from: an IP address, "unix" for the node's own socket, "" for no request."""


@contextmanager
def asked_from(place: str) -> Iterator[None]:
    """For the time of a `with`, say where the request comes from."""
    before = address.set(place)
    try:
        yield
    finally:
        address.reset(before)


def record_audit(
    actor: Actor,
    source: str,
    action: str,
    *,
    target_kind: str = "",
    target_id: str = "",
    outcome: AuditOutcome = AuditOutcome.DONE,
    detail: dict[str, Any] | None = None,
) -> AuditEvent:
    """Write one line of the record; in the transaction of what it tells of, if there is one.

    action: a word such as start, dump, show_env, rename. target_kind, target_id: one of TARGETS, and which.
    detail: what else is worth knowing, never a secret.
    """
    return AuditEvent.objects.create(
        at=timezone.now(),
        actor=name_of(actor)[:150],
        source=source[:16],
        address=address.get()[:64],
        action=action[:64],
        target_kind=target_kind[:16],
        target_id=target_id[:64],
        outcome=outcome.value,
        detail=detail or {},
    )
