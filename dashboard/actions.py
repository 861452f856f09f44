"""What can be asked of a service or an image, in the words of a dialog. It knows no rows and no HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from services.problems import Problem


@dataclass(frozen=True)
class Option:
    """A field of a dialog. kind: check, seconds, mebibytes, count, folders, text or name. help: one sentence.

    rare: it is shown only when asked for, for few need it. example: what stands in an empty one.
    revives: for those only who may bring the service to life.
    """

    name: str
    label: str
    help: str
    kind: str = "check"
    rare: bool = False
    example: str = ""
    revives: bool = False


@dataclass(frozen=True)
class Action:
    """One thing that can be asked for.

    name: as in the address. title: the dialog's head; "{}" is what it is about. verb: on the button.
    effects: (question, answer) pairs that say what will happen, also to clients.
    danger: something is lost. admin: for admins only. revives: a process comes to life, so that it is for
    admins where that is root's. ends: the process ends, and only who may that brings it back.
    """

    name: str
    title: str
    verb: str
    effects: tuple[tuple[str, str], ...]
    options: tuple[Option, ...] = ()
    danger: bool = False
    admin: bool = False
    revives: bool = False
    ends: bool = False


_TCP_CLOSE = Option(
    "tcp_close",
    "Drop its TCP connections",
    "Open connections are not kept: at the restore clients are told at once that theirs is gone.",
    rare=True,
)
_GRACE = Option(
    "grace",
    "Seconds to end by itself",
    "So long after SIGTERM it is killed by SIGKILL; 10 if you leave it empty.",
    "seconds",
)
_NAME = Option("name", "Name", "Letters, digits, dots, dashes; an empty one takes the name away.", "name")

_FOR_SERVICES = (
    Action(
        "dump",
        "Dump {}",
        "Dump",
        (
            ("What happens", "It is frozen for a moment, and its memory is written into an image."),
            (
                "Afterwards",
                (
                    "It has no process any more and takes no memory. It ends only once the image lies safely "
                    "on the disk; if the dump fails, it goes on as if nothing had been."
                ),
            ),
            (
                "Its clients",
                (
                    "Open connections are held: packets are dropped, not refused, and the connections go on "
                    "at the restore unless a client gives up before. New ones are refused meanwhile."
                ),
            ),
        ),
        (
            Option(
                "leave_running",
                "Leave it running",
                "It goes on after the dump, and clients notice only the pause. Restoring that image later "
                "closes the connections that were open now.",
            ),
            Option(
                "carry",
                "Carry the data in",
                "Folders of its own, with spaces between, that this image holds besides those of each image. "
                "It stays frozen while they are copied, and a restore puts them back as they were.",
                "folders",
                rare=True,
                example="/var/lib/app",
                revives=True,
            ),
            _TCP_CLOSE,
            Option(
                "tcp_skip_in_flight",
                "Leave out connections that it has not accepted yet",
                "Without this, such a connection can make the dump fail.",
                rare=True,
            ),
            Option(
                "ghost_limit",
                "Deleted files up to (MiB)",
                "Up to this size a deleted file that is still open goes into the image; 256 if left empty.",
                "mebibytes",
                rare=True,
            ),
            Option(
                "force_irmap",
                "Search watched files in",
                "Folders, with spaces between, in which files that it watches (inotify) are searched.",
                "folders",
                rare=True,
                example="/var/lib/app",
            ),
            Option(
                "freeze_timeout",
                "Seconds to freeze",
                "So long its processes may take to stand still before the dump gives up; 10 if left empty.",
                "seconds",
                rare=True,
            ),
        ),
        ends=True,
    ),
    Action(
        "stop",
        "Stop {}",
        "Stop",
        (
            ("What happens", "It is asked to end by SIGTERM."),
            (
                "Afterwards",
                "What it had in memory is lost. Dump it instead if you want to go on later from where it is.",
            ),
            ("Its clients", "Their connections are closed, and new ones are refused."),
        ),
        (_GRACE,),
        danger=True,
        ends=True,
    ),
    Action(
        "start",
        "Start {}",
        "Start",
        (
            ("What happens", "Its command is run from the beginning."),
            (
                "Afterwards",
                (
                    "It runs with empty memory. Restore an image instead to go on from where it was; "
                    "connections held by its last dump are released, and their clients are told at once."
                ),
            ),
        ),
        revives=True,
    ),
    Action(
        "restart",
        "Restart {}",
        "Restart",
        (
            ("What happens", "It is stopped, and its command is run again from the beginning."),
            ("Its clients", "Their connections are closed. What it had in memory is lost."),
        ),
        (_GRACE,),
        danger=True,
        revives=True,
    ),
    Action(
        "change",
        "Change {}",
        "Save",
        (("What happens", "It goes on as it is, and its id stays."),),
        (
            _NAME,
            Option(
                "restore_on_boot",
                "Restore it after a boot",
                "From its newest image that is sound, when the node was started anew."
                " Also if its supervisor was killed and none can take over: then it is dumped first.",
                revives=True,
            ),
        ),
    ),
    Action(
        "schedule",
        "Schedule of {}",
        "Save",
        (
            (
                "What happens",
                (
                    "At these times it is dumped and left running: it stands still for a moment, and its "
                    "clients stay connected. If it doesn't run then, or a job works on it, that time is "
                    "skipped."
                ),
            ),
            (
                "Its images",
                (
                    "Once a new one is sealed, older ones of the schedule are deleted. What somebody has "
                    "dumped or named stays."
                ),
            ),
        ),
        (
            Option(
                "every",
                "Every",
                "The time between two dumps: 90s, 30m, 1h, 2d. With both fields empty it has no schedule.",
                "text",
                example="1h",
            ),
            Option(
                "cron",
                "Or at times of day",
                "Minute, hour, day of the month, month, day of the week (0-6), in UTC; all five must fit.",
                "text",
                example="0 3 * * *",
            ),
            Option(
                "keep",
                "Images to keep",
                "Of those that the schedule makes; left empty, as many as before, or 3.",
                "count",
            ),
        ),
    ),
    Action(
        "delete",
        "Delete {}",
        "Delete",
        (
            ("What happens", "Miehistö forgets the service, and its log is deleted."),
            ("Afterwards", "Its images stay. Restoring one of them brings it back."),
        ),
        (Option("stop", "Stop it first if it runs", "A running service is not deleted without this."),),
        danger=True,
        admin=True,
    ),
)

_FOR_IMAGES = (
    Action(
        "restore",
        "Restore {}",
        "Restore",
        (
            (
                "What happens",
                (
                    "The image is verified while its memory is read, and the service goes on from the moment "
                    "of the dump: the same id, the same memory, new PIDs."
                ),
            ),
            ("Afterwards", "The image stays, and can be restored again."),
            (
                "Its clients",
                (
                    "It listens on its ports again. Connections held since its final dump go on; those of an "
                    "older image are closed, and their clients are told at once."
                ),
            ),
        ),
        (
            Option(
                "accept_changed_files",
                "Even if its files have changed since",
                "Without this it is refused, with a list, when its open files are not as it left them.",
            ),
            _TCP_CLOSE,
        ),
        revives=True,
    ),
    Action(
        "verify",
        "Verify {}",
        "Verify",
        (("What happens", "Each of its files is read and compared with the sums made at the dump."),),
    ),
    Action(
        "rename",
        "Rename {}",
        "Rename",
        (("What happens", "Only its name changes; its id and its folder stay."),),
        (_NAME,),
    ),
    Action(
        "delete",
        "Delete {}",
        "Delete",
        (("What happens", "Its files are deleted. This cannot be undone."),),
        (
            Option(
                "force",
                "Even if it is all there is of a dumped service",
                "Without this, the only image of a service that is dumped now is kept.",
            ),
        ),
        danger=True,
        admin=True,
    ),
)

SERVICE_ACTIONS: Mapping[str, Action] = {action.name: action for action in _FOR_SERVICES}
IMAGE_ACTIONS: Mapping[str, Action] = {action.name: action for action in _FOR_IMAGES}

# What has the options of a dump: a dry run, too.
_DUMPS = {"dump", "check_service"}
_DUMP_OPTIONS = {option.name: option for option in SERVICE_ACTIONS["dump"].options}


def in_words(text: str) -> str:
    """Return a sentence in which an option of a dump ("option ghost_limit") is called as in its dialog."""

    def called(found: re.Match[str]) -> str:
        option = _DUMP_OPTIONS.get(found[1])
        return f"option “{option.label}”" if option else found[0]

    return re.sub(r"option (\w+)", called, text)


def in_its_words(described: Action, problem: Problem) -> Problem:
    """Return a problem with an option ("The value of grace …") that calls it as the action's dialog does."""
    name, message = str(problem.details.get("field", "")), problem.message
    label = next((option.label for option in described.options if option.name == name), "")
    if label:
        called = rf"^(The value of|There are \d+ paths in|The path .* in) {re.escape(name)}\b"
        message = re.sub(called, lambda found: f"{found[1]} “{label}”", problem.message)
    return Problem(
        problem.code, message, problem.remedy, http_status=problem.http_status, details=problem.details
    )


def as_typed(options: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return a dump's options as its dialog has them: name, label, the value to type ("" for a tick).

    options: as the API has them; a size is in bytes. One that is off or empty is left out.
    """
    found = []
    for name, value in options.items():
        option = _DUMP_OPTIONS.get(name)
        if option is None or not value:
            continue
        found.append((name, option.label, _typed(option, value)))
    return found


def _typed(option: Option, value: Any) -> str:
    if option.kind == "mebibytes":
        return f"{value / 2**20:g}"
    if option.kind == "folders":
        return " ".join(value)
    return "" if option.kind == "check" else _text(value)


def called(kind: str, name: str, value: Any) -> tuple[str, str]:
    """Return an option of a job as people read it: what it is called, and its value.

    kind: of the job. Those of a dump are called as in its dialog, and have the value that is typed there.
    """
    option = _DUMP_OPTIONS.get(name) if kind in _DUMPS else None
    if option is None:
        return name.replace("_", " "), _text(value)
    return option.label, _typed(option, value) or _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "none" if value in {None, ""} else str(value)


def as_query(options: Mapping[str, Any]) -> str:
    """Return a dump's options as the query string that fills its dialog with them."""
    return urlencode({name: typed or "on" for name, _label, typed in as_typed(options)})
