"""Finds one row by what a person typed: an id, a name, or the unique beginning of an id."""

import re
from typing import Any, TypeVar

from django.db import models
from django.db.models import Case, IntegerField, Q, Value, When

from services.problems import Problem, bad_input

M = TypeVar("M", bound=models.Model)

WHOLE_ID = re.compile(r"[0-9a-f]{32}\Z")
HEX_PREFIX = re.compile(r"[0-9a-f]{1,32}\Z")
LISTED = 10  # candidates named in an ambiguous_reference


class ReferenceQuerySet(models.QuerySet[M]):
    """A queryset of rows with a 32 hex digit `id` and, mostly, a name."""

    name_field = "name"

    def by_reference(self, reference: str) -> M:
        """Return the row with this id, else this name, else the only one whose id begins so; one query.

        Raises Problem: NOUN_not_found (404) or ambiguous_reference (409, details.candidates).
        """
        noun = self.model._meta.model_name or "row"
        if not reference or len(reference) > 255 or "\x00" in reference:
            raise bad_input(
                f"A {noun} must be named by an id, the beginning of one, or a name."
                if self.name_field
                else f"A {noun} must be named by an id or the beginning of one.",
                _listing(noun),
            )
        prefix = reference.lower()
        wanted = exact = Q(pk=prefix)
        if self.name_field:
            wanted = exact = exact | Q(**{self.name_field: reference})
        if WHOLE_ID.match(prefix):  # no name looks like one
            wanted = exact = Q(pk=prefix)
        elif HEX_PREFIX.match(prefix):
            # A range, unlike LIKE, uses the primary key's index; "g" is what follows the last hex digit.
            wanted |= Q(pk__gte=prefix, pk__lt=prefix + "g")
        # What fits exactly comes first, for a name may also begin more ids than are looked at.
        exact_first = Case(When(exact, then=Value(0)), default=Value(1), output_field=IntegerField())
        rows = list(self.filter(wanted).order_by(exact_first, "pk")[: LISTED + 1])
        for matching in (
            [row for row in rows if row.pk == prefix],
            [row for row in rows if self.name_field and getattr(row, self.name_field) == reference],
            rows,
        ):
            if len(matching) == 1:
                return matching[0]
            if matching:
                raise _ambiguous(noun, reference, matching, self.name_field)
        raise not_found(noun, reference)


def not_found(noun: str, reference: str) -> Problem:
    """Return the Problem for a reference that fits no row; `noun` is service, image or job."""
    return Problem(f"{noun}_not_found", f"There is no {noun} {reference!r}.", _listing(noun), http_status=404)


def _listing(noun: str) -> str:
    listing = "mhctl service list --all" if noun == "service" else f"mhctl {noun} list"
    return f"See `{listing}` for what is there."


def _ambiguous(noun: str, reference: str, rows: list[Any], name_field: str) -> Problem:
    candidates = [
        {"object_id": row.pk, "name": getattr(row, name_field) if name_field else ""} for row in rows[:LISTED]
    ]
    listed = ", ".join(
        candidate["object_id"] + (f" ({candidate['name']})" if candidate["name"] else "")
        for candidate in candidates
    )
    more = " and more" if len(rows) > LISTED else ""
    return Problem(
        "ambiguous_reference",
        f"The reference {reference!r} fits more than one {noun}: {listed}{more}.",
        "Give more digits of the id.",
        details={"candidates": candidates},
    )
