"""manage.py from the server's own shell: what it prints, and how it leaves."""

import json
import threading
import time
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection

from images import operations as image_operations
from services import operations
from services.authentication import user_of
from services.models import ApiToken, Job, Service, new_id
from services.states import JobState
from tests.rows import made_service, running_service, taken

pytestmark = pytest.mark.django_db(transaction=True)


def run(*words: str) -> tuple[int, str, str]:
    """Return exit code, stdout, stderr."""
    out, err = StringIO(), StringIO()
    try:
        call_command(*words, stdout=out, stderr=err)
    except SystemExit as left:
        return int(left.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def work_soon(**end: Any) -> threading.Thread:
    """Do what a worker would: take the next job and end it."""

    def work() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            waiting = Job.objects.filter(status=JobState.QUEUED).first()
            if waiting:
                job = taken(waiting)
                if "code" in end:
                    operations.fail(job, service_state=None, **end)
                else:
                    operations.succeed(
                        job, service_state=None, result={"path": "/pool/x"}, statistics={}, **end
                    )
                break
            time.sleep(0.02)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_create_keeps_the_commands_own_dashes(redis_server: redis.Redis) -> None:
    worker = work_soon(pid=7)
    code, out, err = run("create", "--name", "web", "-u", "www:web", "-e", "A=b=c", "--", "sh", "--", "-x")
    worker.join()
    service = Service.objects.get()
    assert (code, out, err) == (0, service.pk + "\n", "")
    assert service.argv == ["sh", "--", "-x"]
    assert (service.user, service.group, service.env) == ("www", "web", {"A": "b=c"})


def test_dump_prints_the_images_folder(redis_server: redis.Redis) -> None:
    running_service("web", pid=99)
    worker = work_soon()
    code, out, err = run("dump", "-t", "99")
    worker.join()
    assert (code, out, err) == (0, "/pool/x\n", "")


def test_a_failed_job_says_why_on_stderr() -> None:
    service = running_service("web")
    worker = work_soon(code="c", message="it is stuck", remedy="push it", lines=["Error (a.c:1): stuck"])
    code, out, err = run("stop", "web")
    worker.join()
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert "queue" in lines[0], "there is no Redis in this test"
    assert "manage.py stop: it is stuck" in lines[1] and service.pk in lines[1]
    assert lines[2:] == ["  remedy: push it", "    Error (a.c:1): stuck"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["dump", "nope"], 4, "no service 'nope'"),
        (["dump"], 2, "SERVICE or -t PID"),
        (["dump", "idle"], 1, "has an active job"),
        (["restore", "--from", "nope"], 4, "no image 'nope'"),
        (["restore"], 2, "SERVICE or --from IMAGE"),
        (["restore", "idle"], 1, "is created, so it is no image"),
        (["schedule", "idle"], 4, "has no schedule"),
        (["schedule", "idle", "--every", "1h", "--off"], 2, "goes with no other"),
        (["schedule", "idle", "--cron", "@daily"], 2, "no cron expression"),
        (["create", "--"], 2, "no command"),
        (["create", "-e", "A", "--", "x"], 2, "K=V"),
        (["token", "--user", "nobody"], 4, "no user"),
    ],
)
def test_refusals_leave_with_a_code(words: list[str], code: int, sentence: str) -> None:
    made_service("idle")
    left, out, err = run(*words)
    assert (left, out) == (code, "")
    assert sentence in err.splitlines()[0]
    assert Job.objects.count() == 1


def test_lists_have_the_seeds_shape() -> None:
    service = running_service("web", pid=68248)
    image_operations.record(
        image_id=new_id(),
        service_id=service.pk,
        node=service.node,
        comm="ruby",
        path="/x",
        size_bytes=1,
        pages_bytes=22_450_176,
        created_at=datetime(2020, 11, 13, 12, 37, 30, tzinfo=UTC),
        leave_running=False,
        criu_version="",
        kernel="",
        argv=[],
        statistics={},
        manifest={},
    )
    heads, row = run("services")[1].splitlines()
    assert heads == "OBJECT_ID                        PID   PPID  ARGS"
    assert row == f"{service.pk} 68248 68247 /bin/true"
    heads, row = run("images")[1].splitlines()
    assert heads == "OBJECT_ID                        COMM         PAGE_SIZE  CTIME"
    assert row[33:] == "ruby         21.41MiB   2020-11-13 12:37:30 +0000"
    assert json.loads(run("services", "--json")[1])[0]["pid"] == 68248
    assert json.loads(run("jobs", "--json")[1])[0]["status"] == "succeeded"


def test_tokens() -> None:
    User.objects.create_user("ann")
    assert user_of(run("token", "--user", "ann", "--label", "ci")[1].strip())
    first = run("daemon_token")[1].strip()
    second = run("daemon_token")[1].strip()
    root = user_of(second)
    assert root and root.get_username() == "root" and not root.has_usable_password()
    assert user_of(first) is None, "the earlier token of this node has ended"
    assert ApiToken.objects.count() == 2
