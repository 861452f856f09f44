"""The API keeps the promises of its own description, whatever is sent: asked by schemathesis.

Each call of the description gets requests made from it, right ones and wrong ones. No answer may be a fault,
or one that the description doesn't have. API_EXAMPLES says how many requests in all; `make test-api`
asks for many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from django.conf import settings
from django.contrib.auth.models import User
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
from tests.rows import made_service, recorded_image, running_service, stopped_service

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


def asking(operation: Any, headers: dict[str, str], known: list[str], examples: int) -> Callable[[], None]:
    """Return a function that sends requests for one call, and checks the answers."""
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
        # Nobody waits, and no log is followed for ever.
        for name in ("wait", "follow"):
            if isinstance(case.query, dict) and name in case.query:
                case.query[name] = 0
        # Random names find nothing: every other request names what there is.
        path = case.path_parameters or {}
        for name, text in path.items():
            if len(str(text)) % 2:
                path[name] = known[len(str(text)) // 2 % len(known)]
        case.validate_response(case.call(headers=headers), checks=CHECKS)

    return ask


def test_no_answer_is_a_fault_or_undocumented() -> None:
    headers = {"Authorization": f"Bearer {issue(User.objects.create_superuser('boss'))}"}
    running_service("running")
    image = recorded_image(stopped_service("stopped"))
    job = made_service("idle").jobs.get()
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", get_wsgi_application())
    operations: list[Any] = [cast(Any, found).ok() for found in schema.get_all_operations()]
    known = [*NAMES, image.pk, job.pk]
    for operation in operations:
        asking(operation, headers, known, max(2, EXAMPLES // len(operations)))()
    for log in Path(settings.MIEHISTO_LOG_DIR).glob("*.log"):
        log.unlink()
