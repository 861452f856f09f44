"""The API: objects, refusals, waiting and logs; the last two through a real gunicorn."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from services import operations
from services.authentication import issue, user_of
from services.models import ApiToken, Job, Service
from services.presenting import job_object
from tests.rows import made_service, member, recorded_image, running_service, taken

pytestmark = pytest.mark.django_db(transaction=True)

API = "/api/v1/"


@pytest.fixture
def token() -> str:
    return issue(User.objects.create_superuser("boss"))


@pytest.fixture
def api(token: str) -> Client:
    return Client(headers={"authorization": f"Bearer {token}"})


def post(api: Client, path: str, body: Any = None) -> Any:
    return api.post(API + path, data=json.dumps(body or {}), content_type="application/json")


def code_of(response: Any) -> str:
    error = response.json()["error"]
    assert set(error) == {"code", "message", "remedy", "details"}
    assert error["message"] and "\n" not in error["message"]
    return str(error["code"])


def test_a_service_from_creation_to_dump(api: Client) -> None:
    answer = post(api, "services", {"args": ["/bin/sleep", "9"], "name": "nap", "env": {"A": "b"}})
    assert answer.status_code == 202
    job = answer.json()
    assert answer["Location"].endswith(API + "jobs/" + job["object_id"])
    assert (job["kind"], job["status"], job["requested_by"], job["source"]) == (
        "start",
        "queued",
        "boss",
        "api",
    )
    assert "warning" in job, "there is no Redis in this test, and the answer says so"
    assert api.get(API + "services").json() == []
    [service] = api.get(API + "services?all=1").json()
    assert service["job"] == job["object_id"]
    assert (service["args"], service["env"], service["status"]) == (
        ["/bin/sleep", "9"],
        {"A": None},
        "created",
    )
    operations.succeed(
        taken(Job.objects.get()), service_state=None, result={}, statistics={}, pid=1234, supervisor_pid=1230
    )
    [service] = api.get(API + "services").json()
    assert (service["pid"], service["ppid"], service["job"]) == (1234, 1230, None)
    for reference in ("nap", "pid:1234", service["object_id"], service["object_id"][:8]):
        assert api.get(API + f"services/{reference}").json() == service
    job = post(api, "services/nap/dump", {"leave_running": True}).json()
    assert (job["options"], len(job["image"])) == ({"leave_running": True}, 32)
    shown = api.get(API + "jobs/" + job["object_id"][:12])
    assert shown.status_code == 200
    assert [event["status"] for event in shown.json()["events"]] == ["queued"]


def test_refusals_have_one_shape(api: Client) -> None:
    running_service("web")
    made_service("idle")
    post(api, "services/web/dump")
    rows = (Service.objects.count(), Job.objects.count())
    for status, code, answer in (
        (404, "service_not_found", api.get(API + "services/nope")),
        (404, "service_not_found", post(api, "services/pid:99/dump")),
        (404, "image_not_found", post(api, "images/nope/restore")),
        (404, "job_not_found", api.get(API + "jobs/nope")),
        (404, "not_found", api.get(API + "nope")),
        (405, "bad_input", api.put(API + "services")),
        (409, "job_active", post(api, "services/web/dump")),
        (409, "job_active", post(api, "services/idle/dump")),
        (409, "name_taken", post(api, "services", {"args": ["/bin/true"], "name": "web"})),
        (422, "bad_input", post(api, "services", {"args": []})),
        (422, "bad_input", post(api, "services", {"args": ["a\x00b"]})),
        (422, "bad_input", post(api, "services", {"args": ["a\nb"]})),
        (422, "bad_input", post(api, "services", {"args": ["a", "\ud800"]})),
        (422, "bad_input", post(api, "services", {"args": "ls"})),
        (422, "bad_input", post(api, "services", {"args": [1]})),
        (422, "bad_input", post(api, "services", {"args": ["a"], "shell": True})),
        (422, "bad_input", post(api, "services", {"args": ["a"], "env": {"A": 1}})),
        (422, "bad_input", post(api, "services/web/dump", {"leave_running": 1})),
        (422, "bad_input", post(api, "services/web/stop", {"grace": -1})),
        (422, "bad_input", post(api, "services/pid:x/dump")),
        (422, "bad_input", api.get(API + "jobs?status=odd")),
        (422, "bad_input", api.get(API + "jobs?source=odd")),
        (422, "bad_input", api.get(API + "jobs?kind=odd")),
        (422, "bad_input", api.get(API + "jobs/0?wait=99999")),
        (413, "bad_input", post(api, "services", {"args": ["a", "x" * 1024 * 1024]})),
        (400, "bad_input", api.post(API + "services", data=b"{", content_type="application/json")),
        (400, "bad_input", api.post(API + "services", data=b"\xff\xfe", content_type="text/plain")),
        (422, "bad_input", api.post(API + "services", data=b"[1]", content_type="application/json")),
        (400, "bad_input", api.post(API + "services", data=b"[" * 9999, content_type="application/json")),
    ):
        assert (answer.status_code, code_of(answer)) == (status, code), answer.content
    assert rows == (Service.objects.count(), Job.objects.count())


def test_who_is_not_known_or_not_allowed(api: Client) -> None:
    running_service("web")
    stranger = Client()
    assert stranger.get(API + "services").status_code == 401
    wrong = Client(headers={"authorization": "Bearer wrong"}).get(API + "services")
    assert (wrong.status_code, code_of(wrong)) == (401, "not_allowed")
    reader = Client(headers={"authorization": f"Bearer {issue(member('viewer'))}"})
    assert reader.get(API + "services").status_code == 200
    refused = post(reader, "services/web/dump")
    assert (refused.status_code, code_of(refused)) == (403, "not_allowed")
    User.objects.filter(username__startswith="viewer").update(is_active=False)
    assert reader.get(API + "services").status_code == 401
    elsewhere = api.get(API + "services", headers={"host": "evil.example"})
    assert (elsewhere.status_code, code_of(elsewhere)) == (400, "bad_input")


def test_a_session_needs_the_csrf_token_to_change_something() -> None:
    running_service("web")
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("boss"))
    assert browser.get(API + "services").status_code == 200
    refused = post(browser, "services/web/dump")
    assert (refused.status_code, code_of(refused)) == (403, "not_allowed")
    assert not Job.objects.filter(kind="dump").exists()


def test_a_token_costs_one_query_and_lists_cost_no_more_for_more_rows(api: Client, token: str) -> None:
    assert user_of(token)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert user_of(token)
    assert len(queries) == 1
    assert ApiToken.objects.get().digest not in token
    counts = []
    for number in (1, 5):
        for index in range(number):
            running_service(f"s{number}-{index}", pid=100 * number + index)
        with CaptureQueriesContext(connection) as queries:
            list(Service.objects.for_display())
            [job.service and job.node.name for job in Job.objects.select_related("service", "node")]
        counts.append(len(queries))
    assert counts == [2, 2]


def test_a_job_names_its_service_also_where_it_only_looks_or_works_on_an_image(api: Client) -> None:
    for number in range(4):
        service = running_service(f"web-{number}", pid=5000 + number)
        looked = post(api, f"services/{service.pk}/check").json()
        assert looked["service_name"] == service.name
        verified = post(api, f"images/{recorded_image(service).pk}/verify").json()["object_id"]
        names = {job["object_id"]: job["service_name"] for job in api.get(API + "jobs").json()}
        assert names[looked["object_id"]] == names[verified] == service.name
        assert api.get(API + f"jobs/{verified}").json()["service_name"] == service.name
        with CaptureQueriesContext(connection) as queries:
            assert [job_object(job) for job in Job.objects.for_display()]
        assert len(queries) == 1
    Service.objects.filter(pk=service.pk).delete()
    assert api.get(API + f"jobs/{verified}").json()["service_name"] == ""


def test_openapi_lists_every_call(api: Client) -> None:
    paths = api.get(API + "openapi.json").json()["paths"]
    assert {API + "services/{reference}/dump", API + "images/{reference}/restore", API + "check"} <= set(
        paths
    )
    assert api.get(API + "docs").status_code == 200


def test_logs_go_back_across_a_rotation(api: Client) -> None:
    service = made_service("web")
    log = Path(settings.MIEHISTO_LOG_DIR) / f"{service.pk}.log"
    log.with_name(log.name + ".1").write_text("".join(f"old {n}\n" for n in range(50_000)))
    log.write_text("new 0\nnew 1\n")
    assert api.get(API + "services/web/logs?lines=1").content == b"new 1\n"
    answer = api.get(API + "services/web/logs?lines=4")
    assert answer.content == b"old 49998\nold 49999\nnew 0\nnew 1\n"
    assert answer["Content-Type"].startswith("text/plain")
    assert api.get(API + "services/web/logs?lines=0").content == b""
    log.unlink()
    log.with_name(log.name + ".1").unlink()
    assert api.get(API + "services/web/logs").content == b""


class Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        try:
            self.sock.connect(str(self.path))
        except OSError:
            self.sock.close()
            raise


class Site:
    """A real gunicorn on a unix socket, asked as mhctl asks."""

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.token = token
        self.open = ExitStack()

    def ask(self, method: str, call: str, *, stream: bool = False) -> http.client.HTTPResponse:
        line = self.open.enter_context(closing(Unix(self.path)))
        headers = {"Authorization": f"Bearer {self.token}", "User-Agent": "mhctl"}
        if stream:
            headers["Accept"] = "application/x-ndjson"
        line.request(method, API + call, body="{}" if method == "POST" else None, headers=headers)
        return self.open.enter_context(closing(line.getresponse()))


@pytest.fixture
def site(token: str) -> Iterator[Site]:
    path = Path(settings.MIEHISTO_RUN_DIR) / "site.sock"
    environment = os.environ | {"DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "-k", "asgi", "--workers", "1", "--bind", f"unix:{path}"),
            *("--no-control-socket", "miehisto_web.asgi:application"),
        ],
        env=environment,
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    site = Site(path, token)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                site.ask("GET", "node").read()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None, "gunicorn doesn't answer"
                time.sleep(0.1)
        yield site
    finally:
        site.open.close()
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("with_redis", [True, False])
def test_a_waiting_answer_streams_the_steps(
    with_redis: bool, site: Site, request: pytest.FixtureRequest
) -> None:
    if with_redis:
        request.getfixturevalue("redis_server")
    running_service("web")
    answer = site.ask("POST", "services/web/dump?wait=20", stream=True)
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "application/x-ndjson"
    first = json.loads(answer.readline())
    assert first["event"]["status"] == "queued"
    assert ("warning" in first) is not with_redis
    job = taken(Job.objects.get(kind="dump"))
    assert job.source == "mhctl"
    assert json.loads(answer.readline())["event"]["status"] == "running"
    took = []
    for step in ("looking", "freezing", "writing", "sealing", "ending"):
        before = time.monotonic()
        operations.enter_step(job, step)
        assert json.loads(answer.readline())["event"]["step"] == step
        took.append(time.monotonic() - before)
    if with_redis:
        assert median(took) < 0.2, "the bell wakes at once; the rows alone are read each half second"
    operations.succeed(job, service_state=None, result={"path": "/x"}, statistics={})
    assert json.loads(answer.readline())["event"]["status"] == "succeeded"
    last = json.loads(answer.readline())["job"]
    assert (last["status"], last["result"]) == ("succeeded", {"path": "/x"})
    assert len(last["events"]) == 3 + len(took)
    assert answer.readline() == b""


def test_waiting_without_a_stream(site: Site, redis_server: redis.Redis) -> None:
    running_service("web")
    answer = site.ask("POST", "services/web/dump?wait=0.3")
    assert answer.status == 202, "time ran out"
    job_id = json.loads(answer.read())["object_id"]

    def work() -> None:
        job = taken(Job.objects.get(pk=job_id))
        operations.fail(job, code="c", message="m", remedy="r", lines=[], service_state=None)
        connection.close()

    thread = threading.Timer(0.3, work)
    thread.start()
    answer = site.ask("GET", f"jobs/{job_id}?wait=20")
    thread.join()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (200, "c")


def test_a_followed_log_survives_rotation_and_ends_with_its_reader(site: Site) -> None:
    service = made_service("web")
    log = Path(settings.MIEHISTO_LOG_DIR) / f"{service.pk}.log"
    log.write_text("zero\none\n")
    answer = site.ask("GET", "services/web/logs?lines=1&follow=1")
    assert answer.readline() == b"one\n"
    with log.open("a") as file:
        file.write("two\n")
        file.flush()
        assert answer.readline() == b"two\n"
        file.write("three\n")
        file.flush()
        log.rename(log.with_name(log.name + ".1"))
    log.write_text("four\n")
    assert [answer.readline() for _ in range(2)] == [b"three\n", b"four\n"]
    assert _readers(log) == 1
    site.open.close()
    deadline = time.monotonic() + 10
    while _readers(log) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _readers(log) == 0, "the site goes on reading for nobody"


def _readers(path: Path) -> int:
    """How many descriptors of other processes have this file open."""
    count = 0
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            count += descriptor.samefile(path) and descriptor.parts[2] != str(os.getpid())
        except OSError:
            continue
    return count
