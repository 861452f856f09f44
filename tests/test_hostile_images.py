"""What an image of a stranger may say, and a service name itself, to whoever reads it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pycriu.images
import pytest

from worker import (
    carry,
    carry_index,
    connections,
    explaining,
    files,
    inspecting,
    preflight,
    process,
    restoring,
    supervision,
)
from worker.errors import JobFailed
from worker.image_files import Unreadable
from worker.paths import Paths
from worker.policy import Policy
from worker.process import Process
from worker.trees import TreeRefused

_PR_SET_NAME = 15


def image_with(folder: Path, name: str, content: dict[str, Any] | bytes) -> Path:
    with (folder / name).open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            pycriu.images.dump(content, file)
    return folder


def test_the_id_of_a_run_is_no_command_of_the_firewall(tmp_path: Path) -> None:
    """Found by thinking: nft reads its arguments as one text, and this id comes out of the image."""
    entry = {"img_version": 2, "fdinfo_per_id": True, "dump_criu_run_id": "x;add table inet evil"}
    image = image_with(tmp_path, "inventory.img", {"magic": "INVENTORY", "entries": [entry]})
    run = connections.run_of(image)
    assert run == entry["dump_criu_run_id"]
    connections.release(run)
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    assert "evil" not in tables.stdout


def test_files_of_criu_that_are_none(tmp_path: Path) -> None:
    """An image can be deleted, and a failure be explained, whatever lies under the names of CRIU's files."""
    good = {"magic": "INVENTORY", "entries": [{"img_version": 2, "dump_criu_run_id": "a-1"}]}
    whole = (image_with(tmp_path, "inventory.img", good) / "inventory.img").read_bytes()
    assert connections.run_of(tmp_path) == "a-1"
    for content in (
        b"",
        b"\0" * 8,
        whole[:-1],
        whole[:9],
        whole[:8] + b"\xff\xff\xff\xff" + whole[12:],
        whole[:8] + b"\xff\xff\xff\x7f" + whole[12:],
        os.urandom(200),
    ):
        image_with(image_with(tmp_path, "inventory.img", content), "files.img", content)
        assert connections.run_of(tmp_path) == ""
        assert explaining.listening_ports(tmp_path) == []
    large = tmp_path / "inventory.img"
    large.write_bytes(whole)
    os.truncate(large, 1 << 40)
    assert connections.run_of(tmp_path) == ""


def test_a_list_of_files_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (files.NAME, carry_index.INDEX, carry_index.PACK):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(JobFailed, match="is damaged"):
        files.read(tmp_path)
    with pytest.raises(JobFailed, match="it is too large"):
        carry_index.read(tmp_path, {"carried": ["/srv"]})
    # What no restore would read is not dumped.
    data, image = tmp_path / "data", tmp_path / "image"
    data.mkdir()
    image.mkdir()
    monkeypatch.setattr(files, "LARGEST_LIST", 10)
    with pytest.raises(TreeRefused, match="too many files"):
        carry.pack(image, [str(data)], [], 0)


def test_an_imported_image_is_told_no_more_of_the_disk_than_its_service_could_see(folder: Path) -> None:
    secret = folder / "secret"
    secret.mkdir(mode=0o700)
    (secret / "key").write_text("dear")
    open_to_all = folder / "open"
    open_to_all.mkdir(mode=0o755)
    (open_to_all / "news").touch(mode=0o644)
    known = {
        "size": 0,
        "mtime": 0,
        "mode": 0o100600,
        "inode": 1,
        "device": 1,
        "writes": True,
        "appends": False,
    }
    record = {
        "open": [{"path": str(secret / "key"), **known}],
        "data": {str(secret): {}, str(open_to_all): {}},
    }
    (folder / files.NAME).write_text(json.dumps(record))
    facts = {"spec": {"user": "nobody"}, "mounts": []}

    here = {change.path: change.what for change in restoring._changes(folder, facts, [])}
    assert here[str(secret / "key")].startswith("was 0 bytes")

    groups = os.getgroups()
    foreign = restoring._changes(folder, facts | {"origin": {"imported_by": "root"}}, [])
    assert {change.path: change.what for change in foreign} == {
        str(secret / "key"): "is not there any more",
        str(secret): "is not there any more",
        str(open_to_all / "news"): "is new",
    }
    assert (secret / "key").read_text() == "dear"
    assert os.getgroups() == groups


def test_an_account_that_cannot_be_read_is_not_allowed(tmp_path: Path) -> None:
    """Root's policy asks who would run; a file that CRIU may understand and we don't is refused."""
    core = tmp_path / "core-2.img"
    for content in (
        b"",
        b"\0" * 8,
        os.urandom(100),
        (0x54564319).to_bytes(4, "little") + b"\x16\x40\x10\x55",
    ):
        core.write_bytes(content)
        with pytest.raises(JobFailed) as caught:
            preflight.check_insides(tmp_path, Policy(root=False))
        assert caught.value.code == "image_damaged"
    os.truncate(core, 1 << 40)
    with pytest.raises(JobFailed):
        preflight.check_insides(tmp_path, Policy(root=False))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "null",
        '"running"',
        "{",
        "[" * 100_000,
        json.dumps({"phase": "running", "init": 7}),
        json.dumps({"phase": "running", "init": [1]}),
        json.dumps({"phase": "running", "init": ["1", "2"], "runmh": [1, 2]}),
        json.dumps(
            {"phase": "running", "init": [1, 2], "runmh": [1, 2], "mounts": [1], "pipe": 1, "image": ""}
        ),
        json.dumps({"phase": ["running"]}),
        json.dumps({"phase": "ended", "runmh": [1, 2], "exit_code": "x"}),
        json.dumps({"phase": "running"}),
    ],
)
def test_a_state_that_no_supervisor_wrote_says_nothing(tmp_path: Path, text: str) -> None:
    paths = Paths(tmp_path, tmp_path, tmp_path)
    service = "0" * 32
    paths.runtime(service).mkdir(parents=True)
    paths.state(service).write_text(text)
    assert supervision.running(paths, service) is None
    assert supervision.read_state(paths, service) == {}


@contextmanager
def named(comm: bytes) -> Iterator[int]:
    """Run a process that gives itself a name, as any may (prctl(2), PR_SET_NAME)."""
    code = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0);"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, comm.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout and child.stdin
        child.stdout.readline()
        yield child.pid
        child.stdin.close()


def test_a_process_may_have_any_name() -> None:
    odd = (b") Z 1 1", b"\n", b"a\nState:\tZ", b"(((", b"\xff\xfe", b") X (", b"x) 0 0 0 0 0", b"\rForged: x")
    for comm in odd:
        with named(comm) as pid:
            found = Process.of(pid)
            assert found is not None, comm
            assert found.alive()
            assert process.status(pid)["PPid"] == str(os.getpid()), comm
            assert process.status(pid)["State"][0] in "RS", comm
            assert "Forged" not in process.status(pid)
            assert pid in process.children(os.getpid())
    assert ctypes.CDLL(None).prctl(_PR_SET_NAME, b"pytest", 0, 0, 0) == 0


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import itertools, sys; [sys.stdout.write('x' * 65536) for _ in itertools.count()]", "say more"),
        ("import itertools, sys; [sys.stderr.write('x' * 65536) for _ in itertools.count()]", "say more"),
        ("import time; time.sleep(3600)", "too long"),
        ("import os, time; os.close(1); os.close(2); time.sleep(3600)", "too long"),
    ],
)
def test_a_reader_that_an_image_has_taken_over_is_heard_only_so_far(program: str, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        inspecting.heard([sys.executable, "-c", program], 1 << 20, 60 if said == "say more" else 0.5)
