"""What can go wrong in mhctl, each with its exit code; knows nothing of HTTP or of how errors are printed."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DONE = 0
JOB_FAILED = 1
USAGE = 2
NOT_REACHED = 3
NOT_FOUND = 4
NOT_ALLOWED = 5
INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended


class MhctlError(Exception):
    """An expected end of the command: a sentence, a remedy, and the exit code that belongs to it.

    Args:
        details: the API's own, for --json. shown: the job that tells of it was printed as JSON already.
    """

    exit_code = JOB_FAILED

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        code: str = "",
        lines: list[str] | None = None,
        notes: list[str] | None = None,
        details: dict[str, Any] | None = None,
        shown: bool = False,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code
        self.lines = lines or []
        self.notes = notes or []
        self.details = details or {}
        self.shown = shown
        if exit_code is not None:
            self.exit_code = exit_code

    def as_dict(self) -> dict[str, Any]:
        """What --json prints: the API's own shape of an error."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "remedy": self.remedy,
                "details": self.details,
            }
        }


class UsageError(MhctlError):
    """The command line itself is wrong; nothing was sent."""

    exit_code = USAGE

    def __init__(self, message: str, *, remedy: str = "See `mhctl --help`.") -> None:
        super().__init__(message, remedy=remedy, code="usage")


class CannotWrite(MhctlError):
    """The standard output takes no more; what was asked for may be done all the same."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(
            f"The output cannot be written: {reason.strerror}.",
            remedy="Make room there, or let it go elsewhere; `mhctl job list` shows what was done.",
            code="output_not_written",
            shown=True,  # it could not be
        )


class Unreachable(MhctlError):
    """The daemon could not be reached; nothing was sent, or no answer came."""

    exit_code = NOT_REACHED


class ConnectionLost(Unreachable):
    """The connection ended in the middle of an answer."""


class ApiError(MhctlError):
    """The daemon answered with an error body.

    Args:
        status: the HTTP status, which with the code decides the exit code.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        remedy: str = "",
        notes: list[str],
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            message,
            remedy=remedy,
            code=code,
            notes=notes,
            details=details,
            exit_code=exit_code_of(status, code),
        )
        self.status = status


def exit_code_of(status: int, code: str) -> int:
    """The exit code for an answer of the API.

    Args:
        status: the HTTP status; code: the error body's code, "" when it had none.
    """
    if status == 404 or code == "ambiguous_reference" or code.endswith("_not_found"):
        return NOT_FOUND
    if status in (401, 403):
        return NOT_ALLOWED
    if status in (502, 503, 504):  # a proxy before the daemon speaks, not the daemon
        return NOT_REACHED
    if status in (400, 413, 422):
        return USAGE
    return JOB_FAILED
