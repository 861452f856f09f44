"""What an operator may choose for a dump or a restore: one table, for the operations, the API and the pages.

Everything else that CRIU can be told is the same for every service, and set by the worker. It knows no rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services import validation
from services.problems import bad_input
from services.states import JobKind

_MOST_GHOST = 64 << 30  # bytes
_MOST_FOLDERS = 32
_LONGEST_FREEZE = 3600


@dataclass(frozen=True)
class Option:
    """One choice.

    check: returns a usable value or raises bad_input.
    kinds: the jobs that it may be given to.
    sentence: what it does, for a person who decides.
    """

    check: Callable[[object, str], Any]
    kinds: frozenset[JobKind]
    sentence: str


def _octets(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_GHOST:
        raise bad_input(
            f"The value of {field} must be a number of bytes from 0 to {_MOST_GHOST}.",
            "Give such a number; 0 means the default.",
            field=field,
        )
    return value


def _folders(value: object, field: str) -> list[str]:
    if not isinstance(value, list) or len(value) > _MOST_FOLDERS:
        raise bad_input(
            f"The value of {field} must be a list of at most {_MOST_FOLDERS} folders.",
            "Give absolute paths, few and small: CRIU searches all that is below them.",
            field=field,
        )
    return [validation.folder(each, field) for each in value]


def _seconds(value: object, field: str) -> float:
    return validation.seconds(value, field, most=_LONGEST_FREEZE)


_DUMP = frozenset({JobKind.DUMP, JobKind.CHECK_SERVICE})

OPTIONS: Mapping[str, Option] = {
    "leave_running": Option(
        validation.flag, _DUMP, "The service goes on running after the dump; the image is a copy of a moment."
    ),
    "tcp_close": Option(
        validation.flag,
        _DUMP | {JobKind.RESTORE},
        "Open TCP connections are dropped instead of kept; clients must connect again.",
    ),
    "carry": Option(
        validation.data_paths,
        _DUMP,
        "Files and folders whose data the image holds, too: a restore puts them back as they were then.",
    ),
    "accept_changed_files": Option(
        validation.flag,
        frozenset({JobKind.RESTORE}),
        "It is restored even if files on the disk are not what its memory believes.",
    ),
    "tcp_skip_in_flight": Option(
        validation.flag, _DUMP, "Connections that the service has not accepted yet are left out of the image."
    ),
    "ghost_limit": Option(
        _octets, _DUMP, "Bytes up to which a deleted file that is still open goes into the image."
    ),
    "force_irmap": Option(
        _folders, _DUMP, "Folders in which files that the service watches (inotify) are searched by number."
    ),
    "freeze_timeout": Option(
        _seconds, _DUMP, "Seconds that the service's processes may take to freeze before the dump gives up."
    ),
}


def checked(kind: JobKind, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a job, each with a usable value.

    Raises Problem bad_input for an option that this kind of job does not have, or a bad value.
    """
    found = {}
    for name, value in options.items():
        option = OPTIONS.get(name)
        if option is None or kind not in option.kinds:
            raise bad_input(
                f"A job of the kind {kind} has no option {name[:80]!r}.",
                "See /api/v1/docs for the options.",
                field=name[:80],
            )
        usable = option.check(value, name)
        found[name] = usable
    return found
