"""Archives of images between the node's folder, which is root's alone, and where the operator wants them.

The daemon reads and writes nothing but that folder, so what lies elsewhere is taken there and away again
here, by whoever may: root, on the node itself. (With pathlib: its 5 ms are nothing beside an archive.)
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from pathlib import Path

from mhctl.errors import JOB_FAILED, NOT_ALLOWED, NOT_FOUND, ApiError, MhctlError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mhctl.client import Client

    Json = dict[str, Any]

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ODD = re.compile(r"[^A-Za-z0-9._-]")


def check_target(target: str, *, as_json: bool, no_wait: bool) -> None:
    """Refuse a FILE operand that cannot be served, before anything is written.

    Raises:
        UsageError: it needs the end of a job that is not waited for, or a terminal would get the archive.
        MhctlError: the file exists.
    """
    if target and no_wait:
        raise UsageError("FILE can only be written after the job's end, so it does not go with --no-wait.")
    if target == "-" and as_json:
        raise UsageError("Only one of the archive and the JSON object can go to the standard output.")
    if target == "-" and sys.stdout.isatty():
        raise UsageError("The archive would go to the terminal; write it to a file or into a pipe.")
    if target not in ("", "-") and os.path.lexists(target):
        raise MhctlError(
            f"The file {target} exists already.",
            remedy="Choose another name, or move it away.",
            code="archive_exists",
        )


def deliver(client: Client, job: Json, target: str) -> str:
    """Take a finished archive where the operator wants it.

    Args:
        target: a path, "-" for the standard output, "" to leave it.

    Returns:
        the path to print, "" when the archive itself went to the standard output.
    """
    made = str((job.get("result") or {}).get("path"))
    if not target:
        return made
    _require_local(client)
    try:
        if target == "-":
            with Path(made).open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
            sys.stdout.buffer.flush()
            Path(made).unlink()
            return ""
        _move(made, target)
    except OSError as error:
        raise MhctlError(
            f"The archive could not be taken away: {error.strerror}.",
            remedy=f"It is whole, and only root may read it: {made} on the node.",
            code="archive_not_moved",
            exit_code=NOT_ALLOWED if isinstance(error, PermissionError) else JOB_FAILED,
        ) from error
    return str(Path(target).absolute())


def _move(made: str, target: str) -> None:
    """Give a file another name, in another file system too; nothing that is there is replaced."""
    try:
        os.link(made, target)
    except OSError as error:
        if isinstance(error, FileExistsError | FileNotFoundError):
            raise
        _copy(made, target)
    Path(made).unlink()


def _copy(source: str, target: str) -> None:
    with Path(source).open("rb") as file:
        _write(file, target)


def _write(file: Any, target: str) -> None:
    descriptor = os.open(target, _NEW_FILE, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as new:
            shutil.copyfileobj(file, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
    except BaseException:
        Path(target).unlink()
        raise


class Staged:
    """Files that lie in the node's folder of archives for as long as a job needs them.

    Args:
        folder: that folder, as the daemon told it.
    """

    def __init__(self, client: Client, folder: str) -> None:
        self._client = client
        self._folder = folder
        self._made: list[str] = []

    def name_of(self, path: str, *, no_wait: bool) -> str:
        """Return the name in the folder under which the daemon finds a file; "-" is the standard input.

        Raises:
            MhctlError: there is no such file, or the folder may not be entered. UsageError: nobody would take
            it away again.
        """
        if "/" not in path and path != "-" and not os.path.lexists(path):
            return path  # it lies in the folder already, which only root can look into
        if path != "-" and Path(path).resolve().parent == Path(self._folder).resolve():
            return Path(path).name
        if no_wait:
            raise UsageError(
                "With --no-wait the file must lie in the node's folder of archives.",
                remedy=f"Put it into {self._folder}.",
            )
        _require_local(self._client)
        name = _ODD.sub("_", Path(path).name)[-150:] if path != "-" else "stdin"
        staged = f"{self._folder}/staged-{os.urandom(4).hex()}-{name}"
        try:
            self._put(path, staged)
        except FileNotFoundError as error:
            missing = error.filename == path
            raise MhctlError(
                f"There is no file {path}." if missing else f"There is no folder {self._folder}.",
                remedy="See `ls` for the right name." if missing else "Run mhctl on the node itself.",
                code="archive_missing",
                exit_code=NOT_FOUND,
            ) from error
        except OSError as error:
            raise MhctlError(
                f"The file {path} could not be handed to the daemon: {error.strerror}.",
                remedy=f"Use sudo: only root may enter {self._folder}.",
                code="archive_not_moved",
                exit_code=NOT_ALLOWED if isinstance(error, PermissionError) else JOB_FAILED,
            ) from error
        self._made.append(staged)
        return Path(staged).name

    def _put(self, path: str, staged: str) -> None:
        if path == "-":
            _write(sys.stdin.buffer, staged)
            return
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is no plain file", path)
        _copy(path, staged)

    def during(self, work: Callable[[], None]) -> None:
        """Do what needs the files; they are taken away unless the job may still need them."""
        try:
            work()
        except MhctlError as error:
            if error.shown or isinstance(error, ApiError):
                self.take_away()
            raise
        self.take_away()

    def take_away(self) -> None:
        for path in self._made:
            Path(path).unlink()
        self._made.clear()


def _require_local(client: Client) -> None:
    if not client.address.is_local:
        raise MhctlError(
            f"The daemon at {client.address.url} is on another machine, and archives never leave through it.",
            remedy="Run mhctl as root on that machine.",
            code="archive_not_moved",
        )
