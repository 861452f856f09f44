"""A failure on a real node: its explanation, CRIU's own log, and the remedy that is pressed."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from images import retrying
from services import operations
from services.models import Job
from services.problems import Problem
from services.states import JobKind
from tests.rows import running_service
from tests.servers import PROGRAMS, Redis, started
from tests.stack import Stack, eventually


def test_a_dump_that_fails_is_tried_again_with_the_option_that_helps(stack: Stack, folder: Path) -> None:
    command = ["/usr/bin/python3", str(PROGRAMS / "constructs.py"), str(folder), "tcp_not_accepted"]
    service = stack.create(*command)
    eventually(lambda: "ready" in stack.log(service).splitlines())
    assert stack.mhctl("service", "dump", service, check=False).code == 1
    failed = stack.api("GET", "jobs?limit=1").body[0]
    assert failed["error"]["code"] == "tcp_in_flight"
    remedy = next(each for each in failed["error"]["actions"] if each["options"])
    assert (remedy["action"], remedy["options"]) == ("retry", {"tcp_skip_in_flight": True})

    log = stack.api("GET", f"jobs/{failed['object_id']}/log").body["lines"]
    assert any("In-flight connection" in line["text"] for line in log if line["error"])
    assert any(not line["error"] for line in log)
    assert "! (" in stack.mhctl("job", "log", failed["object_id"]).out
    assert f"mhctl job retry {failed['object_id']} -o tcp_skip_in_flight=true" in (
        stack.mhctl("job", "show", failed["object_id"]).out
    )

    again = stack.mhctl("job", "retry", failed["object_id"], "-o", "tcp_skip_in_flight=true").out.strip()
    job = stack.api("GET", f"jobs/{again}").body
    assert (job["status"], job["kind"], job["retry_of"]) == ("succeeded", "dump", failed["object_id"])
    assert job["options"] == {"leave_running": False, "tcp_skip_in_flight": True}
    manifest = json.loads((stack.state / "images" / job["image"] / "manifest.json").read_text())
    assert manifest["options"] == {"tcp_skip_in_flight": True}

    # What succeeded is not tried again, what takes no such option says so, and nothing was queued.
    jobs = len(stack.api("GET", "jobs?limit=1000").body)
    for reference, options, code in (
        (again, {}, "not_retryable"),
        (failed["object_id"], {"grace": 3}, "bad_input"),
        (failed["object_id"], {"tcp_close": "yes"}, "bad_input"),
        (failed["object_id"], {}, "service_not_running"),
    ):
        refused = stack.api("POST", f"jobs/{reference}/retry", {"options": options})
        assert refused.body["error"]["code"] == code
    assert len(stack.api("GET", "jobs?limit=1000").body) == jobs


def test_a_restore_that_fails_is_tried_again_when_what_stood_in_its_way_is_gone(
    stack: Stack, folder: Path
) -> None:
    server = Redis(folder)
    image = stack.dump(started(stack, server))
    with socket.create_server(("127.0.0.1", server.port)):
        assert stack.mhctl("service", "restore", "--from", image, check=False).code == 1
    failed = stack.api("GET", "jobs?limit=1").body[0]
    assert [each["action"] for each in failed["error"]["actions"]] == ["retry", "start"]
    stack.mhctl("job", "retry", failed["object_id"])
    assert server.state()["word"] == "kept"


@pytest.fixture
def cancelled(transactional_db: None) -> Job:
    """A stop that was cancelled, and so can be asked for again."""
    job = operations.request_stop(running_service(), actor="root", source="manage")
    return operations.cancel(job, "root")


@pytest.mark.parametrize("options", [{"actor": "root"}, {"service": "another"}, {"tcp_close": True}])
def test_a_retry_takes_the_jobs_own_options_only(cancelled: Job, options: dict[str, Any]) -> None:
    with pytest.raises(Problem, match="does not take"):
        retrying.request_retry(cancelled, actor="root", source="manage", options=options)


def test_a_fault_while_it_is_asked_again_is_not_called_bad_input(
    cancelled: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(_service: object, **_options: object) -> Job:
        raise TypeError("unsupported operand")

    monkeypatch.setitem(retrying._OF_SERVICES, JobKind.STOP, faulty)
    with pytest.raises(TypeError, match="operand"):
        retrying.request_retry(cancelled, actor="root", source="manage")
