"""What a service is given and how it ends: namespaces, user, surroundings, log, exit status.

Looked at from outside, on a real node, before and after a dump and a restore.
"""

from __future__ import annotations

import grp
import os
import pwd
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.servers import PROGRAMS, ManyParts, Redis, program, started
from tests.stack import Stack, eventually
from worker import process
from worker.runmh.log import LIMIT, RotatedLog

SIGNALLED = (program("python3"), str(PROGRAMS / "signalled.py"))
SHOWN_WITHIN = 1.0
"""Seconds after which an operator sees what a service did by itself."""


def pid_of(stack: Stack, service: str) -> int:
    return int(stack.show("service", service)["pid"])


def cycle(stack: Stack, service: str) -> int:
    """Dump and restore the service and return its new PID."""
    stack.restore(stack.dump(service))
    return pid_of(stack, service)


def signalled(stack: Stack, *arguments: str, options: tuple[str, ...] = ()) -> tuple[str, int]:
    """Start the service that answers signals, and return its id and its PID."""
    service = stack.create(*SIGNALLED, *arguments, options=options)
    eventually(lambda: "line 0" in stack.log(service))
    return service, pid_of(stack, service)


def shown_when(stack: Stack, service: str, status: str) -> dict[str, Any]:
    """Return the service as the API shows it once it has this status, which must be soon."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = stack.api("GET", f"services/{service}").body
        return found if found["status"] == status else {}

    found = eventually(look, SHOWN_WITHIN)
    assert found, f"after {SHOWN_WITHIN} s the service is not shown as {status}"
    return found


def test_a_service_has_processes_mounts_and_ipc_of_its_own(stack: Stack, folder: Path) -> None:
    """And shares the rest, the network above all, with the host."""
    service = started(stack, Redis(folder))

    def own(pid: int) -> set[str]:
        kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
        return {
            kind
            for kind in kinds
            if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        }

    def number_inside(pid: int) -> str:
        return process.status(pid)["NSpid"].split()[1]

    before = pid_of(stack, service)
    assert own(before) == {"ipc", "mnt", "pid"}
    inside = number_inside(before)

    after = cycle(stack, service)
    assert after != before
    assert own(after) == {"ipc", "mnt", "pid"}
    assert number_inside(after) == inside


def test_a_service_has_its_user_its_folder_and_its_environment(stack: Stack) -> None:
    """The environment is what a log-in gives and what was asked for; nothing of the worker's leaks in."""
    account, group = pwd.getpwnam("nobody"), grp.getgrnam("games")
    options = ("-u", "nobody:games", "-C", "/var/tmp", "-e", "GREETING=good day", "-e", "EMPTY=")
    service, pid = signalled(stack, options=options)

    def surroundings(pid: int) -> dict[str, Any]:
        status = process.status(pid)
        return {
            "uids": set(status["Uid"].split()),
            "gids": set(status["Gid"].split()),
            "groups": set(map(int, status["Groups"].split())),
            "folder": os.readlink(f"/proc/{pid}/cwd"),
            "environment": dict(
                word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if word
            ),
        }

    found = surroundings(pid)
    assert found == {
        "uids": {str(account.pw_uid)},
        "gids": {str(group.gr_gid)},
        "groups": {group.gr_gid, *os.getgrouplist("nobody", account.pw_gid)},
        "folder": "/var/tmp",
        "environment": {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": account.pw_dir,
            "USER": "nobody",
            "LOGNAME": "nobody",
            "SHELL": account.pw_shell,
            "LANG": "C.UTF-8",
            "GREETING": "good day",
            "EMPTY": "",
        },
    }
    assert surroundings(cycle(stack, service)) == found


# Signals 32 and 33 are the C library's own: no program may change what they do (signal(7)).
OF_LIBC = 1 << 31 | 1 << 32


def test_a_service_inherits_nothing_but_its_log(stack: Stack) -> None:
    """No descriptor of its supervisor's, no signal that is ignored or blocked, no terminal."""
    service = stack.create("/bin/sleep", "3600")

    def inherited(pid: int) -> dict[str, Any]:
        status = process.status(pid)
        folder = Path(f"/proc/{pid}/fd")
        return {
            "open": {int(link.name): os.readlink(link).partition(":")[0] for link in folder.iterdir()},
            "ignored": int(status["SigIgn"], 16) & ~OF_LIBC,
            "blocked": int(status["SigBlk"], 16),
            "terminal": Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4],
        }

    nothing = {"open": {0: "/dev/null", 1: "pipe", 2: "pipe"}, "ignored": 0, "blocked": 0, "terminal": "0"}
    assert inherited(pid_of(stack, service)) == nothing
    assert inherited(cycle(stack, service)) == nothing


def test_what_a_service_prints_goes_to_its_log(stack: Stack) -> None:
    """Through a pipe: the log may grow, be rotated or be deleted, and every image can still be restored."""
    service, pid = signalled(stack)

    def says(pid: int, line: str) -> None:
        os.kill(pid, signal.SIGUSR1)
        assert eventually(lambda: stack.log(service).splitlines()[-1:] == [line])

    says(pid, "line 1")
    copy = stack.dump(service, "--leave-running")
    says(pid, "line 2")
    says(cycle(stack, service), "line 3")

    # The log has grown since the copy was made, and so it goes on.
    stack.mhctl("service", "stop", service)
    stack.restore(copy)
    says(pid_of(stack, service), "line 2")
    assert stack.log(service).splitlines() == [
        *(f"line {count}" for count in (0, 1, 2, 3)),
        "bye",
        "line 2",
    ]


def test_a_long_log_is_rotated(stack: Stack, tmp_path: Path) -> None:
    lines = LIMIT // 1000 + 1000
    script = f"for n in range({lines}): print(f'{{n:0999}}', flush=True)\nimport time; time.sleep(3600)"
    service = stack.create(program("python3"), "-c", script)
    log = stack.folder / f"log/{service}.log"
    assert eventually(lambda: log.read_text().endswith(f"{lines - 1:0999}\n"))

    older = log.with_name(f"{log.name}.1")
    assert LIMIT <= older.stat().st_size < LIMIT + 2**17
    assert (older.read_text() + log.read_text()).splitlines() == [f"{n:0999}" for n in range(lines)]
    assert stack.mhctl("service", "logs", "-n", "2", service).out.splitlines() == [
        f"{n:0999}" for n in (lines - 2, lines - 1)
    ]

    # Only so many are kept.
    small = RotatedLog(str(tmp_path / "log"), limit=4, kept=2)
    for letter in b"abcd":
        small.write(bytes([letter]) * 4)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "log": "dddd",
        "log.1": "cccc",
        "log.2": "bbbb",
    }


def test_a_log_goes_on_where_no_new_file_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "log.1").write_text("old")
    (tmp_path / "log.0").mkdir()
    log = RotatedLog(str(tmp_path / "log"), limit=4, kept=2)
    for letter in b"abc":
        log.write(bytes([letter]) * 4)
    assert (tmp_path / "log").read_text() == "aaaabbbbcccc"
    assert (tmp_path / "log.1").read_text() == "old"


@pytest.mark.parametrize(
    ("number", "code", "killed_by"),
    [
        (signal.SIGUSR2, 3, None),
        (signal.SIGKILL, None, signal.SIGKILL),
        (signal.SIGSEGV, None, signal.SIGSEGV),
    ],
    ids=["by itself", "killed", "crashed"],
)
def test_the_end_of_a_service_is_shown_at_once(
    stack: Stack, number: signal.Signals, code: int | None, killed_by: signal.Signals | None
) -> None:
    service, pid = signalled(stack)

    os.kill(pid, number)
    shown = shown_when(stack, service, "exited")
    assert (shown["exit_code"], shown["exit_signal"], shown["pid"]) == (code, killed_by, None)
    words = killed_by.name if killed_by else f"exit status {code}"
    assert words in shown["status_reason"]

    stack.mhctl("service", "start", service)
    shown = shown_when(stack, service, "running")
    assert (shown["exit_code"], shown["exit_signal"]) == (None, None)
    assert process.children(shown["ppid"]), "the shown supervisor has the service"
    os.kill(cycle(stack, service), number)
    shown = shown_when(stack, service, "exited")
    assert (shown["exit_code"], shown["exit_signal"]) == (code, killed_by)


def test_a_service_may_end_in_order(stack: Stack) -> None:
    service, _ = signalled(stack)
    stack.mhctl("service", "stop", service)
    shown = stack.show("service", service)
    assert (shown["status"], shown["exit_code"], shown["exit_signal"]) == ("stopped", 0, None)
    assert stack.log(service).splitlines()[-1] == "bye"


def test_a_service_that_ignores_sigterm_is_killed(stack: Stack) -> None:
    """After the time that it is given."""
    service, pid = signalled(stack, "deaf")
    cycle(stack, service)

    began = time.monotonic()
    stack.mhctl("service", "stop", "--grace", "1", service)
    assert 1 <= time.monotonic() - began < 9, "ten seconds are the default"

    shown = stack.show("service", service)
    assert (shown["status"], shown["exit_signal"]) == ("stopped", signal.SIGKILL)
    assert process.Process.of(pid) is None


def test_ten_cycles_in_a_row(stack: Stack, folder: Path) -> None:
    """Nothing wears out: the service goes on, and what it sees of the host neither grows nor shrinks."""
    server = ManyParts(folder)
    service = started(stack, server)

    def mounts(pid: int) -> list[list[str]]:
        """Root, place and options of each mount; the numbers before them are new at each restore."""
        rows = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        return sorted(row.split(" - ")[0].split()[3:6] for row in rows)

    seen = mounts(pid_of(stack, service))
    for _ in range(10):
        held = server.state()
        pid = cycle(stack, service)
        assert server.state() == held
        server.grow()
        assert mounts(pid) == seen
    assert server.state()["signals"] == 11
