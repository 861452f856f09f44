"""How one can ask wrongly, on a real node: by words, by options, by bodies, by a wrong token or address."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
from pathlib import Path
from typing import Any

from tests.refusals import Witness, api_refuses, check_sentence, mhctl_refuses, nothing_changes, usage_error
from tests.stack import Stack, eventually, free_port


def test_words_that_mhctl_does_not_know(stack: Stack) -> None:
    for words in (
        (),
        ("fly",),
        ("service",),
        ("service", "fly"),
        ("service", "show"),
        ("service", "show", ""),
        ("service", "show", "a", "b"),
        ("service", "list", "--fly"),
        ("service", "list", "--all=yes"),
        ("service", "dump"),
        ("service", "dump", "web", "-t", "1"),
        ("service", "dump", "-t", "web"),
        ("service", "restore"),
        ("service", "stop", "web", "--grace"),
        ("service", "stop", "web", "--grace", "soon"),
        ("service", "stop", "web", "--grace=-1"),
        ("service", "stop", "web", "--grace", "1.5"),
        ("service", "list", "--url", "gopher://node"),
    ):
        usage_error(stack, *words)


def test_a_grace_that_is_none(stack: Stack) -> None:
    witness = Witness(stack, options=("--name", "witness"))
    with nothing_changes(stack):
        for verb in ("stop", "restart"):
            words = ("service", verb, "witness", "--grace", "3601")
            refusal = mhctl_refuses(stack, *words, exit_code=2, code="bad_input")
            assert "from 0 to 3600" in refusal.message
        for grace in ("soon", -1, 1e9, True, [1]):
            path, body = f"services/{witness.id}/stop", {"grace": grace}
            assert "grace" in api_refuses(stack, "POST", path, body, status=422, code="bad_input").message
        assert witness.answers_as_before()


def raw(stack: Stack, method: str, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are, and return the status and the error."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    headers = {"Authorization": f"Bearer {stack.token()}", "Content-Type": "application/json", **headers}
    try:
        connection.request(method, f"/api/v1/{path}", body, headers)
        answer = connection.getresponse()
        error: dict[str, Any] = json.loads(answer.read())["error"]
    finally:
        connection.close()
    check_sentence(error["message"])
    check_sentence(error["remedy"])
    return answer.status, error


def test_a_body_that_is_not_what_the_api_takes(stack: Stack) -> None:
    with nothing_changes(stack):
        for body in (b"", b"{", b"\xff\xfe", b'{"args": ["sleep", "60"]', b"args=sleep"):
            status, error = raw(stack, "POST", "services", body)
            assert (status, error["code"]) in {(400, "bad_input"), (422, "bad_input")}, (body, error)
        for body, named in (
            (b"[]", ""),
            (b"null", ""),
            (b'"sleep"', ""),
            (b"{}", "args"),
            (b'{"args": []}', "args"),
            (b'{"args": [""]}', "args[0]"),
            (b'{"args": "sleep 60"}', "args"),
            (b'{"args": ["sleep", 60]}', "args"),
            (b'{"args": ["sleep", "60"], "colour": "red"}', "colour"),
            (b'{"args": ["sleep", "60"], "env": {"A": 1}}', "env"),
            (b'{"args": ["sleep", "60"], "env": {"A=B": "1"}}', "A=B"),
            (b'{"args": ["sleep", "60"], "binds": "/etc:/mnt"}', "binds"),
            (b'{"args": ["sleep", "60"], "user": 0}', "user"),
            (b'{"args": ["sleep", "\\ud800"]}', "args[1]"),
        ):
            status, error = raw(stack, "POST", "services", body)
            assert (status, error["code"]) == (422, "bad_input"), (body, error)
            assert named in error["message"], (body, error)
        status, error = raw(stack, "POST", "services", b" " * (1 << 20) + b"{}")
        assert (status, error["code"]) == (413, "bad_input")
        for method, path, wanted in (
            ("GET", "no-such-thing", 404),
            ("PUT", "services", 405),
            ("GET", "jobs?limit=0", 422),
            ("GET", "jobs?limit=many", 422),
            ("GET", "jobs?status=bored", 422),
            ("POST", "check?wait=-1", 422),
            ("POST", "check?wait=3601", 422),
        ):
            assert raw(stack, method, path, b"")[0] == wanted, path


def test_a_wrong_token(stack: Stack) -> None:
    stranger = copy.copy(stack)
    stranger.environment = {**stack.environment, "MIEHISTO_TOKEN": "wrong"}
    with nothing_changes(stack):
        for words in (("service", "list"), ("service", "create", "sleep", "60"), ("check",)):
            mhctl_refuses(stranger, *words, exit_code=5, code="not_allowed")
        assert stack.api("GET", "services", token="wrong").status == 401
        status, error = raw(stack, "GET", "services", b"", Authorization="Basic cm9vdDpyb290")
        assert (status, error["code"]) == (401, "not_allowed")


def test_a_daemon_that_is_not_reached(stack: Stack, tmp_path: Path) -> None:
    for url in (
        f"unix:{tmp_path}/nobody.sock",
        f"http://127.0.0.1:{free_port()}",
        "http://no.such.host.invalid",
    ):
        for words in (("service", "list"), ("service", "create", "sleep", "60"), ("check",)):
            place = 1 if words[0] == "check" else 2
            asked = (*words[:place], "--url", url, *words[place:])
            refusal = mhctl_refuses(stack, *asked, exit_code=3, code="not_reached")
            assert url in refusal.message and "miehistod" in refusal.remedy


def test_a_stranger_cannot_write_lines_of_his_own_into_the_log(stack: Stack) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)) as connection:
        connection.request("GET", "/api/v1/forged%0aready:%20elsewhere%1b[2J")
        assert connection.getresponse().status == 404
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)) as connection:
        connection.request("GET", "/login/", headers={"Host": "elsewhere.invalid"})
        assert connection.getresponse().status == 400
    eventually(lambda: "GET /api/v1/forged%0aready" in stack.said() and "400 GET /login/" in stack.said())
    assert "DisallowedHost" not in stack.said()
    assert "ready: elsewhere" not in stack.said()
    assert "\x1b" not in stack.said()
