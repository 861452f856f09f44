"""The one exception for what goes wrong as expected on a node. Knows no rows and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class JobFailed(Exception):
    """A job could not be done, for a reason that an operator can understand and mend.

    Args:
        code: a word that programs can compare, such as ``port_in_use``.
        message: one sentence that says what is wrong.
        remedy: one sentence that says what to do about it; may be empty.
        lines: the words of CRIU or of the service itself, quoted under the message.
        words: what of them a remedy that can be pressed may need (remedies.py).
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str = "",
        lines: Sequence[str] = (),
        words: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.lines = list(lines)
        self.words = dict(words or {})


def describe(error: OSError) -> str:
    """Return what the kernel refused, in words: without its number, with the file it was about."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
