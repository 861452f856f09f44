"""Processes that mislead who looks at them as root: the worker, which must not be led astray."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.models import Service, new_id
from tests.stack import eventually
from worker import (
    alone,
    booting,
    commands,
    encryption,
    findings,
    presently,
    programs,
    scan_watches,
    scanning,
    supervision,
)
from worker.errors import JobFailed
from worker.paths import Paths
from worker.process import Process
from worker.runmh.launch import Account
from worker.supervision import Running

SECRETS = ("MIEHISTO_SECRET_KEY", "DATABASE_URL", "CELERY_BROKER_URL")
DEEP = """\
import os, signal
for _ in range(99):
    if os.fork():
        signal.pause()
print(flush=True)
signal.pause()
"""


@contextmanager
def running(*words: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the block, in a process group of its own that ends with it."""
    started = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, **options)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def test_what_runs_as_another_user_has_no_secret_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "dear")
    with Path("/dev/null").open("rb") as nothing:
        row = [programs.Program(["env"], "coreutils", unprivileged=True)]
        with programs.out_of(nothing.fileno(), row) as printing:
            assert b"dear" not in printing.end.read()
            assert not printing.finish()
        row = [programs.Program(["cat"], "coreutils", unprivileged=True, secret=b"a key")]
        with programs.out_of(nothing.fileno(), row) as printing:
            assert printing.end.read() == b"a key", "it is handed on to who may open no file of root's"
            assert not printing.finish()
    for name in SECRETS:
        assert commands._as_user(Account("nobody", ""), "/", ["printenv", name]) != 0


TAKEN_OVER = """
import os, socket
def tried(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__
print(os.getresuid(), os.getresgid(), os.getgroups())
kept = ("CapPrm", "CapBnd", "NoNewPrivs")
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(kept)])
print(sorted({each for each in os.listdir("/proc") if each.isdigit()} - {"1", str(os.getpid())}))
print(tried(lambda: open("/etc/shadow")), tried(lambda: socket.socket().connect(("127.0.0.1", PORT))))
"""


def test_whoever_takes_over_what_unpacks_an_archive_has_little() -> None:
    """Zstd and age run so: no file but those that every user may read, no network, no process to be seen."""
    with socket.create_server(("127.0.0.1", 0)) as port, Path("/dev/null").open("rb") as nothing:
        attack = TAKEN_OVER.replace("PORT", str(port.getsockname()[1]))
        row = [programs.Program(["/usr/bin/python3", "-c", attack], "python3", unprivileged=True)]
        with programs.out_of(nothing.fileno(), row) as printing:
            said = printing.end.read().decode().splitlines()
            assert not printing.finish()
    mine = (alone.UID,) * 3
    assert said == [
        f"{mine} {mine} []",
        str(["0" * 16, "0" * 16, "1"]),
        "[]",
        "PermissionError OSError",
    ]


def test_who_asks_for_a_command_does_not_hear_which_files_root_has(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "plan").touch()
    for name in ("plan", "none"):
        assert commands.check(command=str(hidden / name), user="nobody")["code"] == "command_not_found"
    assert commands.check(command=str(hidden / "plan"))["code"] == "command_not_executable"


def test_a_family_may_be_as_deep_as_it_likes() -> None:
    with running(sys.executable, "-c", DEEP, stdout=subprocess.PIPE) as eldest:
        assert eldest.stdout
        eldest.stdout.readline()
        eldest.stdout.close()
        # A hundred of them with little room stand for thousands with as much as Python has.
        look = (
            "import sys; from worker import process; sys.setrecursionlimit(50);"
            f" print(*process.tree({eldest.pid}))"
        )
        told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    found = told.stdout.split()
    assert len(set(found)) == len(found) == 100
    assert found[0] == str(eldest.pid)


def test_a_file_with_the_number_of_the_pipe_is_not_read_as_its_output(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with secret.open("ab") as file:
        for descriptor, is_pipe in ((file.fileno(), False), (writer, True)):
            with running("sleep", "60", stdout=descriptor) as service:
                init = Process.of(service.pid)
                assert init
                number = os.fstat(descriptor).st_ino
                output = supervision.output_of(Running(init, init, None, [], number, ""))
                assert (output is not None) is is_pipe
                if output is not None:
                    os.close(output)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(("user", "believed"), [("root", True), ("nobody", False)])
def test_only_root_can_have_a_supervisor_that_was_forgotten(
    tmp_path: Path, user: str, believed: bool
) -> None:
    paths = Paths(tmp_path, tmp_path, tmp_path)
    (tmp_path / "services").mkdir()
    service = Service(id=new_id(), argv=["sleep", "3600"], user="root")
    title = f"runmh start {service.pk} {tmp_path}"
    command = (title, "60")
    with running(*command, executable="/bin/sleep", user=user, group=0, extra_groups=[]) as feigned:
        # Its new words are to be seen only a moment after its old descriptors are closed.
        assert eventually(lambda: title.encode() in Path(f"/proc/{feigned.pid}/cmdline").read_bytes())
        found = booting._survivor(paths, service)
        assert (found is not None and found.pid == feigned.pid) is believed


def test_no_recipient_names_a_program() -> None:
    """age runs the plugin that stands between two ones (age(1))."""
    with pytest.raises(JobFailed, match="no recipient"):
        encryption.to_write(["age1evil1" + "q" * 50], [])
    assert encryption.to_write(["age1" + "q" * 58], [])


def test_a_look_at_a_service_tells_no_more_than_can_be_read() -> None:
    found = [findings.connections(1, False), *(findings.io_uring(pid) for pid in range(1000))]
    told = scanning._verdict(found)
    assert told["verdict"] == "no"
    assert "999 more reasons" in told["sentence"]
    assert {each["severity"] for each in told["findings"]} == {"refusal"}
    assert len(told["findings"]) == 200


def test_millions_of_descriptors_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presently, "_MOST_LOOKED_AT", 100)
    monkeypatch.setattr(presently, "_MOST_FILES", 90)
    many = "import os, time; [os.dup(0) for _ in range(300)]; os.fork(); print(flush=True); time.sleep(60)"
    with running(sys.executable, "-c", many, stdout=subprocess.PIPE) as service:
        assert service.stdout
        service.stdout.readline()
        service.stdout.close()
        seen = presently.look(service.pid)
    assert (seen["counts"]["files"], len(seen["files"]), seen["truncated"]) == (100, 90, True)


def test_what_a_service_watches_is_found_without_opening_what_it_has_laid_in_the_way(tmp_path: Path) -> None:
    """A fifo would let its writer go on, a link leads to files of the host's."""
    libc = ctypes.CDLL(None)
    opened = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    fifo, link, secret = tmp_path / "fifo", tmp_path / "link", tmp_path / "secret"
    os.mkfifo(fifo)
    secret.touch()
    link.symlink_to(secret)
    try:
        for path in (fifo, secret):
            assert libc.inotify_add_watch(opened, bytes(path), 0x20) > 0  # IN_OPEN
        places = [str(path) for path in (fifo, link, link / "x")]
        points = {7: [(os.getpid(), place, "tmpfs") for place in places]}
        handle = "fhandle-bytes:8 fhandle-type:1 f_handle:0011223344556677"
        about = f"inotify wd:1 ino:1 sdev:7 mask:20 ignored_mask:0 {handle}"
        for folders in ([], places):
            search = scan_watches.Search()
            found = list(scan_watches.look(os.getpid(), 3, about, points, folders, search))
            assert [each.code for each in found] == ["inotify_handle"]
        with pytest.raises(BlockingIOError):
            os.read(opened, 4096)
        secret.read_bytes()
        assert os.read(opened, 4096)
    finally:
        os.close(opened)
