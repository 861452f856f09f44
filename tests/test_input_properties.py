"""Whatever is typed or sent is refused in a sentence, or arrives as it was meant. Hypothesis makes it up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as made

from mhctl.commandline import NOUNS, Parsed, parse
from mhctl.errors import UsageError
from services import validation
from services.problems import Problem
from tests.archives import FILES, IMAGE, facts_of, node_in
from tests.stack import Stack, eventually
from worker import engine, importing, manifest, namespaces, presently, scanning, spec, supervision
from worker.errors import JobFailed
from worker.paths import archive_name, checked_id
from worker.runmh import launch

PITFALLS = [
    "",
    " ",
    "\0",
    "\n",
    "=",
    "a=b",
    "--",
    "-",
    "--json",
    "/",
    "..",
    "/a:/b",
    "/a:/b:ro",
    "\ud800",
    "٣",
]
TEXTS = made.text(max_size=40) | made.sampled_from(PITFALLS)
ANYTHING = made.recursive(
    made.none() | made.booleans() | made.integers() | made.floats() | TEXTS,
    lambda inner: made.lists(inner, max_size=4) | made.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def accepted(check: Any, value: Any) -> Any:
    """Return what a check makes of a value, or None if it refuses it in a sentence with a remedy."""
    try:
        return check(value)
    except Problem as problem:
        assert problem.code == "bad_input"
        assert problem.message[0].isupper() and problem.message.endswith(".")
        assert problem.remedy and "\n" not in problem.message
        json.dumps(problem.as_dict()).encode()
        return None


@given(made.lists(TEXTS, max_size=5) | ANYTHING)
def test_an_argument_vector_is_refused_or_can_be_given_to_a_program(value: Any) -> None:
    argv = accepted(validation.command, value)
    if argv is not None:
        assert argv == list(value) and all(b"\0" not in word.encode() for word in argv)


@given(made.dictionaries(TEXTS, TEXTS, max_size=4) | ANYTHING)
def test_an_environment_is_refused_or_can_be_given_to_a_program(value: Any) -> None:
    env = accepted(validation.environment, value)
    if env is not None:
        assert env == dict(value)
        assert all(name and "=" not in name and "\0" not in name + text for name, text in env.items())


@given(TEXTS | ANYTHING)
def test_names_accounts_and_folders(value: Any) -> None:
    name = accepted(validation.name, value)
    assert not name or (name.isascii() and not set(name) & set("/\n\0 ") and name[0] != ".")
    folder = accepted(validation.folder, value)
    assert folder is None or folder.startswith("/")
    account = accepted(lambda text: validation.account(text, "user"), value)
    assert account is None or not set(account) & set(":/\n\0")
    accepted(lambda number: validation.seconds(number, "grace", most=5), value)
    accepted(lambda flag: validation.flag(flag, "force"), value)


@given(made.lists(TEXTS, max_size=3) | ANYTHING)
def test_binds_that_are_accepted_are_understood_by_the_supervisor(value: Any) -> None:
    binds = accepted(validation.binds, value)
    if binds is not None:
        understood = launch.binds_of({"binds": binds})
        said = [f"{source}:{target}" + ":ro" * read_only for source, target, read_only in understood]
        assert said == list(binds)


@given(TEXTS | made.from_regex(r"[0-9a-f]{30,34}\n?", fullmatch=True))
def test_what_becomes_part_of_a_path_is_an_id_or_a_plain_name(text: str) -> None:
    for check, length in ((checked_id, 32), (archive_name, 200)):
        try:
            word = check(text)
        except ValueError:
            continue
        assert (
            "/" not in word
            and word[0] != "."
            and len(word) <= length
            and word.isascii()
            and word.isprintable()
        )


SPEC: dict[str, Any] = {
    "argv": ["/bin/true", "x"], "user": "nobody", "group": "", "cwd": "/", "env": {"A": "b"},
    "data": ["/srv"], "carry": [], "privileges": {"cap_add": ["CHOWN"]}, "limits": {"memory": 1 << 20},
    "binds": ["/a:/b:ro"],
}  # fmt: skip


def like(sound: Any) -> made.SearchStrategy[Any]:
    """Make up objects like a sound one, in which some fields are something else."""
    fields = {key: made.just(value) | ANYTHING for key, value in sound.items()}
    return made.fixed_dictionaries({}, optional=fields)


@given(like(SPEC))
@example({"argv": ["/bin/true", "\ud800"]})
def test_a_spec_that_is_accepted_can_be_run(value: Any) -> None:
    """What the supervisor does with a spec before it runs anything, but for what the kernel may refuse."""
    try:
        found = spec.checked(value)
    except JobFailed as failure:
        assert failure.code == "bad_spec"
        return
    texts = [*found["argv"], found.get("cwd") or "/"]
    texts += [text for pair in found.get("env", {}).items() for text in pair]
    assert all(b"\0" not in os.fsencode(text) for text in texts)
    for source, target, _ in launch.binds_of(found):
        assert os.fsencode(source)[:1] == os.fsencode(target)[:1] == b"/"
    assert json.loads(json.dumps(found)) == found


@given(like(json.loads(facts_of(FILES))) | ANYTHING)
def test_a_manifest_is_refused_or_says_what_can_be(value: Any) -> None:
    text = json.dumps(manifest._summed(value) if isinstance(value, dict) else value).encode()
    try:
        facts = manifest.parse(Path("x"), text)
    except JobFailed as failure:
        assert failure.code in {"image_damaged", "manifest_too_new"}
        return
    if not list(importing.faults_of(facts)):
        assert checked_id(facts["image"]) and checked_id(facts["service"])
        assert all("/" not in name and entry["size"] >= 0 for name, entry in facts["files"].items())


STATE: dict[str, Any] = {
    "phase": "running", "runmh": [4000000, 1], "init": [4000001, 2], "main": [4000002, 3], "pipe": 7,
    "image": "", "mounts": [["/", "/"]], "exit_code": None, "exit_signal": 9,
}  # fmt: skip


@given(like(STATE) | ANYTHING)
def test_a_supervisors_state_is_understood_or_says_nothing(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = node_in(Path(folder))
        paths.runtime(IMAGE).mkdir(parents=True)
        paths.state(IMAGE).write_text(json.dumps(value))
        assert supervision.running(paths, IMAGE) is None, "there is no such process"
        left = supervision.read_state(paths, IMAGE)
    assert left in ({}, value)
    engine.describe(engine.Ended(left.get("exit_code"), left.get("exit_signal")))


@settings(max_examples=25)
@given(
    made.binary(max_size=15),
    made.binary(min_size=1, max_size=60),
    made.lists(made.binary(max_size=20), max_size=3),
)
@example(b") Z 1\n", b"\xff\r", [])
@example(b"", b".", [])
def test_a_process_may_call_itself_and_its_files_what_it_likes(
    comm: bytes, name: bytes, words: list[bytes]
) -> None:
    """What a hostile service writes into its part of /proc is shown, and the scan before a dump ends well."""
    name, words = (
        name.replace(b"\0", b"").replace(b"/", b""),
        [word.replace(b"\0", b"") for word in words],
    )
    code = (
        "import ctypes, mmap, os, socket, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)\n"
        "name = bytes.fromhex(sys.argv[2])\n"
        "held = [os.memfd_create(name), os.open(b'f' + name, os.O_RDWR | os.O_CREAT)]\n"
        "os.truncate(held[1], 4096); memory = mmap.mmap(held[1], 4096); os.unlink(b'f' + name)\n"
        "line = socket.socket(socket.AF_UNIX); line.bind(b'\\0%d\\0' % os.getpid() + name); line.listen()\n"
        # On a mount of its own, where nothing is found by a handle: a watch, and a file with two names.
        "assert not libc.unshare(0x20000) and not libc.mount(None, b'/', None, 0x44000, None)\n"
        "top = b'm' + name; os.mkdir(top); assert not libc.mount(b'none', top, b'ramfs', 0, None)\n"
        "assert libc.inotify_add_watch(libc.inotify_init(), top, 2) > 0\n"
        "path = top + b'/' + top; held.append(os.open(path, os.O_CREAT))\n"
        "os.link(path, path + b'2'); os.unlink(path)\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        [sys.executable, "-c", code, comm.hex(), name.hex(), *words], cwd=folder, env={b"\xff": b"\n"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child, socket.socket(socket.AF_UNIX) as client:  # fmt: skip
        assert child.stdin and child.stdout
        assert child.stdout.readline() == b"\n"
        client.connect(b"\0%d\0" % child.pid + name)
        shown = presently.look(child.pid)
        told = scanning.scan(child.pid, room=lambda: None)
        child.stdin.close()
    # As PostgreSQL and a page take it: no half of a pair, no NUL.
    text = json.dumps([shown, told], ensure_ascii=False).encode().replace(b"\\\\", b"")
    assert b"\\u0000" not in text
    assert [each["pid"] for each in shown["processes"]] == [child.pid]
    assert {each["kind"] for each in shown["files"]} >= {"memfd", "file"}
    assert {each["code"] for each in told["findings"]} >= {"link_remap", "inotify_handle", "unix_in_flight"}
    assert told["options"] == (
        {"force_irmap": [f"{folder}/m{os.fsdecode(name)}"]} if os.fsdecode(name).isprintable() else {}
    )


WORDS = made.sampled_from(
    [word for noun, verbs in NOUNS.items() for verb in verbs for word in (noun, verb.name)]
    + [name for verbs in NOUNS.values() for verb in verbs for option in verb.options for name in option.names]
)


@given(made.lists(WORDS | TEXTS, max_size=8))
def test_a_command_line_is_understood_or_refused(words: list[str]) -> None:
    before = list(words)
    try:
        parsed = parse(words)
    except UsageError as error:
        assert error.message.endswith(".")
    else:
        assert isinstance(parsed, Parsed)
    assert words == before


@given(made.integers(1, 64))
def test_every_signal_has_a_name(number: int) -> None:
    assert engine.describe(engine.Ended(None, number)).startswith("killed by ")


@given(made.binary(max_size=60))
def test_a_mount_point_may_have_any_name(raw: bytes) -> None:
    escaped = b"".join(b"\\%03o" % each if each in b" \t\n\\#" else bytes([each]) for each in raw)
    read = namespaces.unescaped(escaped.decode("utf-8", "surrogateescape"))
    assert read.encode("utf-8", "surrogateescape") == raw


ECHO = (
    "import json, os, sys, time; print(json.dumps([sys.argv[1:], dict(os.environ)]), flush=True);"
    "time.sleep(600)"
)
ODD = [
    *("", " ", "\n", "a\tb", "--", "-x", "$HOME", "`id`", "'", '"', "\\", "*", "\x7f", "\x01"),
    *("ä", "日本", "🚀", "\u202e", "e\u0301", "x" * 5000),
]


def test_odd_arguments_and_variables_arrive_as_they_were_sent(stack: Stack) -> None:
    """Through the API and a row, a JSON file, the supervisor and an exec; and back again in what is shown."""
    env = {f"V{number}": text for number, text in enumerate(ODD)} | {"日本": "x", "a b": "y", "-": "z"}
    args = [sys.executable, "-c", ECHO, *ODD]
    job = stack.api("POST", "services?wait=60", {"args": args, "env": env}).body
    assert job["status"] == "succeeded", job
    said = eventually(lambda: json.loads(stack.log(job["service"])))
    assert said[0] == ODD
    assert {name: said[1].get(name) for name in env} == env
    shown = stack.api("GET", f"services/{job['service']}?show_env=1").body
    assert (shown["args"], shown["env"]) == (args, env)
    # mhctl shows them without letting them write to the terminal.
    assert "\x01" not in stack.mhctl("service", "show", job["service"], "--env").out


ARGUMENT = made.text(made.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=15)
@given(made.lists(ARGUMENT, max_size=6))
def test_what_is_accepted_can_be_executed(argv: list[str]) -> None:
    code = "import sys; sys.stdout.buffer.write(b'\\0'.join(map(__import__('os').fsencode, sys.argv[1:])))"
    words = validation.command([sys.executable, "-c", code, *argv])
    done = subprocess.run(words, capture_output=True, check=True)
    assert done.stdout == b"\0".join(word.encode() for word in argv)
