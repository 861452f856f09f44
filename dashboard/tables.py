"""Tables: search, filters, sorting and paging, all of it in the address. It knows no rows in particular."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, ClassVar, Generic, TypeVar

from django.db.models import Expression, F, Func, Model, OrderBy, Q, QuerySet, TextField
from django.http import QueryDict

from services.references import HEX_PREFIX

M = TypeVar("M", bound=Model)
Order = str | F | Expression

ROWS = 50
MOST_COUNTED = 2_000  # counting on would cost more than it tells
MOST_PAGES = 2_000
MOST_SEARCHED = 200  # characters


class Text(Func):
    """A text to sort by, from code point to code point in either database.

    SQLite does so by itself. PostgreSQL goes by the locale that it was made with, which may pass over case,
    dashes and spaces.
    """

    arity = 1
    template = "%(expressions)s"
    output_field = TextField()

    def as_postgresql(self, compiler: Any, connection: Any, **words: Any) -> Any:
        return self.as_sql(compiler, connection, template=f'({self.in_postgresql}) COLLATE "C"', **words)

    in_postgresql = template


class Words(Text):
    """A list of words, kept as JSON, to sort by as it is shown: with spaces between.

    As it is kept PostgreSQL would sort by the number of words, and SQLite by what stands for a letter there.
    """

    template = "(SELECT group_concat(value, ' ') FROM json_each(%(expressions)s))"
    in_postgresql = "SELECT string_agg(value, ' ') FROM jsonb_array_elements_text(%(expressions)s)"


@dataclass(frozen=True)
class Column:
    """A column's head. sort: the word for it in the address, "" when it cannot be sorted by."""

    title: str
    sort: str = ""
    number: bool = False


@dataclass(frozen=True)
class Filter:
    """A choice above a table: its name in the address, its label, the values that there are.

    hidden: it is offered elsewhere, as links with numbers. means: what a value means, where it is not that
    the field of this name has it.
    """

    name: str
    label: str
    values: Sequence[str]
    hidden: bool = False
    means: Callable[[str], Q] | None = None
    kind: ClassVar[str] = "select"

    def value_in(self, query: QueryDict) -> str:
        """Return the value that an address has of it; "" where that is none."""
        value = query.get(self.name, "")
        return value if value in self.values else ""

    def chosen_in(self, query: QueryDict) -> Q:
        """Return what an address chooses by it; nothing special where it has no value of it."""
        value = self.value_in(query)
        if not value:
            return Q()
        return self.means(value) if self.means else Q(**{self.name: value})


@dataclass(frozen=True)
class Day(Filter):
    """A day to choose above a table, such as 2026-11-01; it says by `means` what that leaves."""

    values: Sequence[str] = ()
    kind: ClassVar[str] = "date"

    def value_in(self, query: QueryDict) -> str:
        value = query.get(self.name, "")
        try:
            return value if date.fromisoformat(value).isoformat() == value else ""
        except ValueError:
            return ""


@dataclass
class Table(Generic[M]):
    """One page of rows, and what the template needs around it."""

    rows: list[M]
    columns: Sequence[Column]
    filters: Sequence[Filter]
    search: str
    chosen: Mapping[str, str]
    sort: str
    descending: bool
    page: int
    more: bool
    counted: int

    @property
    def first(self) -> int:
        """The number of the first row shown, from 1."""
        return (self.page - 1) * ROWS + 1

    @property
    def last(self) -> int:
        """The number of the last row shown."""
        return self.first + len(self.rows) - 1

    @property
    def total(self) -> str:
        """How many rows there are, as a text."""
        return f"more than {MOST_COUNTED:,}" if self.counted > MOST_COUNTED else f"{self.counted:,}"

    @property
    def offers(self) -> set[str]:
        """The names of the choices that there are above it."""
        return {choice.name for choice in self.filters}

    @property
    def narrowed(self) -> bool:
        """Whether a search or a filter leaves something out."""
        return bool(self.search or any(self.chosen.values()))


def table(
    rows: QuerySet[M],
    query: QueryDict,
    *,
    columns: Sequence[Column],
    orders: Mapping[str, Sequence[Order]],
    default: str,
    filters: Sequence[Filter] = (),
    searched: Q | None = None,
    shown: Any = None,
) -> Table[M]:
    """Return the page of rows that a query string asks for; what it can't mean is passed over.

    orders: word in the address → the fields that it means, ascending; "-word" is the way round. Of one that
    may be NULL, an expression, those without a value come last both ways.
    default: the order without one. searched: what the search means. shown: adds to the queryset what only the
    rows shown need.
    Three queries: the count, the ids, the rows.
    """
    for choice in filters:
        rows = rows.filter(choice.chosen_in(query))
    if searched is not None:
        rows = rows.filter(searched)
    asked = query.get("sort", "")
    sort = asked if asked.removeprefix("-") in orders else default
    descending, word = sort.startswith("-"), sort.removeprefix("-")
    fields = [_ordered(field, descending) for field in orders[word]]
    page = number(query.get("page", ""), most=MOST_PAGES)
    first = (page - 1) * ROWS
    counted = rows.order_by()[: MOST_COUNTED + 1].count()
    # First the ids alone, which an index can sort and skip; then what the rows of this page show.
    ids = list(rows.order_by(*fields).values_list("pk", flat=True)[first : first + ROWS + 1])
    wanted = rows.model._default_manager.filter(pk__in=ids[:ROWS])
    by_id = {row.pk: row for row in (shown(wanted) if shown else wanted)}
    return Table(
        rows=[by_id[pk] for pk in ids[:ROWS] if pk in by_id],
        columns=columns,
        filters=filters,
        search=query.get("q", "")[:MOST_SEARCHED],
        chosen={choice.name: value for choice in filters if (value := choice.value_in(query))},
        sort=word,
        descending=descending,
        page=page,
        more=len(ids) > ROWS,
        counted=counted,
    )


def _ordered(field: Order, descending: bool) -> str | OrderBy:
    if isinstance(field, str):
        return f"-{field}" if descending else field
    # Said, for PostgreSQL takes NULL for the greatest and SQLite for the least.
    return field.desc(nulls_last=True) if descending else field.asc(nulls_last=True)


def number(text: str, *, most: int) -> int:
    """Return a page's number from 1 to `most`; 1 for what is none."""
    digits = text if text.isascii() and text.isdigit() and len(text) < 10 else "1"
    return max(1, min(int(digits), most))


def search_of(query: QueryDict) -> str:
    """Return the text searched for; NUL, which no database can look for, left out."""
    return query.get("q", "")[:MOST_SEARCHED].replace("\x00", "").strip()


def begins(field: str, text: str) -> Q:
    """Return the condition that an id begins with this text, in the form that an index can answer."""
    prefix = text.lower()
    if not HEX_PREFIX.match(prefix):
        return Q(pk__in=[])
    return Q(**{f"{field}__gte": prefix, f"{field}__lt": prefix + "g"})
