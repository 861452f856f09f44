"""The queue between the site and the root worker: who may reach it, and what a stranger's message can do."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis

from services import broker
from tests.stack import CHECKOUT, Stack, eventually

OPEN = [
    "redis://127.0.0.1:6379/0",
    "redis://localhost/0",
    "redis://:@127.0.0.1/0",
    "redis://broker.example:6379/0",
    "redis://:secret@broker.example/0",
    "redis://:secret@192.0.2.1/0",
    "rediss://broker.example/0?ssl_cert_reqs=required",
    "rediss://:secret@broker.example/0?ssl_cert_reqs=CERT_NONE",
    "rediss://:secret@broker.example/0?ssl_cert_reqs=none",
    "amqp://guest:guest@localhost//",
    "sentinel://:secret@127.0.0.1:26379",
    "127.0.0.1:6379",
]
CLOSED = [
    "redis+socket:///run/miehisto/redis.sock",
    "redis://:secret@127.0.0.1:6379/0",
    "redis://me:secret@[::1]/0",
    "redis://:secret@localhost/0",
    "rediss://:secret@broker.example/0?ssl_cert_reqs=required",
]


@pytest.mark.parametrize("url", OPEN)
def test_a_broker_that_strangers_reach_is_refused(url: str) -> None:
    assert broker.fault(url).endswith(".")
    assert "secret" not in broker.fault(url)


@pytest.mark.parametrize("url", CLOSED)
def test_a_broker_that_asks_who_comes_is_not(url: str) -> None:
    assert broker.fault(url) == ""


def test_a_socket_for_every_user_is_refused(folder: Path) -> None:
    socket = folder / "redis.sock"
    socket.touch(mode=0o600)
    socket.chmod(0o777)
    assert "Every user" in broker.fault(f"redis+socket://{socket}")
    folder.chmod(0o750)
    assert broker.fault(f"redis+socket://{socket}") == ""
    folder.chmod(0o755)
    socket.chmod(0o660)
    assert broker.fault(f"redis+socket://{socket}") == ""


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "miehistod.main"],
        ["-m", "celery", "-A", "miehisto_web.celery", "worker", "-P", "solo"],
        ["-m", "celery", "-A", "miehisto_web.celery", "beat", "-S", "images.scheduler.Scheduler"],
        ["-c", "import miehisto_web.asgi"],
        ["manage.py", "check"],
    ],
    ids=["miehistod", "the worker", "the scheduler", "the site", "manage.py check"],
)
def test_nothing_starts_with_an_open_broker(words: list[str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=CHECKOUT,
        env={
            **os.environ,
            "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
            "DJANGO_SETTINGS_MODULE": "miehisto_web.settings",
            **{f"MIEHISTO_{name}_DIR": str(folder / name) for name in ("STATE", "RUN", "LOG")},
            "MIEHISTO_BIND": "127.0.0.1:0",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr  # Celery's scheduler says all on stdout
    assert "over TCP without a password" in said
    assert "rediss://:PASSWORD@HOST" in said


# --- a message that the site has not sent -------------------------------------------------------------


def queue_of(stack: Stack) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(stack.folder / "run/redis.sock"))


def push(stack: Stack, body: bytes, task: str, content_type: str = "application/json") -> None:
    """Put a message into the node's queue, as anybody could who can write to its Redis."""
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8" if content_type.endswith("json") else "binary",
        "content-type": content_type,
        "headers": {"lang": "py", "task": task, "id": str(uuid.uuid4()), "argsrepr": "", "kwargsrepr": ""},
        "properties": {
            "correlation_id": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "node.node-of-tests"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    queue_of(stack).lpush("node.node-of-tests", json.dumps(message))


def order(*args: Any, **kwargs: Any) -> bytes:
    """Return the body of a message with these arguments."""
    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return json.dumps([args, kwargs, options]).encode()


class Hostile:
    """What runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_the_socket_is_for_root_and_the_site(stack: Stack) -> None:
    socket = stack.folder / "run/redis.sock"
    assert socket.stat().st_mode & 0o777 == 0o660
    assert socket.resolve().parent.stat().st_mode & 0o777 == 0o750
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
    ping = ["redis-cli", "-s", str(socket), "ping"]
    asked = subprocess.run([*nobody, *ping], capture_output=True, check=False)
    assert b"PONG" not in asked.stdout
    assert queue_of(stack).config_get("port")["port"] == "0"


def test_a_strangers_message_runs_nothing(stack: Stack, folder: Path) -> None:
    """Pickled code, tasks that Celery itself brings, orders to the worker, and what is no job's id."""
    trace = folder / "trace"
    run = "miehisto.run_job"
    worker = stack.part("worker")
    push(stack, pickle.dumps(([Hostile(trace)], {}, {})), run, "application/x-python-serialize")
    mapped = {"task": run, "args": [], "kwargs": {}, "options": {}}
    push(stack, order(mapped, [["x"], ["y"]]), "celery.map")
    push(stack, order(mapped, [["x"]]), "celery.starmap")
    push(stack, order(), "celery.backend_cleanup")
    push(stack, order(str(trace)), "os.mkdir")
    for wrong in (
        order(),
        order("../../etc"),
        order("0" * 32, "0" * 32),
        order({"id": "0" * 32}),
        order(["0" * 32]),
        order(0),
        order("0" * 32, shell="mkdir"),
        order(job_id="0" * 32),
    ):
        push(stack, wrong, run)
    # Celery's own commands to workers come on a channel of their own; nobody listens to it.
    control = queue_of(stack).pubsub_channels("*pidbox*") + list(queue_of(stack).scan_iter("*pidbox*"))
    assert control == []

    assert eventually(lambda: queue_of(stack).llen("node.node-of-tests") == 0)
    # The worker is the same, and does what the site asks for.
    service = stack.create("sleep", "3600")
    assert stack.show("service", service)["status"] == "running"
    assert stack.part("worker") == worker
    assert not trace.exists()
    assert {job["status"] for job in stack.api("GET", "jobs?limit=50").body} <= {"succeeded", "failed"}
    said = stack.said()
    assert "Refusing to deserialize" in said
    for task in ("celery.map", "celery.starmap", "celery.backend_cleanup", "os.mkdir"):
        assert f"unregistered task of type '{task}'" in said
    assert said.count("no job's id, it is dropped") == 8


@pytest.mark.parametrize("body", [b"null", b'{"args": "x"}', b"\xff", b"no JSON"])
def test_what_ends_celery_does_not_end_the_node(stack: Stack, body: bytes) -> None:
    """A stranger could end a worker by garbage; another takes its place, and what waits is done."""
    if body == b"no JSON":
        queue_of(stack).lpush("node.node-of-tests", body)
    else:
        push(stack, body, "miehisto.run_job")
    service = stack.create("sleep", "3600")
    assert stack.show("service", service)["status"] == "running"
