"""What is read out of an image: the truth about the processes that were dumped; a bad image does no harm."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from images.comparing import compare
from tests.servers import PROGRAMS, ManyParts, Redis, connected, started
from tests.stack import Stack, eventually
from worker import alone
from worker.image_files import Unreadable
from worker.inspecting import apart, contents, environment, heard
from worker.users import name_users

PARTS = ("memory_file", "shared_memory", "zombie", "unix_pair", "udp", "deleted", "fifo", "terminal", "locks")


def contents_of(stack: Stack, image: str, state: str = "read") -> dict[str, Any]:
    """Return the API's contents of an image once the worker has looked into it."""
    seen: dict[str, Any] = eventually(
        lambda: (found := stack.api("GET", f"images/{image}/contents").body)["state"] != "pending" and found
    )
    assert seen["state"] == state, seen
    return seen


def of_parts(stack: Stack, folder: Path) -> str:
    """Start a service with many kinds of things, and return its id."""
    command = ("/usr/bin/python3", str(PROGRAMS / "constructs.py"), str(folder), *PARTS)
    service = stack.create(*command, options=("-e", "SECRET=hush hush", "-e", "EMPTY="))
    eventually(lambda: "ready" in stack.log(service).splitlines())
    return service


def test_an_image_tells_what_was_dumped(stack: Stack, folder: Path) -> None:
    service = of_parts(stack, folder)
    image = stack.dump(service)
    assert stack.show("image", image)["contents"]["object_id"] == image
    seen = contents_of(stack, image)["contents"]

    init, main, child, ended = seen["processes"]
    assert (init["pid"], init["ppid"], init["args"][:2]) == (1, 0, ["tini", "--"])
    assert main["args"][0] == "/usr/bin/python3" and main["args"][-1] == PARTS[-1]
    assert (main["ppid"], main["state"], main["cwd"]) == (1, "running", "/")
    assert (main["uid"], main["user"], ended["user"]) == (0, "root", "")
    assert main["exe"].startswith("/usr/bin/python3")
    assert (child["ppid"], child["comm"]) == (main["pid"], main["comm"])
    assert ended["state"] == "dead"

    files = {(each["kind"], each["path"]) for each in seen["files"]}
    assert {("file", f"{folder}/posix"), ("fifo", f"{folder}/fifo"), ("terminal", "/dev/ptmx")} <= files
    assert [each["path"] for each in seen["files"] if each["deleted"]] == [f"{folder}/deleted"] * 1
    assert {each["family"] for each in seen["sockets"]} == {"unix", "udp"}
    assert seen["counts"]["locks"] == 4

    # Every stored byte is counted once, and a memory file of 5,000 bytes by its name.
    row = stack.show("image", image)
    assert sum(each["stored"] for each in seen["memory"].values()) == row["page_size"]
    assert sum(each["stored"] for each in seen["mappings"]) == row["page_size"]
    assert {"kind": "shared", "name": "memfd:scratch", "mapped": 0, "stored": 8192} in seen["mappings"]

    # Names of the environment are seen by everyone, values by who asks, who is written down.
    assert {"SECRET", "EMPTY", "PATH"} <= set(seen["environment"][str(main["pid"])])
    assert "hush" not in json.dumps(seen)
    told = json.loads(stack.mhctl("image", "environment", image, "--json").out)
    assert (told[str(main["pid"])]["SECRET"], told[str(main["pid"])]["EMPTY"]) == ("hush hush", "")
    job = stack.api("POST", f"images/{image}/environment?wait=30", {}).body
    assert job["status"] == "succeeded"
    assert "hush" not in json.dumps(job)

    shown = stack.mhctl("image", "show", image).out
    assert "constructs.py" in shown
    assert f"fifo       {folder}/fifo" in shown
    stack.restore(image)
    assert [each["status"] for each in contents_of(stack, image)["restores"]] == ["succeeded"]


def test_two_images_of_a_service_are_compared(stack: Stack, folder: Path) -> None:
    server = Redis(folder)
    service = started(stack, server)
    first = stack.dump(service, "--leave-running")
    with connected(server.port) as client:
        client.ask("SETRANGE large 20000000 x")
        second = stack.dump(service, "--leave-running")
    for image in (first, second):
        contents_of(stack, image)

    found = stack.api("GET", f"images/{first}/compare/{second}").body
    grown = {each["name"]: each["stored"]["change"] for each in found["mappings"]}
    assert sum(grown.values()) > 10_000_000
    assert [each["state"] for each in found["sockets"]["new"]] == ["established"]
    assert not found["sockets"]["gone"] and not found["processes"]["new"]
    assert found["processes"]["changed"][0]["comm"] == "redis-server"
    told = stack.mhctl("image", "compare", first, second).out
    assert f"+ socket tcp established 127.0.0.1:{server.port}" in told
    assert stack.api("GET", f"images/{first}/compare/{first}").body["same"]

    other = stack.dump(started(stack, ManyParts(folder)))
    contents_of(stack, other)
    refused = stack.api("GET", f"images/{first}/compare/{other}")
    assert (refused.status, refused.body["error"]["code"]) == (409, "different_services")


def test_what_went_and_came_is_told_by_what_it_is() -> None:
    def process(pid: int, name: str, memory: int) -> dict[str, Any]:
        return {
            "pid": pid,
            "comm": name,
            "args": [name],
            "threads": [pid],
            "memory": memory,
            "state": "running",
        }

    def file(descriptor: int, path: str) -> dict[str, Any]:
        return {"pids": [2], "fd": descriptor, "kind": "file", "path": path, "deleted": False}

    empty: dict[str, Any] = {"sockets": [], "memory": {}, "mappings": [], "environment": {}}
    before = {
        "processes": [process(2, "a", 5), process(3, "b", 1)],
        "files": [file(3, "/x"), file(4, "/y")],
        **empty,
    }
    after = {
        "processes": [process(2, "a", 7), process(3, "c", 1)],
        "files": [file(9, "/x"), file(5, "/z")],
        **empty,
    }
    found = compare(before, after)

    assert not found["same"]
    assert [each["comm"] for each in found["processes"]["gone"]] == ["b"]
    assert [each["comm"] for each in found["processes"]["new"]] == ["c"], "a number that another program has"
    assert found["processes"]["changed"][0]["memory"] == {"before": 5, "after": 7, "change": 2}
    assert [each["path"] for each in found["files"]["gone"]] == ["/y"], "another number is no other file"
    assert [each["path"] for each in found["files"]["new"]] == ["/z"]


@contextmanager
def damaged(image: Path, name: str, data: bytes) -> Iterator[None]:
    """An image with another content of one file, for the time of a `with`."""
    good = (image / name).read_bytes()
    (image / name).write_bytes(data)
    try:
        yield
    finally:
        (image / name).write_bytes(good)


def test_users_have_the_names_that_this_node_knows_whatever_an_image_says() -> None:
    uids: list[Any] = [0, 2**31, 2**70, -5, None, "root", {}]
    processes: list[Any] = [*({"uid": uid} for uid in uids), {}, "nothing"]
    name_users(processes)
    assert [each["user"] for each in processes[:-1]] == ["root", *[""] * 7]
    name_users({"processes": 3})


def test_a_bad_image_is_unreadable_and_does_no_harm(stack: Stack, folder: Path) -> None:
    service = of_parts(stack, folder)
    image = stack.dump(service)
    copy = folder / "copy"
    shutil.copytree(stack.state / "images" / image, copy)
    sound = contents(copy)
    assert apart(copy) == json.loads(json.dumps(sound))

    # Whatever stands in a file, it is read or it is unreadable.
    chance = random.Random(4711)
    names = sorted(path.name for path in copy.glob("*.img") if not path.name.startswith("pages-"))
    refused = 0
    for _ in range(150):
        name = chance.choice(names)
        data = bytearray((copy / name).read_bytes())
        where = chance.randrange(len(data))
        match chance.randrange(3):
            case 0:
                del data[where:]
            case 1:
                data[where] ^= 1 << chance.randrange(8)
            case _:
                data[where:where] = chance.randbytes(chance.randrange(1, 30))
        with damaged(copy, name, bytes(data)):
            try:
                json.dumps(contents(copy))
                environment(copy)
            except Unreadable:
                refused += 1
    assert 30 < refused < 150

    # A link out of the image is not followed, a parent of itself is shown once, what is missing is named.
    (copy / "mm-2.img").rename(folder / "mm")
    (copy / "mm-2.img").symlink_to(folder / "mm")
    with pytest.raises(Unreadable, match=r"mm-2\.img"):
        apart(copy)
    with pytest.raises(Unreadable, match="No such"):
        apart(folder)

    # One that was damaged before anybody looked is shown as such.
    stack.restore(image)
    newer = stack.dump(service)
    seen = contents_of(stack, newer)
    assert seen["contents"]["counts"] == sound["counts"]
    with (stack.state / "images" / newer / "pstree.img").open("r+b") as file:
        file.truncate(9)
    with pytest.raises(Unreadable, match=r"pstree\.img"):
        apart(stack.folder / "state/images" / newer)


ATTACK = """
import json, os, signal, socket, sys
from worker import inspecting

folder, port, bystander = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
status = open("/proc/self/status")  # where it may still be opened; what it says is of the moment of the look

def tried(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"

def attack(image):
    now = dict(line.rstrip().split(":\\t") for line in status if ":\\t" in line)
    return {
        "ids": [*os.getresuid(), *os.getresgid()],
        "status": {name: now[name] for name in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs")},
        "environment": sorted(os.environ),
        "read": tried(lambda: open("/etc/passwd")),
        "read from here": tried(lambda: open("../../etc/passwd")),
        "processes of others": tried(lambda: os.listdir("/proc")),
        "image": tried(lambda: open(folder + "/core-1.img")),
        "write": tried(lambda: open("/tmp/attack", "w")),
        "connect": tried(lambda: socket.socket().connect(("127.0.0.1", port))),
        "abstract socket": tried(lambda: socket.socket(socket.AF_UNIX).connect(f"\\0bystander-{port}")),
        "signal": tried(lambda: os.kill(bystander, signal.SIGKILL)),
        "fork": tried(os.fork),
        "processes": len(inspecting.entries(image, "pstree.img")),
    }

inspecting.contents = attack
inspecting._main(["contents", folder])
"""


def test_whoever_takes_over_the_reader_of_an_image_has_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the worker's secrets, nor a file, nor the network, nor a process that has the same user."""
    image = stack.dump(stack.create("sleep", "3600"))
    folder = stack.folder / "state/images" / image
    monkeypatch.setenv("DATABASE_PASSWORD", "dear")
    with (
        socket.create_server(("127.0.0.1", 0)) as open_port,
        socket.socket(socket.AF_UNIX) as abstract,
        subprocess.Popen(["sleep", "600"], user=alone.UID, group=alone.UID) as bystander,
    ):
        port = open_port.getsockname()[1]
        abstract.bind(f"\0bystander-{port}")
        abstract.listen()
        try:
            command = [sys.executable, "-c", ATTACK, str(folder), str(port), str(bystander.pid)]
            said, complaint = heard(command, 1 << 20, 60)
            assert bystander.poll() is None
        finally:
            bystander.kill()
    assert said, complaint
    assert json.loads(said) == {
        "ids": [alone.UID] * 6,
        "status": {"CapEff": "0" * 16, "CapPrm": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"},
        "environment": ["LANG", "PATH"],
        "read": "PermissionError",
        "read from here": "PermissionError",
        "processes of others": "PermissionError",
        "image": "PermissionError",
        "write": "PermissionError",
        "connect": "OSError",
        "abstract socket": "ConnectionRefusedError",
        "signal": "ProcessLookupError",
        "fork": "BlockingIOError",
        "processes": 2,
    }
