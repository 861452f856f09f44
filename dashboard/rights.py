"""What somebody may do on the pages, so that a page depends on nothing else of who looks at it."""

from __future__ import annotations

from typing import NamedTuple

from services.actors import Actor, may
from services.roles import ADMINISTER, AUDIT, OPERATE, SEE


class Rights(NamedTuple):
    """see: look at pages. operate: start, dump, restore, … administer: delete. audit: see the record."""

    see: bool
    operate: bool
    administer: bool
    audit: bool

    @classmethod
    def of(cls, actor: Actor) -> Rights:
        """Return what a user may do; it may read his permissions from the database."""
        return cls(may(actor, SEE), may(actor, OPERATE), may(actor, ADMINISTER), may(actor, AUDIT))
