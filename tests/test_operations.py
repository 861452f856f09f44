"""Operations on real rows: one active job, claims, ends, the agent's word, the queue when it is away."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from images import operations as image_operations
from services import operations, progress
from services.models import AuditEvent, Job, Node, Service
from services.problems import Problem
from services.resending import Resender
from services.states import JobState, ServiceState
from tests.rows import made_service, recorded_image, running_service, taken

pytestmark = pytest.mark.django_db(transaction=True)

ROOT: dict[str, Any] = {"actor": "root", "source": "manage"}


def at_once(count: int, work: Callable[[], Any]) -> list[Any]:
    """Run `work` in threads that begin together; return what each returned or raised."""
    start = threading.Barrier(count)
    answers: list[Any] = []

    def run() -> None:
        start.wait()
        try:
            answers.append(work())
        except Exception as error:
            answers.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_a_dump_from_asking_to_its_end() -> None:
    service = running_service("web")
    job = operations.request_dump(service, **ROOT)
    assert len(job.image_id) == 32
    job = taken(job)
    assert job.service and job.service.status == ServiceState.DUMPING
    operations.enter_step(job, "freezing")
    operations.succeed(job, service_state=None, result={"path": "/x"}, statistics={"frozen": 1})
    service.refresh_from_db()
    assert (service.status, service.pid, service.image_id) == ("dumped", None, job.image_id)
    assert list(job.events.values_list("status", "step")) == [
        ("queued", ""),
        ("running", ""),
        ("running", "freezing"),
        ("succeeded", "freezing"),
    ]


def test_the_second_dump_is_told_which_job_is_in_the_way() -> None:
    service = running_service()
    first = operations.request_dump(service, **ROOT)
    for _ in range(2):  # while it is queued, then while it runs
        with pytest.raises(Problem) as refused:
            operations.request_dump(service, **ROOT)
        assert refused.value.code == "job_active"
        assert refused.value.details["job"] == first.pk
        assert first.pk in refused.value.message
        operations.claim(first.pk, worker="w")
    assert service.jobs.count() == 2  # the start and the first dump


def test_eight_who_ask_at_once_get_one_job() -> None:
    service = running_service()
    answers = at_once(8, lambda: operations.request_dump(service, **ROOT))
    jobs = [answer for answer in answers if isinstance(answer, Job)]
    refusals = [answer.code for answer in answers if isinstance(answer, Problem)]
    assert len(jobs) == 1
    assert refusals == ["job_active"] * 7


def test_the_database_itself_forbids_two_active_jobs() -> None:
    service = running_service()
    job = operations.request_dump(service, **ROOT)
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.create(kind="stop", service=service, node=service.node, queued_at=job.queued_at)


def test_eight_workers_claim_and_one_gets_it() -> None:
    job = operations.request_dump(running_service(), **ROOT)
    answers = at_once(8, lambda: operations.claim(job.pk, worker="w"))
    assert sorted(type(answer).__name__ for answer in answers) == ["Job"] + ["NoneType"] * 7


def test_a_claim_fails_the_job_when_the_service_is_gone_by_then() -> None:
    service = running_service()
    job = operations.request_dump(service, **ROOT)
    operations.observe(
        service.pk,
        state=ServiceState.EXITED,
        pid=None,
        supervisor_pid=None,
        exit_code=3,
        exit_signal=None,
        reason="exited",
    )
    assert operations.claim(job.pk, worker="w") is None
    job.refresh_from_db()
    service.refresh_from_db()
    assert (job.status, job.error_code) == ("failed", "service_not_running")
    assert (service.status, service.exit_code) == ("exited", 3)


def test_a_failed_dump_leaves_the_service_as_it_was() -> None:
    service = running_service(pid=77)
    job = taken(operations.request_dump(service, **ROOT))
    operations.fail(
        job, code="criu_failed", message="m", remedy="r", lines=["Error (a): b"], service_state=None
    )
    service.refresh_from_db()
    job.refresh_from_db()
    assert (service.status, service.pid) == ("running", 77)
    assert job.error == {
        "code": "criu_failed",
        "message": "m",
        "remedy": "r",
        "lines": ["Error (a): b"],
        "actions": [],
    }


def test_a_job_ends_once() -> None:
    service = running_service()
    job = taken(operations.request_dump(service, **ROOT))
    operations.lose(job, "the worker died", ServiceState.RUNNING)
    operations.succeed(job, service_state=None, result={}, statistics={})
    job.refresh_from_db()
    service.refresh_from_db()
    assert (job.status, service.status) == ("lost", "running")


def test_a_bug_keeps_its_traceback() -> None:
    job = taken(operations.request_dump(running_service(), **ROOT))
    operations.error(job, "Traceback\n  x\nKeyError: 1\n", ServiceState.RUNNING)
    job.refresh_from_db()
    assert job.status == JobState.ERRORED
    assert "KeyError: 1" in job.error_message
    assert job.traceback.startswith("Traceback")


def test_the_agent_is_not_heard_while_a_job_runs() -> None:
    service = running_service(pid=5)
    seen: dict[str, Any] = {
        "state": ServiceState.EXITED,
        "pid": None,
        "supervisor_pid": None,
        "exit_code": 0,
        "exit_signal": None,
        "reason": "",
    }
    before = service.changed_at
    job = taken(operations.request_stop(service, **ROOT))
    assert operations.observe(service.pk, **seen) is False
    operations.succeed(job, service_state=None, result={}, statistics={}, exit_code=0)
    assert operations.observe(service.pk, **seen, as_of=before) is False, "it looked before the job's end"
    service.refresh_from_db()
    assert service.status == ServiceState.STOPPED
    assert operations.observe("0" * 32, **seen) is False


def test_only_a_queued_job_can_be_cancelled() -> None:
    job = operations.request_dump(running_service(), **ROOT)
    assert operations.cancel(job, "root").status == JobState.CANCELLED
    assert operations.claim(job.pk, worker="w") is None
    with pytest.raises(Problem) as refused:
        operations.cancel(job, "root")
    assert refused.value.code == "not_cancellable"


def test_delete_takes_the_row_and_keeps_the_history() -> None:
    service = running_service()
    with pytest.raises(Problem) as refused:
        operations.request_delete_service(service, **ROOT)
    assert refused.value.code == "service_running"
    job = taken(operations.request_delete_service(service, stop=True, **ROOT))
    operations.succeed(job, service_state=None, result={}, statistics={})
    assert not Service.objects.exists()
    job.refresh_from_db()
    assert (job.status, job.service_ref, job.service) == ("succeeded", service.pk, None)


def test_the_image_that_a_dumped_service_is_goes_only_by_force() -> None:
    service = running_service()
    job = taken(operations.request_dump(service, **ROOT))
    image = recorded_image(service, job.image_id)
    operations.succeed(job, service_state=None, result={}, statistics={})
    with pytest.raises(Problem) as refused:
        image_operations.request_delete(image, **ROOT)
    assert (refused.value.code, refused.value.details["service"]) == ("image_is_service", service.pk)
    assert image_operations.request_delete(image, force=True, **ROOT).kind == "delete_image"


def test_restore_asks_for_a_service_without_process_and_an_image_in_peace() -> None:
    service = running_service()
    image = recorded_image(service)
    with pytest.raises(Problem) as refused:
        image_operations.request_restore(image, **ROOT)
    assert refused.value.code == "service_running"
    stop = taken(operations.request_stop(service, **ROOT))
    operations.succeed(stop, service_state=None, result={}, statistics={})
    restore = image_operations.request_restore(image, **ROOT)
    with pytest.raises(Problem) as refused:
        image_operations.request_delete(image, **ROOT)
    assert (refused.value.code, refused.value.details["job"]) == ("image_in_use", restore.pk)
    operations.succeed(taken(restore), service_state=None, result={}, statistics={}, pid=9)
    service.refresh_from_db()
    assert (service.status, service.pid, service.image_id) == ("running", 9, image.pk)
    image_operations.request_verify(image, **ROOT)
    operations.request_dump(service, **ROOT)  # an image's job never blocks the service


def test_a_service_that_is_named_alone_is_restored_from_the_image_that_it_is() -> None:
    service = running_service()
    older = recorded_image(service)
    with pytest.raises(Problem) as refused:
        image_operations.request_restore_of(service, **ROOT)
    assert refused.value.code == "service_not_dumped"
    dump = taken(operations.request_dump(service, **ROOT))
    image = recorded_image(service, dump.image_id)
    operations.succeed(dump, service_state=None, result={}, statistics={})
    service.refresh_from_db()
    stale = Service.objects.get(pk=service.pk)
    restore = image_operations.request_restore_of(service, **ROOT)
    assert restore.image_id == image.pk != older.pk
    with pytest.raises(Problem) as refused:
        image_operations.request_restore_of(stale, **ROOT)
    assert (refused.value.code, refused.value.details["job"]) == ("job_active", restore.pk)
    operations.succeed(taken(restore), service_state=None, result={}, statistics={}, pid=9)
    with pytest.raises(Problem) as refused:  # what was read before it ran again is old now
        image_operations.request_restore_of(stale, **ROOT)
    assert refused.value.code == "service_not_dumped"


def test_a_user_without_the_permission_may_not() -> None:
    service = running_service()
    user = User.objects.create_user("reader")
    with pytest.raises(Problem) as refused:
        operations.request_dump(service, actor=user, source="web")
    assert (refused.value.code, refused.value.http_status) == ("not_allowed", 403)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("argv", []),
        ("argv", "ls"),
        ("argv", ["ls", 1]),
        ("argv", ["ls\n"]),
        ("argv", ["ls", "a\x00b"]),
        ("argv", ["ls", "\ud800"]),
        ("argv", ["ls", "x" * 1024 * 1024]),
        ("argv", ["ls", *["x" * 1024] * 200]),
        ("user", "a\nb"),
        ("cwd", "relative"),
        ("cwd", "/a\x00"),
        ("env", {"A=B": "1"}),
        ("env", {"": "1"}),
        ("env", {"A": "\x00"}),
        ("binds", ["/a"]),
        ("binds", ["/a:/b:rw"]),
        ("binds", ["/a:/b/../c"]),
        ("name", "a" * 32),
        ("name", "a/b"),
        ("name", "pid:1"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(field: str, value: Any) -> None:
    arguments: dict[str, Any] = {"argv": ["/bin/true"], field: value}
    with pytest.raises(Problem) as refused:
        operations.request_create(node=Node.objects.local(), **arguments, **ROOT)
    assert refused.value.code == "bad_input"
    assert "\n" not in refused.value.message and len(refused.value.message) < 300
    assert not Service.objects.exists() and not Job.objects.exists()


def test_an_argument_may_hold_newlines() -> None:
    assert made_service(argv=["/bin/sh", "-c", "a\nb"]).argv[2] == "a\nb"


def test_a_name_is_taken_once() -> None:
    made_service("web")
    with pytest.raises(Problem) as refused:
        made_service("web")
    assert refused.value.code == "name_taken"
    assert Service.objects.count() == 1


def test_references() -> None:
    now = datetime.now(UTC)
    for number, name in (("0", "one"), ("1", "ab0")):
        Service.objects.create(
            id="ab" + number * 30, name=name, node=Node.objects.local(), created_at=now, changed_at=now
        )
    assert Service.objects.by_reference("ab" + "1" * 30).name == "ab0"
    assert Service.objects.by_reference("ab0").name == "ab0", "a name goes before the beginning of an id"
    assert Service.objects.by_reference("AB00").name == "one"
    with pytest.raises(Problem) as refused:
        Service.objects.by_reference("ab")
    assert refused.value.code == "ambiguous_reference"
    assert len(refused.value.details["candidates"]) == 2
    for wrong in ("ffff", "%", "ab%", "x" * 40):
        with pytest.raises(Problem) as refused:
            Service.objects.by_reference(wrong)
        assert refused.value.code == "service_not_found"


def test_a_name_that_many_ids_begin_with_still_names_its_own() -> None:
    now = datetime.now(UTC)
    for number in range(40):
        Service.objects.create(
            id=f"db{number:030}", name="", node=Node.objects.local(), created_at=now, changed_at=now
        )
    named = made_service("db")
    assert Service.objects.by_reference("db") == named
    assert Service.objects.by_reference(f"db{7:030}").pk == f"db{7:030}"
    with pytest.raises(Problem, match="and more"):
        Service.objects.by_reference("db0")


def test_who_renames_what_was_deleted_is_told() -> None:
    service = made_service("gone")
    Service.objects.filter(pk=service.pk).delete()
    with pytest.raises(Problem) as refused:
        operations.change(service, name="other", **ROOT)
    assert refused.value.code == "service_not_found"


def test_what_is_changed_of_a_service_is_changed_at_once_or_not_at_all() -> None:
    service, _ = made_service("web"), made_service("taken")
    before = AuditEvent.objects.count()
    with pytest.raises(Problem, match="taken"):
        operations.change(service, name="taken", restore_on_boot=True, **ROOT)
    service.refresh_from_db()
    assert (service.name, service.restore_on_boot, AuditEvent.objects.count()) == ("web", False, before)
    operations.change(service, name="web", restore_on_boot=True, **ROOT)
    assert [event.action for event in AuditEvent.objects.order_by("pk")[before:]] == ["set"]


def test_a_jobs_end_keeps_the_name_that_was_given_meanwhile() -> None:
    job = operations.request_dump(running_service("old"), **ROOT)
    claimed = taken(job)
    assert claimed.service
    operations.change(Service.objects.get(pk=claimed.service.pk), name="new", **ROOT)
    progress._write_service(claimed.service, ServiceState.RUNNING)
    assert Service.objects.get(pk=claimed.service.pk).name == "new"


def test_without_redis_the_job_stays_queued_and_the_request_is_quick() -> None:
    service = running_service()
    before = time.monotonic()
    job = operations.request_dump(service, **ROOT)
    assert time.monotonic() - before < 5, "Celery would try for a minute"
    job.refresh_from_db()
    assert (job.status, job.sent_at) == ("queued", None)
    assert Resender(service.node.name).sweep() == 0


def test_what_waited_is_sent_when_redis_is_there(redis_server: redis.Redis) -> None:
    service = running_service()
    job = operations.request_dump(service, **ROOT)
    queue = f"node.{service.node.name}"
    assert job.pk.encode() in redis_server.lrange(queue, 0, -1)[0]
    redis_server.flushall()
    Job.objects.filter(pk=job.pk).update(sent_at=None)
    now = [0.0]
    resender = Resender(service.node.name, clock=lambda: now[0])
    assert [resender.sweep(), resender.sweep()] == [1, 0]
    assert redis_server.llen(queue) == 1

    # One that waits for long is not lost: it is sent again ever more seldom, whatever a clock says.
    Job.objects.filter(pk=job.pk).update(sent_at=timezone.now() + timedelta(hours=1))
    for _ in range(360):
        now[0] += 10
        resender.sweep()
    assert 5 < redis_server.llen(queue) < 15


def test_what_waits_is_sent_at_once_to_a_redis_that_has_forgotten_all(redis_server: redis.Redis) -> None:
    service = running_service()
    operations.request_dump(service, **ROOT)
    resender = Resender(service.node.name)
    assert resender.sweep() == 1, "what a worker had taken out of the queue died with it"
    assert resender.sweep() == 0
    resender._queue = "another run"
    assert resender.sweep() == 1


def test_a_redis_that_hangs_holds_a_request_half_a_second_at_most(redis_server: redis.Redis) -> None:
    service = running_service()
    pid = int(redis_server.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        before = time.monotonic()
        job = operations.request_dump(service, **ROOT)
        took = time.monotonic() - before
    finally:
        os.kill(pid, signal.SIGCONT)
    assert took < 5, "without a time limit it would wait for ever"
    job.refresh_from_db()
    assert (job.status, job.sent_at) == ("queued", None)


WRITER = """
import django; django.setup()
from services import operations
from services.models import Job, Node
for _ in range(60):
    job = operations.request_check(Node.objects.local(), actor="root", source="manage")
    job = operations.claim(job.pk, worker="w")
    operations.enter_step(job, "probing")
    operations.succeed(job, service_state=None, result={}, statistics={})
"""


def test_site_and_workers_write_at_once() -> None:
    Node.objects.local()
    database = connection.settings_dict["NAME"]
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{database}",
        "DJANGO_SETTINGS_MODULE": "miehisto_web.settings",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER],
            env=environment,
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]

    def ask() -> int:
        for _ in range(40):
            service = made_service()
            operations.change(service, name="n" + service.pk[:8], **ROOT)
        return 40

    site = at_once(4, ask)
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], errors
    assert site == [40] * 4
    assert Job.objects.filter(status=JobState.SUCCEEDED).count() == 180
    assert connection.cursor().execute("PRAGMA journal_mode").fetchone() == ("wal",)
