"""Checks what people and programs send before anything is written. It knows no rows."""

import re
from collections.abc import Mapping, Sequence

from services.problems import bad_input

# Linux allows an argument of 128 KiB (MAX_ARG_STRLEN, execve(2)); all together stay below that here.
MAX_COMMAND_BYTES = 128 * 1024
MAX_PATH = 4096
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
LOOKS_LIKE_ID = re.compile(r"[0-9a-fA-F]{32}\Z")
BIND_PARTS = (2, 3)
MOST_DATA_PATHS = 64
SPELLING = "See /api/v1/docs for how it is spelled."


def text(value: object, field: str, *, one_line: bool = True, limit: int = MAX_COMMAND_BYTES) -> str:
    """Return `value` if it is text that a kernel and a database can hold, else raise bad_input.

    limit: the most bytes in UTF-8. one_line: refuse newlines.
    """
    if not isinstance(value, str):
        raise bad_input(
            f"The value of {field} must be text, not {type(value).__name__}.", SPELLING, field=field
        )
    if "\x00" in value:
        raise bad_input(
            f"The value of {field} contains a NUL byte, which no program can be given.",
            "Leave it out, or put it into a file that the service reads.",
            field=field,
        )
    if one_line and ("\n" in value or "\r" in value):
        raise bad_input(f"The value of {field} contains a newline.", "Write it in one line.", field=field)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise bad_input(f"The value of {field} is not valid UTF-8.", "Encode it so.", field=field) from None
    if size > limit:
        raise bad_input(
            f"The value of {field} is {size} bytes long, more than the {limit} allowed.",
            "Put long input into a file that the service reads.",
            field=field,
        )
    return value


def command(value: object) -> list[str]:
    """Return the argument list of a service; arguments after the first may hold newlines."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise bad_input(
            "The value of args must be a list of texts.",
            'Send for example ["/usr/bin/redis-server"].',
            field="args",
        )
    if not value:
        raise bad_input(
            "There is no command to run: args is empty.", "Name the command to run.", field="args"
        )
    argv = [text(item, f"args[{index}]", one_line=index == 0) for index, item in enumerate(value)]
    if not argv[0].strip():
        raise bad_input("The command, args[0], is empty.", "Name the command to run.", field="args[0]")
    return argv


def environment(value: object) -> dict[str, str]:
    """Return the environment of a service."""
    if not isinstance(value, Mapping):
        raise bad_input("The value of env must map names to texts.", SPELLING, field="env")
    for key in value:
        if not text(key, "a name in env") or "=" in key:
            raise bad_input(
                f"The text {key[:80]!r} cannot be the name of an environment variable.",
                "Use a name without an equals sign.",
                field="env",
            )
    return {key: text(item, f"env[{key}]", one_line=False) for key, item in value.items()}


def command_size(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Raise bad_input when arguments and environment together are longer than 128 KiB."""
    size = sum(len(item.encode()) + 1 for item in argv)
    size += sum(len(key.encode()) + len(item.encode()) + 2 for key, item in env.items())
    if size > MAX_COMMAND_BYTES:
        raise bad_input(
            f"Arguments and environment are {size} bytes long, more than the {MAX_COMMAND_BYTES} allowed.",
            "Put long input into a file that the service reads.",
            field="args",
        )


def folder(value: object, field: str = "cwd") -> str:
    """Return an absolute path."""
    path = text(value, field, limit=MAX_PATH)
    if not path.startswith("/"):
        raise bad_input(
            f"The value of {field} must be an absolute path, not {path[:80]!r}.",
            "Begin it with a slash.",
            field=field,
        )
    return path


def account(value: object, field: str) -> str:
    """Return the name or number of a user or a group; "" is allowed."""
    name = text(value, field, limit=255)
    if name != name.strip() or ":" in name or "/" in name:
        raise bad_input(
            f"The text {name[:80]!r} cannot be the name of a {field}.",
            f"Use a {field} that the node knows, or a number.",
            field=field,
        )
    return name


def binds(value: object) -> list[str]:
    """Return extra binds, each SRC:DST or SRC:DST:ro with absolute paths."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise bad_input("The value of binds must be a list of SRC:DST[:ro].", SPELLING, field="binds")
    checked = []
    for item in value:
        bind = text(item, "binds", limit=2 * MAX_PATH)
        parts = bind.split(":")
        usable = len(parts) in BIND_PARTS and parts[2:] in ([], ["ro"])
        if not usable or not all(part.startswith("/") and ".." not in part.split("/") for part in parts[:2]):
            raise bad_input(
                f"The bind {bind[:160]!r} is not SRC:DST[:ro] with absolute paths.",
                'Write for example /srv/data:/data:ro, without ".." in it.',
                field="binds",
            )
        checked.append(bind)
    return checked


def data_paths(value: object, field: str) -> list[str]:
    """Return absolute paths of files or folders that hold a service's data, without "." and ".." in them."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise bad_input(f"The value of {field} must be a list of absolute paths.", SPELLING, field=field)
    if len(value) > MOST_DATA_PATHS:
        raise bad_input(
            f"There are {len(value)} paths in {field}, more than the {MOST_DATA_PATHS} allowed.",
            "Name a folder that holds them.",
            field=field,
        )
    checked: list[str] = []
    for item in value:
        parts = [part for part in folder(item, field).split("/") if part]
        if not parts or {".", ".."} & set(parts):
            raise bad_input(
                f"The path {item[:160]!r} in {field} cannot be the place of a service's data.",
                'Name a file or a folder below /, without "." and ".." in it.',
                field=field,
            )
        path = "/" + "/".join(parts)
        if path not in checked:
            checked.append(path)
    return checked


def name(value: object) -> str:
    """Return a name for a service or an image; "" means none."""
    wanted = text(value, "name", limit=MAX_PATH)
    if wanted and not NAME.match(wanted):
        raise bad_input(
            f"The text {wanted[:80]!r} cannot be a name.",
            "Use up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or a digit.",
            field="name",
        )
    if LOOKS_LIKE_ID.match(wanted):
        raise bad_input(
            "A name of 32 hex digits would look like an id.", "Choose another name.", field="name"
        )
    return wanted


def seconds(value: object, field: str, *, most: float) -> float:
    """Return a number of seconds between 0 and `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise bad_input(
            f"The value of {field} must be a number of seconds from 0 to {most:g}.",
            "Give such a number.",
            field=field,
        )
    return float(value)


def flag(value: object, field: str) -> bool:
    """Return a boolean; 0, 1 and "true" are not booleans."""
    if not isinstance(value, bool):
        raise bad_input(f"The value of {field} must be true or false.", "Send one of the two.", field=field)
    return value
