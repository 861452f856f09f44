"""The API as mhctl sees it: address, token, JSON in and out, error bodies as exceptions; prints nothing."""

from __future__ import annotations

import os

from mhctl.errors import NOT_FOUND, ApiError, ConnectionLost, MhctlError, UsageError
from mhctl.jsontext import json_text, json_value
from mhctl.transport import START_IT, Address, Response, exchange, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

API = "/api/v1/"
PATIENCE = 60.0  # seconds without a byte; the waiting answers send a blank line each 15 s
STREAM = "application/x-ndjson"


def run_dir() -> str:
    """The folder of the daemon's socket and token (MIEHISTO_RUN_DIR)."""
    return os.environ.get("MIEHISTO_RUN_DIR") or "/run/miehisto"


def own_token(address: Address) -> str:
    """The token to show: MIEHISTO_TOKEN, else the file that the local miehistod made.

    The file's token is this machine's, so it is never sent to another one.

    Returns:
        "" when there is none or it may not be read: the daemon then answers what is missing.

    Raises:
        UsageError: the token has characters that no header may carry.
    """
    token = os.environ.get("MIEHISTO_TOKEN", "").strip()
    if not token and address.is_local:
        try:
            with open(f"{run_dir()}/token", encoding="ascii", errors="replace") as file:  # noqa: PTH123 (pathlib costs 5 ms)
                token = file.read().strip()
        except OSError:
            return ""
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            "The token in MIEHISTO_TOKEN has characters that no token has.",
            remedy="Copy it again as `manage.py token` printed it.",
        )
    return token


class Client:
    """One daemon's API.

    Args:
        url: the address; "" means MIEHISTO_URL, else the unix socket in MIEHISTO_RUN_DIR.

    Raises:
        UsageError: the address has no known form.
    """

    def __init__(self, url: str = "") -> None:
        self.address = Address(url or os.environ.get("MIEHISTO_URL") or f"unix:{run_dir()}/miehistod.sock")
        self.token = own_token(self.address)

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Json | None = None,
        body: Json | None = None,
        accept: str = "application/json",
        timeout: float | None = PATIENCE,
    ) -> Response:
        """Sends a request.

        Args:
            path: relative to the API's root, its references already quoted.
            query: parameters; None values are left out.

        Returns:
            an answer with a status below 400, its body not yet read.

        Raises:
            ApiError: the daemon refused. Unreachable: there was no answer.
        """
        headers = {"User-Agent": "mhctl", "Accept": accept}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None
        if body is not None:
            data = json_text(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        pairs = [f"{name}={quote(str(value))}" for name, value in (query or {}).items() if value is not None]
        target = API + path + ("?" + "&".join(pairs) if pairs else "")
        response = exchange(self.address, method, target, headers=headers, body=data, timeout=timeout)
        if response.status < 300:
            return response
        try:
            raise refusal(response, self)
        finally:
            response.close()

    def call(self, method: str, path: str, *, query: Json | None = None, body: Json | None = None) -> Any:
        """Returns the answer's JSON value, None for an empty answer. Raises what `open` raises."""
        response = self.open(method, path, query=query, body=body)
        try:
            data = response.read()
            return json_value(data) if data else None
        except ValueError as error:
            raise ConnectionLost(
                f"What answers at {self.address.url} sent no JSON.", remedy=START_IT, code="not_reached"
            ) from error
        finally:
            response.close()

    def rows(self, path: str, *, query: Json | None = None) -> list[Json]:
        """Returns a list answer's objects, also when the list stands under a key of its own."""
        answer = self.call("GET", path, query=query)
        if isinstance(answer, dict):
            answer = next((value for value in answer.values() if isinstance(value, list)), [])
        return list(answer or [])


def segment(noun: str, reference: str) -> str:
    """What an operand becomes in the API's path.

    Raises:
        MhctlError: it has a slash, as no id and no name has, and would lead to another address.
    """
    if "/" in reference:
        listing = "mhctl service list --all" if noun == "service" else f"mhctl {noun} list"
        raise MhctlError(
            f"There is no {noun} {reference!r}.",
            remedy=f"See `{listing}` for what is there.",
            code=f"{noun}_not_found",
            exit_code=NOT_FOUND,
        )
    return quote(reference)


def refusal(response: Response, client: Client) -> ApiError:
    """The exception for an answer of 300 and above, whether or not its body is the API's own."""
    error: Json = {}
    try:
        answer = json_value(response.read())
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            error = answer["error"]
    except (ValueError, ConnectionLost):
        pass  # a proxy's page, or none: the status alone has to do
    message = str(
        error.get("message")
        or f"What answers at {client.address.url} gave status {response.status} and no reason."
    )
    remedy = str(error.get("remedy") or ("" if error else START_IT))
    if response.status == 401 and not client.token:
        message = "The daemon wants a token and there is none to show."
        remedy = f"Use sudo (the token is in {run_dir()}/token), or set MIEHISTO_TOKEN."
    details = error.get("details")
    details = details if isinstance(details, dict) else {}
    return ApiError(
        message,
        status=response.status,
        code=str(error.get("code") or ""),
        remedy=remedy,
        notes=[f"job: {details['job']}"] if details.get("job") else [],
        details=details,
    )
