"""Checks what is asked of a service's privileges and limits. It knows no rows."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.problems import Problem, bad_input

CAPABILITY = re.compile(r"[A-Z][A-Z_]{1,39}\Z")
SIZE = re.compile(r"(\d{1,15})([KMGT]?)\Z")
# Less than this and no server comes to life; the mistake is mostly a forgotten M.
LEAST_MEMORY = LEAST_TMP = 1 << 20
LEAST = {"tasks": 2, "open_files": 16}
MOST = 1 << 40


def privileges(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a service may do beyond the default, only what was asked for.

    value: cap_add and cap_drop, lists of capabilities' names, or ["ALL"]; new_privileges, whether running a
    setuid program gives its rights; private_tmp, the size of a /tmp of its own.
    Raises Problem bad_input.
    """
    asked: dict[str, Any] = {}
    for field in ("cap_add", "cap_drop"):
        names = _capabilities(value.get(field) or [], field)
        if names:
            asked[field] = names
    if value.get("new_privileges"):
        asked["new_privileges"] = True
    if value.get("private_tmp"):
        asked["private_tmp"] = size(value["private_tmp"], "private_tmp", least=LEAST_TMP)
    return asked


def _capabilities(value: Sequence[str], field: str) -> list[str]:
    names = sorted({str(name).upper().removeprefix("CAP_") for name in value})
    for name in names:
        if not CAPABILITY.match(name):
            raise bad_input(
                f"The text {name[:80]!r} in {field} cannot be the name of a capability.",
                "Use a name of capabilities(7), such as NET_BIND_SERVICE, or ALL.",
                field=field,
            )
    return names


def limits(value: Mapping[str, Any]) -> dict[str, int]:
    """Return a service's limits, only those that were asked for.

    value: memory in bytes or as "512M"; tasks, its processes and threads; open_files, of each process.
    Raises Problem bad_input.
    """
    asked = {}
    if value.get("memory") is not None:
        asked["memory"] = size(value["memory"], "memory", least=LEAST_MEMORY)
    for field, least in LEAST.items():
        number = value.get(field)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= MOST:
            raise bad_input(
                f"The value of {field} must be a whole number of at least {least}.",
                "Send such a number.",
                field=field,
            )
        asked[field] = number
    return asked


def size(value: object, field: str, *, least: int) -> int:
    """Return a number of bytes, given as such or as a text with K, M, G or T."""
    found = SIZE.match(value) if isinstance(value, str) else None
    if found:
        value = int(found[1]) << 10 * " KMGT".index(found[2] or " ")
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise _no_size(field, least)
    return value


def _no_size(field: str, least: int) -> Problem:
    return bad_input(
        f"The value of {field} must be a size of at least {least >> 20} MiB.",
        'Write it in bytes, or with K, M, G or T, such as "512M".',
        field=field,
    )


def refuse_binds_in_tmp(binds: Sequence[str]) -> None:
    """Raise Problem bad_input for a bind below /tmp, which is empty for a service with one of its own."""
    for bind in binds:
        if (bind.split(":")[1] + "/").startswith("/tmp/"):  # noqa: S108
            raise bad_input(
                f"The bind {bind[:160]!r} would lie in the service's own /tmp, which is empty.",
                "Bind it elsewhere, or leave private_tmp out.",
                field="binds",
            )
