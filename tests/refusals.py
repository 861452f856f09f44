"""How tests look at what Miehistö refuses: what it says, what it exits with, and that nothing changed.

Every refusal is one clear sentence with a code for programs and a remedy for people, whoever says it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.stack import Stack, eventually, free_port
from worker import process
from worker.process import Process

PROGRAM = Path(__file__).resolve().parent / "programs" / "witness.py"
ANSWERED_AND_WAITED = {200, 202}


class Refusal(NamedTuple):
    """What was said.

    Attributes:
        lines: CRIU's or the service's own words.
        details: more for programs.
        job: the job that failed; empty if none was made.
        service: its service.
    """

    code: str
    message: str
    remedy: str
    lines: list[str]
    details: dict[str, Any]
    job: str
    service: str


class Witness:
    """A service that can prove that nothing happened to it.

    Args:
        wishes: further arguments of programs/witness.py.
        options: of `mhctl service create`.
    """

    def __init__(self, stack: Stack, *wishes: str, options: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        command = [sys.executable, "-S", str(PROGRAM), str(self.port), *wishes]
        self.id = stack.create(*command, options=options)
        self.word, self.count = eventually(self._ask)

    def _ask(self) -> tuple[str, int]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            word, _, count = connection.makefile().read().partition(" ")
        return word, int(count)

    def answers_as_before(self) -> bool:
        """Ask the service; its memory must have gone on from where it was."""
        before = self.word, self.count
        self.word, self.count = self._ask()
        return (self.word, self.count) == (before[0], before[1] + 1)

    def is_silent(self) -> bool:
        """Tell whether nobody listens on its port."""
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self.port)) != 0


def check_sentence(text: str) -> None:
    """Fail unless `text` is one clear sentence: a capital letter (or a path), a full stop, one line."""
    assert re.fullmatch(r"[A-Z/].{8,600}\.", text), f"not a sentence: {text!r}"
    for word in ("Traceback", "Errno", "Exception", "None", "  "):
        assert word not in text, f"not for people: {text!r}"


def _checked(error: dict[str, Any], code: str, **more: Any) -> Refusal:
    refusal = Refusal(
        code=error["code"],
        message=error["message"],
        remedy=error["remedy"],
        lines=error.get("lines", []),
        details=error.get("details", {}),
        job=more.get("job", ""),
        service=more.get("service") or "",
    )
    assert refusal.code == code, refusal
    check_sentence(refusal.message)
    check_sentence(refusal.remedy)
    return refusal


def mhctl_refuses(stack: Stack, *words: str, exit_code: int, code: str) -> Refusal:
    """Run mhctl, which must fail so; what people read and what --json gives to programs must agree."""
    place = 1 if words[0] == "check" else 2
    answer = stack.mhctl(*words[:place], "--json", *words[place:], check=False)
    said = f"mhctl {' '.join(words)[:200]}\n{answer.out[:2000]}{answer.err[:2000]}"
    assert answer.code == exit_code, said
    told = json.loads(answer.out)
    assert told.get("error"), said
    made = "object_id" in told
    refusal = _checked(
        told["error"], code, job=told["object_id"] if made else "", service=told["service"] if made else ""
    )
    first, *others = answer.err.splitlines()
    assert first == f"mhctl: {refusal.message}", said
    assert f"  remedy: {refusal.remedy}" in others, said
    for line in refusal.lines:
        assert any(shown.startswith(f"    {line[:40]}") for shown in others), said
    return refusal


def api_refuses(stack: Stack, method: str, path: str, body: Any = None, *, status: int, code: str) -> Refusal:
    """Ask the API, which must refuse so."""
    reply = stack.api(method, path, body)
    assert reply.status == status, reply
    return _checked(reply.body["error"], code)


def usage_error(stack: Stack, *words: str) -> None:
    """Run mhctl, which must see by itself that the words make no sense, and print nothing but why."""
    answer = stack.mhctl(*words, check=False)
    assert (answer.code, answer.out) == (2, ""), answer
    first, remedy = answer.err.splitlines()
    check_sentence(first.removeprefix("mhctl: "))
    check_sentence(remedy.removeprefix("  remedy: "))


@contextlib.contextmanager
def nothing_changes(stack: Stack, *, jobs: int = 0) -> Iterator[None]:
    """Fail when the block changes a row, a process, a mount or a file of the pool.

    Args:
        jobs: so many jobs are made, and fail; a refusal makes none.
    """
    before, jobs_before = picture(stack), _jobs(stack)
    yield
    # A supervisor that has said why it gave up may take a moment to be gone.
    eventually(lambda: picture(stack) == before, within=5)
    after = picture(stack)
    changed = {name: (was, after[name]) for name, was in before.items() if after[name] != was}
    assert not changed, changed
    assert _jobs(stack) == jobs_before + jobs


def picture(stack: Stack) -> dict[str, Any]:
    """Return all that a node is, by its rows and by what can be seen of it from outside."""
    services = stack.api("GET", "services?all=1").body
    for service in services:
        del service["changed"]
    state = stack.state
    return {
        "services": services,
        "images": stack.api("GET", "images").body,
        "files": {
            str(path.relative_to(state)): (path.lstat().st_size, path.lstat().st_mtime_ns)
            for folder in ("images", "services")
            for path in sorted((state / folder).rglob("*"))
            if path.is_file()
        },
        "folders": sorted(path.name for path in (state / "images").iterdir()),
        "processes": processes(stack),
        "mounts": mounts_of(stack),
    }


def processes(stack: Stack) -> set[Process]:
    """Return the supervisors of a node with all that descends from them."""
    mark = f"--run-dir={stack.folder}/run".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "cmdline").read_bytes().split(b"\0"):
                found |= {Process.of(pid) for pid in process.tree(int(folder.name))}
    return {each for each in found if each}


def mounts_of(stack: Stack) -> list[str]:
    """Return the mounts that the host sees in a node's folder."""
    return [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(stack.folder) in line
    ]


def _jobs(stack: Stack) -> int:
    return len(stack.api("GET", "jobs?limit=1000").body)
