"""`mhctl service drain`: many services at once into images, as a shutdown wants it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.stack import Stack, eventually

COMES_BACK = ("--restore-on-boot",)
HOLDS_A_DELETED_FILE = """
import os, time
file = open("deleted", "w+b")
file.write(bytes(100_000))
file.flush()
os.unlink("deleted")
time.sleep(3600)
"""


def test_what_shall_come_back_is_dumped_and_the_rest_runs_on(stack: Stack) -> None:
    wanted = {stack.create("sleep", str(number), options=COMES_BACK) for number in range(3601, 3607)}
    other = stack.create("sleep", "3600")
    printed = stack.mhctl("service", "drain").out.split()
    images = {stack.show("image", Path(path).name)["service"] for path in printed}
    assert images == wanted
    assert {stack.show("service", service)["status"] for service in wanted} == {"dumped"}
    assert stack.show("service", other)["status"] == "running"
    assert stack.mhctl("service", "drain").out == ""
    assert len(stack.mhctl("service", "drain", "--all").out.split()) == 1
    assert stack.show("service", other)["status"] == "dumped"


def test_one_that_cannot_be_dumped_is_named_and_runs_on(stack: Stack, tmp_path: Path) -> None:
    options = (*COMES_BACK, "-C", str(tmp_path), "--name", "stubborn")
    stubborn = stack.create(sys.executable, "-c", HOLDS_A_DELETED_FILE, options=options)
    eventually(lambda: not (tmp_path / "deleted").exists())
    good = stack.create("sleep", "3600", options=COMES_BACK)
    done = stack.mhctl("service", "drain", "--ghost-limit", "1000", check=False)
    assert done.code == 1
    assert "1 of 2 services could not be dumped" in done.err
    assert f"{stubborn} (stubborn): " in done.err
    assert len(done.out.split()) == 1
    assert stack.show("service", good)["status"] == "dumped"
    assert stack.show("service", stubborn)["status"] == "running"


def test_time_is_bounded_and_what_did_not_begin_never_begins(stack: Stack) -> None:
    services = {stack.create("sleep", str(number), options=COMES_BACK) for number in range(3601, 3605)}
    done = stack.mhctl("service", "drain", "--timeout", "0", "--json", check=False)
    assert done.code == 1
    rows = json.loads(done.out)
    assert {row["service"] for row in rows} == services
    for row in rows:
        assert "not dumped within 0 seconds" in row["why_not"]
        job = stack.mhctl("job", "wait", row["job"]["object_id"], "--json", check=False)
        status = json.loads(job.out)["status"]
        dumped = stack.show("service", row["service"])["status"] == "dumped"
        assert (status, dumped) in {("cancelled", False), ("succeeded", True)}
        assert ("goes on" in row["why_not"]) == dumped
