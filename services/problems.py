"""Problems that a person can do something about: a code, a sentence, a remedy. It knows no HTTP library."""

from typing import Any


class Problem(Exception):
    """An expected refusal or failure; nothing was changed when one is raised.

    code: one of the words of the API's documentation, for programs.
    message: one sentence that says what is wrong, from its capital letter to its full stop.
    remedy: another that says what to do about it.
    http_status: the answer of the API.
    details: more for programs, e.g. the job in the way.
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str = "",
        *,
        http_status: int = 409,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.http_status = http_status
        self.details = details or {}

    def as_dict(self) -> dict[str, Any]:
        """Return the body of an error answer."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "remedy": self.remedy,
                "details": self.details,
            }
        }


def bad_input(message: str, remedy: str = "", *, http_status: int = 422, **details: Any) -> Problem:
    """Return a Problem for input that can't be used; `details` e.g. field="cwd"."""
    return Problem("bad_input", message, remedy, http_status=http_status, details=details)


def not_allowed(message: str, remedy: str = "", *, http_status: int = 403) -> Problem:
    """Return a Problem for who may not do this (403) or isn't known at all (401)."""
    return Problem("not_allowed", message, remedy, http_status=http_status)


def database_away() -> Problem:
    """Return a Problem for a database that does not answer, or that somebody has held for too long."""
    return Problem(
        "database_away",
        "The database does not answer.",
        "See whether it runs and has room (the site's log says more), then ask again. Services go on.",
        http_status=503,
    )


def internal_error() -> Problem:
    """Return a Problem for what nobody expected: a bug."""
    return Problem(
        "internal_error",
        "Miehistö has a fault.",
        "Report it with the traceback, which is in the site's log.",
        http_status=500,
    )
