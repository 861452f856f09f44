"""What somebody may do on the pages, so that a page depends on nothing else of who looks at it."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import NamedTuple

from django.db.models import QuerySet

from images.models import Image
from services.actors import Actor, may, reserved
from services.models import Service
from services.roles import ADMINISTER, AUDIT, OPERATE, RESTORE_FOREIGN, SEE

_KNOWN_FOR = 10.0
"""Seconds for which a page takes what an account may for granted; the operations ask each time."""


class Rights(NamedTuple):
    """see: look at pages. operate: start, dump, restore, … administer: delete. audit: see the record.

    foreign: restore what was imported.
    """

    see: bool
    operate: bool
    administer: bool
    audit: bool
    foreign: bool

    @classmethod
    def of(cls, actor: Actor) -> Rights:
        """Return what a user may do; it may read his permissions from the database."""
        return cls(*(may(actor, each) for each in (SEE, OPERATE, ADMINISTER, AUDIT, RESTORE_FOREIGN)))


def account_of(subject: Service | Image) -> tuple[str, str]:
    """Return the user and the group of a service, or of an image's, which may be deleted since."""
    if isinstance(subject, Service):
        return subject.user, subject.group
    return account_of(subject.service) if subject.service else account_in(subject)


def account_in(image: Image) -> tuple[str, str]:
    """Return the user and the group that an image itself says its service has."""
    spec = (image.manifest or {}).get("spec") or {}
    return str(spec.get("user", "")), str(spec.get("group", ""))


def barred(rights: Rights, subject: Service | Image) -> str:
    """Return why an operator may not bring a service, or that of an image, to life; "" if he may.

    The operations ask the same: `require_account`, and `require_trusted` for an image.
    """
    if not rights.foreign and isinstance(subject, Image) and subject.is_foreign:
        return "It was imported: only an admin can restore it."
    return "" if rights.administer else _only_for_admins(account_of(subject), "bring it back")


def barred_values(rights: Rights, image: Image) -> str:
    """Return why an operator may not see the environment in an image; "" if he may, wherever it comes from.

    The operation asks the same, of what the image says: its service may be another one here.
    """
    return "" if rights.administer else _only_for_admins(account_in(image), "see its environment")


def barred_carrying(rights: Rights, service: Service) -> str:
    """Return why an operator may not have the data of a service carried; "" if he may."""
    return "" if rights.administer else _only_for_admins(account_of(service), "have its data carried")


def why_not_restored(rights: Rights, image: Image | None) -> str:
    """Return why a service that is this image would not be restored; "" if nothing is known."""
    if image is None:
        return "Its image is not in the pool."
    return barred(rights, image) or ("Its image is damaged." if image.is_damaged else "")


def shown_to(rights: Rights, images: QuerySet[Image]) -> QuerySet[Image]:
    """Return images with what a table shows of them, and what `barred` looks at.

    A manifest can be long, and is read only for whoever may restore some images and not others.
    """
    some = rights.operate and not (rights.foreign and rights.administer)
    return images.for_display().defer("statistics", *([] if some else ["manifest"]))  # type: ignore[attr-defined, no-any-return]


def _only_for_admins(account: tuple[str, str], what: str) -> str:
    how = _reserved(*account, int(time.monotonic() / _KNOWN_FOR))
    return how and f"It runs {how}: only an admin can {what}."


@lru_cache(maxsize=256)
def _reserved(user: str, group: str, _now: int) -> str:
    """Ask once for all rows of a table: who knows the host's users may be a server far away."""
    return reserved(user, group)
