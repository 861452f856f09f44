"""mhctl as an operator runs it, against a small HTTP server on a unix socket with canned answers."""

from __future__ import annotations

import json
import os
import pty
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Any

import pytest

from mhctl.transport import Address

ROOT = Path(__file__).resolve().parent.parent
SERVICE_ID = "9491c63874fac947cc46d437b028b189"
IMAGE_ID = "742e79e9de83a9091424edb0fa463235"
JOB_ID = "1f" * 16
SERVICE = {
    "object_id": SERVICE_ID,
    "name": "",
    "status": "running",
    "pid": 68248,
    "ppid": 68243,
    "args": ["/usr/bin/ruby", "-run", "-e", "httpd", "--", "/var/www/html"],
}
IMAGE = {
    "object_id": IMAGE_ID,
    "comm": "ruby",
    "page_size": 22450013,
    "ctime": "2020-11-13T12:37:30.123456Z",
}


def job(status: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "object_id": JOB_ID,
        "kind": "dump",
        "status": status,
        "service": SERVICE_ID,
        "image": IMAGE_ID,
        **more,
    }


@dataclass
class Daemon:
    """The canned side: `answer` is called with the handler for each request."""

    socket: Path
    answer: Callable[[Handler], None] = lambda handler: handler.say(404, {})
    requests: list[tuple[str, str, Any, str]] = field(default_factory=list)

    def mhctl(
        self, *words: str, stdout: int | IO[str] = subprocess.PIPE, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mhctl.main", *words],
            env=self.environment(env),
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        own = {"MIEHISTO_URL": f"unix:{self.socket}", "MIEHISTO_TOKEN": "sesame", "PYTHONUTF8": "1"}
        return {**os.environ, **own, **more}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    daemon: Daemon

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def handle_any(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(data) if data else None
        self.daemon.requests.append((self.command, self.path, body, self.headers.get("Authorization", "")))
        self.close_connection = True
        self.daemon.answer(self)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def say(self, status: int, thing: Any, **headers: str) -> None:
        data = json.dumps(thing).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str, remedy: str = "", **details: Any) -> None:
        error = {"code": code, "message": message, "remedy": remedy, "details": details}
        self.say(status, {"error": error})

    def begin_stream(self, kind: str = "application/x-ndjson") -> None:
        self.send_response(202)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Location", f"/api/v1/jobs/{JOB_ID}")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def stream(self, *things: Any) -> None:
        """Events and a job as the API sends them, cut at awkward places to prove the chunk reader."""
        self.begin_stream()
        data = b"".join(json.dumps(thing).encode() + b"\n\n" for thing in things)
        for start in range(0, len(data), 7):
            self.chunk(data[start : start + 7])
        self.chunk(b"")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    canned = Daemon(tmp_path / "d.sock")
    handler = type("BoundHandler", (Handler,), {"daemon": canned})
    with socketserver.ThreadingUnixStreamServer(str(canned.socket), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield canned
        server.shutdown()
        thread.join()


# --- the walk-through's outputs ---------------------------------------------------------------------------


def test_service_list_looks_like_the_walk_through(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.say(200, [SERVICE])
    done = daemon.mhctl("service", "list")
    assert done.stdout == (
        "OBJECT_ID                        PID   PPID  ARGS\n"
        "9491c63874fac947cc46d437b028b189 68248 68243 /usr/bin/ruby -run -e httpd -- /var/www/html\n"
    )
    assert daemon.requests == [("GET", "/api/v1/services", None, "Bearer sesame")]


def test_image_list_looks_like_the_walk_through(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.say(200, {"items": [IMAGE], "count": 1})
    assert daemon.mhctl("i", "ls").stdout == (
        "OBJECT_ID                        COMM         PAGE_SIZE  CTIME\n"
        "742e79e9de83a9091424edb0fa463235 ruby         21.41MiB   2020-11-13 12:37:30 +0000\n"
    )


def test_an_empty_table_has_its_head(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.say(200, [])
    assert daemon.mhctl("services", "list").stdout == "OBJECT_ID                        PID   PPID  ARGS\n"


def test_json_prints_the_objects(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.say(200, [SERVICE])
    assert json.loads(daemon.mhctl("--json", "service", "list").stdout) == [SERVICE]


def test_create_sends_everything_and_prints_the_id(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.stream(
        {"event": {"step": "starting"}}, {"job": job(kind="start")}
    )
    words = ["-u", "www-data:www-data", "-C/srv", "-e", "A=b=c", "-b", "/a:/b:ro", "--name=web"]
    done = daemon.mhctl("service", "add", *words, "ruby", "-run", "-e", "httpd", "--", "/var/www", "--json")
    assert (done.stdout, done.stderr, done.returncode) == (SERVICE_ID + "\n", "", 0)
    method, path, body, _ = daemon.requests[0]
    assert (method, path) == ("POST", "/api/v1/services?wait=3600")
    assert body == {
        "args": ["ruby", "-run", "-e", "httpd", "--", "/var/www", "--json"],
        "user": "www-data",
        "group": "www-data",
        "cwd": "/srv",
        "env": {"A": "b=c"},
        "binds": ["/a:/b:ro"],
        "name": "web",
    }


def test_dump_by_pid_prints_the_folder(daemon: Daemon) -> None:
    folder = f"/var/lib/miehisto/images/{IMAGE_ID}"
    daemon.answer = lambda handler: handler.stream({"job": job(result={"path": folder})})
    assert daemon.mhctl("service", "dump", "-t", "68248", "--leave-running").stdout == folder + "\n"
    assert daemon.requests[0][1:3] == ("/api/v1/services/pid:68248/dump?wait=3600", {"leave_running": True})


def test_restore_prints_the_images_id(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.say(200, job(kind="restore"))  # a held answer without a stream
    assert daemon.mhctl("service", "restore", "--from", IMAGE_ID).stdout == IMAGE_ID + "\n"
    assert daemon.mhctl("service", "restore", "web").stdout == IMAGE_ID + "\n"
    paths = [f"/api/v1/{what}/restore?wait=3600" for what in (f"images/{IMAGE_ID}", "services/web")]
    assert [request[1] for request in daemon.requests] == paths


def test_a_job_without_a_log_of_crius_says_so(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.say(200, {"lines": []})
    done = daemon.mhctl("job", "log", JOB_ID)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"CRIU left no log of this job; `mhctl job show {JOB_ID}`" in done.stderr


def test_restore_wants_a_service_or_an_image_not_both(daemon: Daemon) -> None:
    for words in ([], ["web", "--from", IMAGE_ID], ["--from", ""]):
        assert daemon.mhctl("service", "restore", *words).returncode == 2
    assert daemon.requests == []


def test_no_wait_prints_the_jobs_id_and_says_a_warning(daemon: Daemon) -> None:
    warning = "the queue does not answer; the job is sent when it does"
    daemon.answer = lambda handler: handler.say(202, job("queued", warning=warning))
    done = daemon.mhctl("service", "stop", "web%1", "--grace", "0", "--no-wait")
    assert (done.stdout, done.stderr) == (JOB_ID + "\n", f"mhctl: warning: {warning}\n")
    assert daemon.requests[0][1:3] == ("/api/v1/services/web%251/stop", {"grace": 0})


def test_an_image_that_was_just_made_is_waited_for(daemon: Daemon) -> None:
    read = {"processes": [], "memory": {}, "sockets": [], "files": [], "counts": {"files": 3}, "truncated": 0}
    pending = iter(range(2))

    def contents(handler: Handler) -> None:
        if not handler.path.endswith("/contents"):
            handler.say(200, IMAGE)
        elif next(pending, None) is not None:
            handler.say(200, {"state": "pending", "contents": None})
        else:
            handler.say(200, {"state": "read", "contents": read})

    daemon.answer = contents
    assert "open files: 3" in daemon.mhctl("image", "show", IMAGE_ID).stdout

    unread = iter(range(2))

    def compared(handler: Handler) -> None:
        if next(unread, None) is not None:
            handler.refuse(409, "contents_pending", "It has not been looked into yet.")
        else:
            sides = {side: {"object_id": IMAGE_ID} for side in ("before", "after")}
            handler.say(200, {"same": True, **sides})

    daemon.answer = compared
    done = daemon.mhctl("image", "compare", IMAGE_ID, IMAGE_ID)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Nothing differs.")


def test_logs_are_passed_on_byte_by_byte_as_they_come(daemon: Daemon) -> None:
    seen = threading.Event()

    def answer(handler: Handler) -> None:
        handler.begin_stream("text/plain")
        handler.chunk(b"one \xff\x1b[1m\n")
        seen.wait(10)
        handler.chunk(b"two\n")
        handler.chunk(b"")

    daemon.answer = answer
    command = [sys.executable, "-m", "mhctl.main", "service", "logs", "-fn", "5", "web"]
    with subprocess.Popen(command, env=daemon.environment({}), cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one \xff\x1b[1m\n"  # before the answer has ended
        seen.set()
        assert process.stdout.read() == b"two\n"
    assert daemon.requests[0][1] == "/api/v1/services/web/logs?lines=5&follow=1"


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["logs", "web"]])
@pytest.mark.parametrize("services", [1, 200])
def test_an_output_that_takes_no_more_is_told_in_a_sentence(
    daemon: Daemon, words: list[str], services: int
) -> None:
    """Whether all of it waits for the end, or some has to be written before."""
    daemon.answer = lambda handler: handler.say(200, [SERVICE] * services)
    with Path("/dev/full").open("w") as full:
        done = daemon.mhctl("service", *words, stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "mhctl: The output cannot be written: No space left on device.",
        "  remedy: Make room there, or let it go elsewhere; `mhctl job list` shows what was done.",
    ]


def test_a_reader_that_has_had_enough_is_no_failure_to_tell_of(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.say(200, [SERVICE] * 200)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = daemon.mhctl("service", "list", stdout=gone)
    assert (done.returncode, done.stderr) == (1, "")


def test_check_prints_each_line_and_fails_when_something_is_missing(daemon: Daemon) -> None:
    checks = [
        {"name": "criu", "ok": True, "detail": "4.2.1", "remedy": ""},
        {"name": "nft", "ok": False, "detail": "", "remedy": "", "needed": False},
        {"name": "root", "ok": False, "detail": "uid 1000", "remedy": "run miehistod as root"},
    ]
    daemon.answer = lambda handler: handler.stream(
        {"job": job("failed", kind="check", result={"checks": checks})}
    )
    done = daemon.mhctl("check")
    assert (
        done.stdout
        == "criu ok      4.2.1\nnft  missing\nroot missing uid 1000\n     remedy: run miehistod as root\n"
    )
    assert (done.stderr, done.returncode) == (
        "mhctl: This host lacks root.\n  remedy: Follow the remedies above, then check again.\n",
        1,
    )


# --- failures and exit codes ------------------------------------------------------------------------------


def test_a_failed_job_is_told_with_criu_s_own_lines(daemon: Daemon) -> None:
    error = {
        "code": "criu_dump_failed",
        "message": "cannot dump: a unix socket has its peer outside",
        "remedy": "close the connection to /run/x.sock",
        "lines": ["Error (criu/sk-unix.c:815): unix: External socket is used\x1b[2J"],
    }
    daemon.answer = lambda handler: handler.stream({"job": job("failed", error=error, step="freezing")})
    done = daemon.mhctl("service", "dump", "web")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "mhctl: cannot dump: a unix socket has its peer outside\n"
        f"  service: {SERVICE_ID}\n"
        f"  job: {JOB_ID} (dump, failed)\n"
        "  step: freezing\n"
        "    Error (criu/sk-unix.c:815): unix: External socket is used\\x1b[2J\n"
        "  remedy: close the connection to /run/x.sock\n"
    )


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (404, "service_not_found", 4),
        (409, "ambiguous_reference", 4),
        (409, "job_active", 1),
        (401, "not_allowed", 5),
        (403, "not_allowed", 5),
        (422, "bad_input", 2),
        (500, "internal", 1),
    ],
)
def test_exit_codes_of_refusals(daemon: Daemon, status: int, code: str, exit_code: int) -> None:
    daemon.answer = lambda handler: handler.refuse(status, code, "the sentence", "the remedy", job=JOB_ID)
    done = daemon.mhctl("service", "stop", "web")
    assert done.returncode == exit_code
    assert done.stderr == f"mhctl: the sentence\n  job: {JOB_ID}\n  remedy: the remedy\n"
    told = json.loads(daemon.mhctl("service", "stop", "web", "--json").stdout)["error"]
    assert told == {
        "code": code,
        "message": "the sentence",
        "remedy": "the remedy",
        "details": {"job": JOB_ID},
    }


def test_a_proxy_s_page_is_no_json_and_no_traceback(daemon: Daemon) -> None:
    def answer(handler: Handler) -> None:
        handler.send_error(502, "Bad Gateway")

    daemon.answer = answer
    done = daemon.mhctl("job", "list")
    assert done.returncode == 3
    assert "gave status 502 and no reason." in done.stderr


def test_no_daemon_is_exit_3_with_a_remedy(tmp_path: Path) -> None:
    done = Daemon(tmp_path / "nobody.sock").mhctl("service", "list")
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr
    assert "remedy: Start it with `sudo miehistod`" in done.stderr


def test_a_daemon_that_hangs_up_is_exit_3(daemon: Daemon) -> None:
    def answer(handler: Handler) -> None:
        handler.begin_stream()
        handler.chunk(b"{")

    daemon.answer = answer
    assert daemon.mhctl("service", "list").returncode == 3


def test_the_token_file_serves_the_local_daemon_only(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-the-file\n")
    daemon.answer = lambda handler: handler.say(200, [])
    daemon.mhctl("service", "list", MIEHISTO_TOKEN="", MIEHISTO_RUN_DIR=str(tmp_path))
    assert daemon.requests[0][3] == "Bearer from-the-file"
    assert not Address("https://elsewhere.example:14444").is_local


# --- waiting ----------------------------------------------------------------------------------------------


def test_a_lost_connection_is_taken_up_again_at_the_job(daemon: Daemon) -> None:
    def answer(handler: Handler) -> None:
        if handler.command == "POST":
            handler.begin_stream()
            handler.chunk(b'{"event": {"step": "freezing"}}\n')  # and then the site dies
        elif len(daemon.requests) == 2:
            handler.stream({"job": job("running")})  # the held time ran out
        else:
            handler.stream({"job": job(result={"path": "/images/x"})})

    daemon.answer = answer
    done = daemon.mhctl("service", "dump", "web")
    assert (done.stdout, done.returncode) == ("/images/x\n", 0)
    assert [request[:2] for request in daemon.requests] == [
        ("POST", "/api/v1/services/web/dump?wait=3600"),
        ("GET", f"/api/v1/jobs/{JOB_ID}?wait=3600"),
        ("GET", f"/api/v1/jobs/{JOB_ID}?wait=3600"),
    ]


def test_a_timeout_leaves_the_job(daemon: Daemon) -> None:
    daemon.answer = lambda handler: handler.stream({"job": job("running")})
    done = daemon.mhctl("service", "dump", "web", "--timeout", "0")
    assert done.returncode == 1
    assert f"Job {JOB_ID} has not ended yet, it is running" in done.stderr


def test_ctrl_c_says_that_the_job_goes_on(daemon: Daemon) -> None:
    def answer(handler: Handler) -> None:
        handler.begin_stream()
        handler.chunk(b'{"event": {"step": "freezing"}}\n')
        handler.rfile.read(1)  # until the client hangs up

    daemon.answer = answer
    # What runs these tests in the background ignores SIGINT, and its children inherit that.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "mhctl.main", "service", "dump", "web"]
    with subprocess.Popen(
        command, env=daemon.environment({}), cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 10
        while not daemon.requests and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=10)
    assert process.returncode == 130
    assert complaint == (
        f"mhctl: Interrupted; job {JOB_ID} goes on.\n  remedy: Wait for it with `mhctl job wait {JOB_ID}`.\n"
    )


def test_steps_show_on_a_terminal_as_one_line(daemon: Daemon) -> None:
    events = [{"event": {"step": step}} for step in ("freezing", "writing memory")]
    daemon.answer = lambda handler: handler.stream(*events, {"job": job(result={"path": "/images/x"})})
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "mhctl.main", "service", "dump", "web"]
    done = subprocess.run(
        command,
        env=daemon.environment({"TERM": "xterm"}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=follower,
        timeout=30,
        check=True,
    )
    shown = os.read(leader, 10000).decode()
    os.close(leader)
    os.close(follower)
    assert done.stdout == b"/images/x\n"
    assert shown == "\r\033[Kfreezing\r\033[Kwriting memory\r\033[K"


# --- what is refused before anything is sent --------------------------------------------------------------


@pytest.mark.parametrize("words", [["-u", ":group"], ["-u", "user:"], ["-e", "NOVALUE"], ["-b", "a:b"]])
def test_create_refuses_half_options_before_anything_is_sent(daemon: Daemon, words: list[str]) -> None:
    assert daemon.mhctl("service", "create", *words, "true").returncode == 2
    assert daemon.requests == []


def test_dump_wants_a_service_or_a_pid_not_both(daemon: Daemon) -> None:
    for words in ([], ["web", "-t", "1"], ["-t", "web"], ["-t", "0"]):
        assert daemon.mhctl("service", "dump", *words).returncode == 2
    assert daemon.requests == []


def test_help_names_every_verb(daemon: Daemon) -> None:
    done = daemon.mhctl("--help")
    assert done.returncode == 0
    assert "mhctl service create [-u USER[:GROUP]] [-C DIR] [-e K=V]…" in done.stdout
    assert "mhctl service restore [--from IMAGE]" in daemon.mhctl("service", "restore", "--help").stdout
