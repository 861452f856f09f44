"""The API keeps the promises of its own description, whatever is sent: asked by schemathesis.

Each call of the description gets requests made from it, right ones and wrong ones, of each role.
No answer may be a fault, or one that the description doesn't have. API_EXAMPLES says how
many requests in all at least; `make test-api` asks for many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.strategies import one_of
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.authentication import issue
from services.roles import ROLES
from tests.rows import made_service, member, recorded_image, running_service, stopped_service

pytestmark = pytest.mark.django_db(transaction=True)

EXAMPLES = int(os.environ.get("API_EXAMPLES", "200"))
FEW = 1000  # so many are the same ones each time


def no_fault(_context: Any, response: Any, _case: Any) -> bool | None:
    """Refuse any 5xx but the 503 of a node without a worker, for here is none."""
    if response.status_code < 500 or response.json()["error"]["code"] == "node_silent":
        return None
    raise AssertionError(f"{response.status_code}: {response.text}")


CHECKS: list[CheckFunction] = [
    no_fault,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
NAMES = ("running", "stopped", "idle", "pid:4242", "nope")


def asking(
    operation: Any, tokens: Sequence[str], known: list[str], examples: int, sent: list[str]
) -> Callable[[], None]:
    """Return a function that sends requests for one call, each token's in turn, and checks the answers."""
    modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=EXAMPLES <= FEW,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=one_of(modes))
    def ask(case: Any) -> None:
        # Nobody waits, and no log is followed for ever; what is no such wish is sent as it is.
        for name, off in (("wait", 0), ("follow", False)):
            if isinstance(case.query, dict) and _is_wish(case.query.get(name)):
                case.query[name] = off
        # Random names find nothing: every other request names what there is.
        path = case.path_parameters or {}
        for name, text in path.items():
            if len(str(text)) % 2:
                path[name] = known[len(str(text)) // 2 % len(known)]
        headers = {"Authorization": f"Bearer {tokens[len(sent) % len(tokens)]}"}
        sent.append(operation.label)
        case.validate_response(case.call(headers=headers), checks=CHECKS)

    return ask


def _is_wish(value: Any) -> bool:
    """Tell whether a value, once in a query, would be understood as time to wait or as a yes."""
    if str(value).strip().lower() in {"true", "t", "yes", "y", "on"}:
        return True
    try:
        return bool(float(value) > 0)
    except (TypeError, ValueError):
        return False


def test_no_answer_is_a_fault_or_undocumented() -> None:
    users = [member(role) for role in ROLES]
    tokens = [issue(user) for user in users]
    running_service("running")
    image = recorded_image(stopped_service("stopped"))
    job = made_service("idle").jobs.get()
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", get_wsgi_application())
    operations: list[Any] = [cast(Any, found).ok() for found in schema.get_all_operations()]
    known = [*NAMES, image.pk, job.pk]
    sent: list[str] = []
    while len(sent) < EXAMPLES:  # of some calls there are only a few different ones
        left = -(-(EXAMPLES - len(sent)) // len(operations))
        for operation in operations:
            asking(operation, tokens, known, max(len(users), left), sent)()
    assert {operation.label for operation in operations} == set(sent)
    for log in Path(settings.MIEHISTO_LOG_DIR).glob("*.log"):
        log.unlink()
