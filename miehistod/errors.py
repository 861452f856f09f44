"""The one exception that ends miehistod with a sentence instead of a traceback."""


class CannotRun(Exception):
    """A reason why miehistod cannot start or go on.

    Args:
        message: a whole sentence. remedy: another, saying what to do.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}"
