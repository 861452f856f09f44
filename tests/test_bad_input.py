"""What people and programs get wrong, on a real node: each is told in one sentence, and changes nothing.

What is asked in a wrong way is in test_bad_requests.py, what the host lacks in test_bad_host.py.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.refusals import (
    Refusal,
    Witness,
    api_refuses,
    check_sentence,
    mhctl_refuses,
    nothing_changes,
    processes,
    usage_error,
)
from tests.stack import Stack, eventually, living
from tests.test_dry_run import Node
from worker import orphans
from worker.errors import JobFailed

NOBODY = "f" * 32


@pytest.fixture
def witness(stack: Stack) -> Witness:
    """A service that runs."""
    return Witness(stack, options=("--name", "witness"))


# --- which service, which image ---------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["no-such-name", NOBODY, "0123456789abcdef", "../../etc", "a b%2Fc"])
def test_a_service_image_or_job_that_does_not_exist(stack: Stack, reference: str) -> None:
    with nothing_changes(stack):
        for noun in ("service", "image", "job"):
            refusal = mhctl_refuses(stack, noun, "show", reference, exit_code=4, code=f"{noun}_not_found")
            assert reference in refusal.message
            assert f"mhctl {noun} list" in refusal.remedy


def test_no_verb_takes_a_reference_to_nothing(stack: Stack) -> None:
    verbs = [
        ("service", "dump", NOBODY),
        ("service", "dump", "-t", str(os.getpid())),  # a process, but not a service's
        ("service", "start", NOBODY),
        ("service", "stop", NOBODY),
        ("service", "restart", NOBODY),
        ("service", "logs", NOBODY),
        ("service", "rename", NOBODY, "new"),
        ("service", "delete", NOBODY),
        ("job", "list", "--service", NOBODY),
        ("service", "restore", "--from", NOBODY),
        ("image", "verify", NOBODY),
        ("image", "rename", NOBODY, "new"),
        ("image", "delete", NOBODY),
        ("job", "wait", NOBODY),
        ("job", "cancel", NOBODY),
    ]
    with nothing_changes(stack):
        for words in verbs:
            noun = "image" if words[0] == "image" or words[1] == "restore" else words[0]
            noun = "service" if "--service" in words else noun
            mhctl_refuses(stack, *words, exit_code=4, code=f"{noun}_not_found")


def test_a_prefix_that_fits_two(stack: Stack, witness: Witness) -> None:
    def two_that_begin_alike(ids: Iterator[str]) -> list[str]:
        seen: dict[str, str] = {}
        for each in ids:
            if each[0] in seen:
                return [seen[each[0]], each]
            seen[each[0]] = each
        raise AssertionError("there are but 16 digits")

    def failed_services() -> Iterator[str]:
        for _ in range(17):
            yield stack.api("POST", "services?wait=60", {"args": ["/nonexistent"]}).body["service"]

    def images() -> Iterator[str]:
        for _ in range(17):
            yield stack.dump(witness.id, "--leave-running")

    services, dumps = two_that_begin_alike(failed_services()), two_that_begin_alike(images())
    with nothing_changes(stack):
        for noun, verb, alike in (
            ("service", ("service", "start"), services),
            ("service", ("service", "delete"), services),
            ("image", ("service", "restore", "--from"), dumps),
            ("image", ("image", "delete"), dumps),
        ):
            refusal = mhctl_refuses(stack, *verb, alike[0][0], exit_code=4, code="ambiguous_reference")
            assert f"more than one {noun}" in refusal.message
            assert "more digits" in refusal.remedy
            candidates = [each["object_id"] for each in refusal.details["candidates"]]
            assert set(alike) <= set(candidates)
            # More digits, as it says, are enough.
            one, *others = [alike[1], *(each for each in candidates if each != alike[1])]
            enough = next(n for n in range(33) if not any(each.startswith(one[:n]) for each in others))
            assert stack.show(noun, one[:enough])["object_id"] == one


# --- what cannot be started -------------------------------------------------------------------------------


def create_fails(stack: Stack, *words: str, code: str) -> Refusal:
    """Create a service that does not come to run: its row says so, and nothing of it is left."""
    before = processes(stack)
    refusal = mhctl_refuses(stack, "service", "create", *words, exit_code=1, code=code)
    service = stack.show("service", refusal.service)
    status = "exited" if code == "exited_at_once" else "failed"
    assert (service["status"], service["pid"], service["ppid"]) == (status, None, None)
    check_sentence(service["status_reason"])
    assert stack.show("job", refusal.job)["status"] == "failed"
    assert eventually(lambda: processes(stack) == before)
    assert refusal.service not in stack.mhctl("service", "list").out
    return refusal


def test_a_command_that_does_not_exist(stack: Stack) -> None:
    for command in ("no-such-command", "/usr/bin/no-such-command"):
        refusal = create_fails(stack, command, "--its-own-option", code="command_not_found")
        assert repr(command) in refusal.message


def test_a_command_that_is_not_executable(stack: Stack, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\nexec sleep 60\n")
    for command in (str(plain), str(tmp_path), "/etc/passwd"):
        assert command in create_fails(stack, command, code="command_not_executable").message
    plain.chmod(0o755)
    tmp_path.chmod(0o700)  # root may enter it, the service's user may not
    create_fails(stack, "-u", "nobody", "--", str(plain), code="command_not_found")


@pytest.fixture
def patient() -> Iterator[Stack]:
    """A node that looks at a new service for longer, so that a busy machine is no reason to miss its end."""
    with living(Stack, "patient-node", MIEHISTO_START_SETTLE="10") as made:
        yield made


def test_a_service_that_exits_at_once_tells_its_last_lines(patient: Stack) -> None:
    stack = patient
    loud = "for n in $(seq 50); do echo line $n; done; echo cannot open the key >&2; exit 3"
    refusal = create_fails(stack, "sh", "-c", loud, code="exited_at_once")
    assert "exit status 3" in refusal.message
    assert refusal.lines == [*(f"line {number}" for number in range(42, 51)), "cannot open the key"]
    assert stack.show("service", refusal.service)["exit_code"] == 3
    refusal = create_fails(stack, "sh", "-c", "kill -SEGV $$", code="exited_at_once")
    assert "SIGSEGV" in refusal.message
    assert stack.show("service", refusal.service)["exit_signal"] == 11


def test_a_service_that_exits_at_once_is_not_explained_by_an_earlier_run(folder: Path) -> None:
    orphans.adopt()
    engine = Node(folder).engine
    engine.tools = engine.tools._replace(settle=30.0)
    service = uuid.uuid4().hex
    for command, lines in (
        ("echo cannot open the key; printf half; exit 3", ["cannot open the key", "half"]),
        ("exit 4", []),
        ("echo no memory; exit 5", ["no memory"]),
    ):
        with pytest.raises(JobFailed) as failure:
            engine.start(service, {"argv": ["sh", "-c", command]})
        assert (failure.value.code, failure.value.lines) == ("exited_at_once", lines)
    orphans.reap()


def test_surroundings_that_do_not_exist(stack: Stack, tmp_path: Path) -> None:
    sleep = ("--", "sleep", "60")
    for option, value, code, named in (
        ("-u", "no-such-user", "no_such_user", "'no-such-user'"),
        ("-u", "root:no-such-group", "no_such_group", "'no-such-group'"),
        ("-u", "99999999999", "no_such_user", "99999999999"),
        ("-C", "/no/such/folder", "bad_directory", "'/no/such/folder'"),
        ("-C", "/etc/passwd", "bad_directory", "'/etc/passwd'"),
        ("-b", f"{tmp_path}/no-source:/mnt", "start_failed", f"{tmp_path}/no-source"),
        ("-b", f"{tmp_path}:/no/such/target", "start_failed", " on /no/such/target: "),
    ):
        assert named in create_fails(stack, option, value, *sleep, code=code).message


def test_words_that_no_service_can_have(stack: Stack) -> None:
    with nothing_changes(stack):
        for option, value in (
            ("-C", "relative/folder"),
            ("-u", "a/b"),
            ("-b", "/etc:/mnt/../etc"),
            ("--name", "-dash"),
            ("--name", "two words"),
            ("--name", "x" * 64),
            ("--name", NOBODY),
            ("-C", "/two\nlines"),
            ("-e", "NEW\nLINE=1"),
        ):
            mhctl_refuses(
                stack, "service", "create", option, value, "--", "true", exit_code=2, code="bad_input"
            )
        for words in (("-b", "etc:mnt"), ("-u", ":group"), ("-e", "NOVALUE"), ("-x", "true"), ("--",), ()):
            usage_error(stack, "service", "create", *words)


# --- arguments --------------------------------------------------------------------------------------------


def test_an_argument_with_nul(stack: Stack) -> None:
    for body in (
        {"args": ["sleep", "6\x000"]},
        {"args": ["sleep", "60"], "env": {"A": "\x00"}},
        {"args": ["sleep", "60"], "env": {"A\x00": ""}},
        {"args": ["sleep", "60"], "cwd": "/\x00"},
        {"args": ["sleep", "60"], "name": "a\x00"},
        {"args": ["sleep", "60"], "user": "root\x00"},
        {"args": ["sleep", "60"], "binds": ["/etc:/mnt\x00"]},
    ):
        with nothing_changes(stack):
            assert "NUL" in api_refuses(stack, "POST", "services", body, status=422, code="bad_input").message
    api_refuses(stack, "GET", "services/%00", status=422, code="bad_input")


def test_an_argument_with_a_newline_reaches_the_service_as_it_is(stack: Stack) -> None:
    """It is a good argument; only the command itself can have none."""
    service = stack.create("sh", "-c", 'printf "%s|" "$@"; exec sleep 60', "sh", "one\ntwo", "", "\x1b[2J")
    assert eventually(lambda: stack.log(service)) == "one\ntwo||\x1b[2J|"
    assert len(stack.mhctl("service", "list").out.splitlines()) == 2, "no argument breaks the table"
    assert "\x1b" not in stack.mhctl("service", "list").out
    with nothing_changes(stack):
        mhctl_refuses(stack, "service", "create", "sle\nep", "60", exit_code=2, code="bad_input")


def test_arguments_of_one_megabyte(stack: Stack) -> None:
    with nothing_changes(stack):
        many = ["x" * 100_000] * 10
        refusal = mhctl_refuses(stack, "service", "create", "echo", *many, exit_code=2, code="bad_input")
        assert "1000015 bytes" in refusal.message and "file" in refusal.remedy
        body = {"args": ["echo", "x" * 1_000_000]}
        assert "args[1]" in api_refuses(stack, "POST", "services", body, status=422, code="bad_input").message
        body = {"args": ["echo", "x" * (1 << 20)]}
        assert "1 MiB" in api_refuses(stack, "POST", "services", body, status=413, code="bad_input").message
    # What Linux takes (MAX_ARG_STRLEN, execve(2)) is taken.
    service = stack.create("sh", "-c", "echo ${#1}; exec sleep 60", "sh", "x" * 131_000)
    assert eventually(lambda: stack.log(service)) == "131000\n"


# --- at the wrong time ------------------------------------------------------------------------------------


def test_a_dump_of_a_stopped_service(stack: Stack, witness: Witness) -> None:
    stack.mhctl("service", "stop", "witness")
    with nothing_changes(stack):
        for words in (("dump", "witness"), ("dump", witness.id, "--leave-running"), ("stop", "witness")):
            refusal = mhctl_refuses(stack, "service", *words, exit_code=1, code="service_not_running")
            assert "witness is stopped" in refusal.message
        assert witness.is_silent()
    stack.mhctl("service", "start", "witness")
    image = stack.dump(witness.id)
    with nothing_changes(stack):
        refusal = mhctl_refuses(stack, "service", "dump", "witness", exit_code=1, code="service_not_running")
        assert "witness is dumped" in refusal.message
    assert stack.show("image", image)["service"] == witness.id


def test_a_second_dump_while_one_runs(stack: Stack) -> None:
    """Some hundred megabytes make the first one slow enough to be met."""
    large = Witness(stack, "memory=400")
    first = stack.api("POST", f"services/{large.id}/dump").body["object_id"]
    for verb in ("dump", "stop"):
        api_refuses(stack, "POST", f"services/{large.id}/{verb}", status=409, code="job_active")
    refusal = mhctl_refuses(stack, "service", "dump", large.id, exit_code=1, code="job_active")
    assert first in refusal.message and first in refusal.remedy
    assert refusal.details["job"] == first
    image = json.loads(stack.mhctl("job", "wait", first, "--json").out)["image"]
    assert [each["object_id"] for each in stack.api("GET", "images").body] == [image]
    assert stack.show("service", large.id)["status"] == "dumped"
    stack.restore(image)
    assert large.answers_as_before()


def test_a_restore_while_the_service_runs(stack: Stack, witness: Witness) -> None:
    image = stack.dump(witness.id, "--leave-running")
    with nothing_changes(stack):
        refusal = mhctl_refuses(
            stack, "service", "restore", "--from", image, exit_code=1, code="service_running"
        )
        assert "witness is running" in refusal.message
        for verb in ("start", "delete"):
            mhctl_refuses(stack, "service", verb, "witness", exit_code=1, code="service_running")
        assert witness.answers_as_before()


def test_a_restore_onto_a_port_that_somebody_else_holds(stack: Stack, witness: Witness) -> None:
    image = stack.dump(witness.id)
    with socket.create_server(("127.0.0.1", witness.port)), nothing_changes(stack, jobs=1):
        refusal = mhctl_refuses(stack, "service", "restore", "--from", image, exit_code=1, code="port_in_use")
        holder = f"{Path('/proc/self/comm').read_text().strip()} (PID {os.getpid()})"
        assert f"Port {witness.port} is held by {holder}." in refusal.message
        assert any("Address already in use" in line for line in refusal.lines), "CRIU's own words"
    stack.restore(image)
    assert witness.answers_as_before()


def test_a_job_that_has_ended_cannot_be_cancelled(stack: Stack, witness: Witness) -> None:
    job = stack.api("GET", "jobs?limit=1").body[0]["object_id"]
    with nothing_changes(stack):
        refusal = mhctl_refuses(stack, "job", "cancel", job, exit_code=1, code="not_cancellable")
        assert f"Job {job} is succeeded" in refusal.message


def test_a_name_that_is_taken_or_cannot_be_one(stack: Stack, witness: Witness) -> None:
    other = stack.create("sleep", "600")
    image, second = (stack.dump(witness.id, "--leave-running") for _ in range(2))
    stack.mhctl("image", "rename", image, "before-the-upgrade")
    with nothing_changes(stack):
        for words in (
            ("service", "rename", other, "witness"),
            ("image", "rename", second, "before-the-upgrade"),
            ("service", "create", "--name", "witness", "--", "sleep", "600"),
        ):
            refusal = mhctl_refuses(stack, *words, exit_code=1, code="name_taken")
            assert repr(words[3]) in refusal.message
        for name in ("-dash", "two words", "umläut", "x" * 64, NOBODY):
            for noun, reference in (("service", other), ("image", second)):
                mhctl_refuses(stack, noun, "rename", "--", reference, name, exit_code=2, code="bad_input")


# --- images and services that CRIU cannot work with --------------------------------------------------------


def test_a_damaged_manifest(stack: Stack, witness: Witness) -> None:
    image = stack.dump(witness.id)
    path = stack.folder / "state/images" / image / "manifest.json"
    good = path.read_bytes()
    sound = json.loads(good)

    def edited(**fields: Any) -> bytes:
        return json.dumps({**sound, **fields}).encode()

    some_file = sorted(sound["files"])[0]
    damages: dict[str, bytes | None] = {
        "missing": None,
        "empty": b"",
        "garbage": os.urandom(2000),
        "cut": good[: len(good) // 2],
        "a list": b"[]",
        "without files": edited(files={}),
        "other sum": edited(files={**sound["files"], some_file: {"size": 1, "blake3": "0" * 64}}),
        "other mounts": edited(mounts=[["/etc", "/srv"]]),
        "other command": edited(spec={**sound["spec"], "argv": ["sleep"]}),
        "other pipe": edited(pipe=1),
        "a path": edited(files={**sound["files"], "../../services": {"size": 1, "blake3": "0" * 64}}),
    }
    for how, content in damages.items():
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        mhctl_refuses(stack, "image", "verify", image, exit_code=1, code="image_damaged")
        assert stack.show("image", image)["status"] == "damaged", how
        with nothing_changes(stack, jobs=1):
            words = ("service", "restore", "--from", image)
            refusal = mhctl_refuses(stack, *words, exit_code=1, code="image_damaged")
            assert image in refusal.message and "manifest.json" in " ".join(refusal.lines), how
            assert witness.is_silent()
    path.write_bytes(good)
    stack.mhctl("image", "verify", image)
    assert stack.show("image", image)["status"] == "sealed"
    stack.restore(image)
    assert witness.answers_as_before()


def test_a_damaged_spec_of_a_service_that_runs(stack: Stack, witness: Witness) -> None:
    """It is what an image would say of how the service was started."""
    kept = stack.state / "services" / witness.id / "spec.json"
    for damaged in ('{"argv": ["sle', "[]", '{"argv": 7}'):
        kept.write_text(damaged)
        with nothing_changes(stack, jobs=1):
            refusal = mhctl_refuses(stack, "service", "dump", witness.id, exit_code=1, code="spec_damaged")
            assert str(kept.name) in refusal.message
            assert witness.answers_as_before()
    stack.mhctl("service", "restart", witness.id)  # as the remedy says
    stack.restore(stack.dump(witness.id))


def test_a_damaged_file_of_an_image(stack: Stack, witness: Witness) -> None:
    image = stack.dump(witness.id)
    pages = next((stack.folder / "state/images" / image).glob("pages-*.img"))
    good = pages.read_bytes()
    for content in (good[:-4096], bytes([good[0] ^ 1]) + good[1:]):
        pages.write_bytes(content)
        with nothing_changes(stack, jobs=1):
            words = ("service", "restore", "--from", image)
            refusal = mhctl_refuses(stack, *words, exit_code=1, code="image_damaged")
            assert pages.name in " ".join(refusal.lines)
    pages.write_bytes(good)
    stack.restore(image)
    assert witness.answers_as_before()


def test_a_service_with_a_unix_connection_to_the_outside(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "outside.sock"
    with socket.socket(socket.AF_UNIX) as outside:
        outside.bind(str(path))
        outside.listen()
        bound = Witness(stack, f"peer={path}")
        peer, _ = outside.accept()
        with peer:
            for option in ((), ("--leave-running",)):
                with nothing_changes(stack, jobs=1):
                    words = ("service", "dump", bound.id, *option)
                    refusal = mhctl_refuses(stack, *words, exit_code=1, code="unix_peer_outside")
                    assert "unix socket" in refusal.message
                    assert any("Error (criu/" in line for line in refusal.lines), "CRIU's own words"
                    assert stack.show("job", refusal.job)["error"]["lines"] == refusal.lines
                    assert bound.answers_as_before()
