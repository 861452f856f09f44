"""A power cut: all of a node dies at once and RUN_DIR is empty. What comes back, what stays away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Redis, connected, started
from tests.stack import Stack, eventually, living
from worker import orphans, process

COMES_BACK = "--restore-on-boot"


@pytest.fixture(scope="module")
def mortal_node() -> Iterator[Stack]:
    """A node of its own, to be killed."""
    with living(Stack, "mortal-node") as made:
        yield made


@pytest.fixture
def mortal(mortal_node: Stack) -> Iterator[Stack]:
    """That node with nothing on it."""
    yield mortal_node
    mortal_node.clear()


def cut_power(node: Stack) -> None:
    """Kill all that belongs to the node, its services included, and empty RUN_DIR as a reboot does."""
    assert node.daemon
    doomed = {node.daemon.pid, *process.tree(node.daemon.pid)}
    for row in node.api("GET", "services").body:
        doomed |= set(process.tree(row["ppid"]))
    for number in (signal.SIGSTOP, signal.SIGKILL):  # so that none sees the others' end
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    node.daemon.wait(10)
    assert eventually(lambda: not any(process.Process.of(pid) for pid in doomed))
    orphans.reap()
    shutil.rmtree(node.folder / "run")


def settled(node: Stack, service: str) -> dict[str, Any]:
    """Return a service once the boot has nothing left to do for it."""

    def look() -> dict[str, Any]:
        shown = node.show("service", service)
        return shown if "started anew" in shown["status_reason"] and not shown["job"] else {}

    found = eventually(look, 20)
    assert found, node.show("service", service)
    return found


def spoil(node: Stack, image: str) -> None:
    """Damage an image: one byte of a file is another."""
    path = next((node.folder / "state/images" / image).glob("pages-*.img"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_services_come_back_after_a_power_cut_if_they_shall(mortal: Stack, folder: Path) -> None:
    node = mortal
    redis = Redis(folder)
    ran = started(node, redis, COMES_BACK)
    with connected(redis.port) as client:
        assert client.ask("SET told before") == "+OK"
        node.dump(ran, "--leave-running")
        assert client.ask("SET told after") == "+OK"
    dumped = node.create("sleep", "3601", options=(COMES_BACK,))
    put_away = node.dump(dumped)
    stopped = node.create("sleep", "3602", options=(COMES_BACK,))
    node.dump(stopped, "--leave-running")
    node.mhctl("service", "stop", stopped)
    plain = node.create("sleep", "3603")
    node.dump(plain, "--leave-running")
    never_dumped = node.create("sleep", "3604")
    node.mhctl("service", "set", COMES_BACK, never_dumped)
    not_any_more = node.create("sleep", "3605", options=(COMES_BACK,))
    node.dump(not_any_more, "--leave-running")
    node.mhctl("service", "set", "--no-restore-on-boot", not_any_more)

    cut_power(node)
    node.start()

    shown = settled(node, ran)
    assert (shown["status"], "its newest image" in shown["status_reason"]) == ("running", True)
    with connected(redis.port) as client:
        assert client.ask("GET told", lines=2) == "before", "memory is of the dump's moment"
    job = next(job for job in node.api("GET", f"jobs?service={ran}").body if job["kind"] == "restore")
    assert (job["source"], job["requested_by"], job["status"]) == ("agent", "agent", "succeeded")
    assert "started anew" in node.show("job", job["object_id"])["events"][0]["text"]

    shown = settled(node, dumped)
    assert (shown["status"], shown["image"]) == ("running", put_away)
    shown = settled(node, never_dumped)
    assert (shown["status"], shown["pid"]) == ("exited", None)
    assert "no image to restore it from" in shown["status_reason"]
    assert node.show("service", stopped)["status"] == "stopped"
    for service in (plain, not_any_more):
        shown = node.show("service", service)
        assert (shown["status"], shown["pid"]) == ("exited", None)
        assert "the node was restarted" in shown["status_reason"]

    # It was once: a worker that is started again has nothing to bring back.
    node.mhctl("service", "stop", ran)
    node.stop()
    node.start()
    assert node.show("service", ran)["status"] == "stopped"


def test_an_older_image_is_taken_for_a_damaged_one(mortal: Stack) -> None:
    node = mortal
    service = node.create("sleep", "3600", options=(COMES_BACK,))
    oldest, newest = (node.dump(service, "--leave-running") for _ in range(2))
    lost = node.create("sleep", "3601", options=(COMES_BACK,))
    spoil(node, node.dump(lost, "--leave-running"))
    spoil(node, newest)

    cut_power(node)
    node.start()

    shown = settled(node, service)
    assert (shown["status"], shown["image"]) == ("running", oldest)
    assert "an older image" in shown["status_reason"] and f"{newest} is damaged" in shown["status_reason"]
    jobs = [job for job in node.api("GET", f"jobs?service={service}").body if job["kind"] == "restore"]
    assert [(job["image"], job["status"]) for job in reversed(jobs)] == [
        (newest, "failed"),
        (oldest, "succeeded"),
    ]
    shown = settled(node, lost)
    assert shown["status"] == "failed"
    assert "none of its images is sound" in shown["status_reason"]


def test_what_still_runs_is_not_started_a_second_time(mortal: Stack) -> None:
    """RUN_DIR was emptied, but nothing else has ended: that is no reboot."""
    node = mortal
    service = node.create("sleep", "3600", options=(COMES_BACK,))
    node.dump(service, "--leave-running")
    supervisor = node.show("service", service)["ppid"]
    node.stop()
    shutil.rmtree(node.folder / "run")
    node.start()

    shown = eventually(
        lambda: now if "RUN_DIR" in (now := node.show("service", service))["status_reason"] else {}
    )
    assert shown["status"] == "exited"
    assert str(supervisor) in shown["status_reason"]
    assert process.Process.of(supervisor)
    for pid in process.children(supervisor):
        os.kill(pid, signal.SIGKILL)
