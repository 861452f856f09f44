"""A service that no supervisor can take over is given one by way of an image, if its policy says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

from images import operations as images
from images.models import Image
from services import operations
from services.models import Job, Node, Service
from services.states import ServiceState
from tests.rows import recorded_image, running_service, taken
from tests.servers import Redis, connected, program, started
from tests.stack import Stack, eventually, living
from worker import connections, process
from worker.booting import Boot
from worker.errors import JobFailed
from worker.paths import Paths
from worker.pauses import Pauses
from worker.replacing import Replacing, Untaken

COMES_BACK = "--restore-on-boot"
PATIENCE = 2.0
"""Seconds that a service runs on without a supervisor."""


class OfItsOwnPython(Stack):
    """A node whose Python can be taken away, as an upgrade of the system does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.python = folder / "python/bin/python"
        self.python.parent.mkdir(parents=True)
        self.python.symlink_to(Path(sys.executable).resolve())
        for name in ("lib", "pyvenv.cfg"):
            (folder / "python" / name).symlink_to(Path(sys.prefix) / name)
        self.command[0] = str(self.python)

    def spares(self) -> int:
        """Return how many supervisors wait for a service."""
        assert self.daemon is not None
        orphans = [Path(f"/proc/{pid}/cmdline") for pid in process.children(self.daemon.pid)]
        return sum(line.read_bytes().startswith(b"runmh waiting") for line in orphans)


@pytest.fixture(scope="module")
def lonely_node() -> Iterator[OfItsOwnPython]:
    """A node of its own that does not wait long for supervisors."""
    with living(OfItsOwnPython, "lonely-node", MIEHISTO_TAKE_OVER_TIMEOUT=f"{PATIENCE:g}") as made:
        yield made


@pytest.fixture
def lonely(lonely_node: OfItsOwnPython) -> Iterator[OfItsOwnPython]:
    """That node with nothing on it."""
    yield lonely_node
    lonely_node.clear()


def shown(node: Stack, service: str, when: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Return the service as the API shows it, once that is as it should be."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = node.api("GET", f"services/{service}").body
        return found if when(found) else {}

    found = eventually(look)
    assert found, node.show("service", service)
    return found


def coming_back() -> Service:
    """Return a service that runs, as far as the rows know, and may come back by itself."""
    service = running_service()
    Service.objects.filter(pk=service.pk).update(restore_on_boot=True)
    service.refresh_from_db()
    return service


def started_anew(folder: Path) -> tuple[Paths, Boot]:
    """Return folders of a node, and what brings back its services; it had none at its boot."""
    paths = Paths(folder / "state", folder / "run", folder / "log")
    for each in (paths.state_dir, paths.run_dir / "started", paths.run_dir / "services"):
        each.mkdir(parents=True)
    boot = Boot(paths, Node.objects.local().name, 0)
    boot.look()
    return paths, boot


def kill_supervisor(node: Stack, service: str) -> dict[str, Any]:
    """Kill a service's runmh, and return the service as it was shown before."""
    before = node.show("service", service)
    os.kill(before["ppid"], signal.SIGKILL)
    return before


def jobs_of_the_agent(node: Stack, service: str) -> list[tuple[str, str]]:
    """Return kind and end of each job that the agent has asked for, oldest first."""
    found = node.api("GET", f"jobs?service={service}").body
    return [(job["kind"], job["status"]) for job in reversed(found) if job["source"] == "agent"]


def test_a_service_is_dumped_and_restored_where_no_supervisor_can_be_started(
    lonely: OfItsOwnPython, folder: Path
) -> None:
    """Python is gone; supervisors that were started before are there still. Its clients notice nothing."""
    node, redis = lonely, Redis(folder)
    service = started(node, redis, COMES_BACK)
    script = "import os, sys, time\nwhile True: sys.stdin.read(1); time.sleep(0.1)"
    left = node.create(program("python3"), "-c", script)
    assert eventually(lambda: node.spares() == len(node.pool()))
    away = node.python.rename(node.python.with_name("away"))
    try:
        with connected(redis.port) as client:
            assert client.ask("SET told before") == "+OK"
            alone = kill_supervisor(node, left)
            before = kill_supervisor(node, service)
            shown(
                node, service, lambda row: "it is dumped and restored with a new one" in row["status_reason"]
            )
            after = shown(node, service, lambda row: row["status"] == "running" and row["image"])
            assert client.ask("GET told", lines=2) == "before"
        assert after["pid"] != before["pid"] and after["ppid"] not in {None, before["ppid"]}
        said = "none could take over, so it was dumped: restored from its newest image"
        assert said in after["status_reason"]
        assert jobs_of_the_agent(node, service) == [("dump", "succeeded"), ("restore", "succeeded")]
        dump = next(job for job in node.api("GET", f"jobs?service={service}").body if job["kind"] == "dump")
        assert "none could take over" in node.show("job", dump["object_id"])["events"][0]["text"]

        # One that may not come back by itself runs on, and its page says what to do.
        found = shown(node, left, lambda row: "none can take over yet" in row["status_reason"])
        assert (found["status"], found["pid"], found["ppid"]) == ("running", alone["pid"], None)
        assert "mhctl service dump" in found["status_reason"] and COMES_BACK in found["status_reason"]
        assert jobs_of_the_agent(node, left) == []
    finally:
        away.rename(node.python)
    shown(node, left, lambda row: "another one has taken over" in row["status_reason"])


def test_a_service_that_nothing_can_be_done_for_runs_on_and_comes_back_in_the_end(
    lonely: OfItsOwnPython, folder: Path
) -> None:
    """Neither taken over nor dumped, then dumped but not restored: it always is one of the two."""
    node, redis = lonely, Redis(folder)
    service = started(node, redis, COMES_BACK)
    redis.grow()
    held = redis.state()
    errors, pool = node.folder / f"run/services/{service}/runmh.err", node.folder / "state/images"
    errors.unlink()
    errors.mkdir()  # where a new supervisor would say what is wrong
    aside = pool.rename(pool.with_name("aside"))
    pool.touch()
    try:
        before = kill_supervisor(node, service)
        alone = shown(node, service, lambda row: "could not be dumped either" in row["status_reason"])
        assert (alone["status"], alone["pid"], alone["ppid"]) == ("running", before["pid"], None)
        assert str(errors) in alone["status_reason"]
        dumps = len(jobs_of_the_agent(node, service))
        assert eventually(lambda: len(jobs_of_the_agent(node, service)) > dumps), "it is tried again"
        assert {kind for kind, _ in jobs_of_the_agent(node, service)} == {"dump"}
        assert redis.state() == held
    finally:
        pool.unlink()
        aside.rename(pool)

    put_away = shown(node, service, lambda row: "That is tried again" in row["status_reason"])
    assert (put_away["status"], put_away["pid"]) == ("dumped", None)
    assert str(errors) in put_away["status_reason"]
    assert (pool / put_away["image"] / "manifest.json").exists()
    errors.rmdir()
    shown(node, service, lambda row: row["status"] == "running")
    assert redis.state() == held


def test_what_an_unwatched_service_printed_last_is_in_its_log(lonely: OfItsOwnPython, folder: Path) -> None:
    """Also if it ends before it has a new supervisor."""
    node, enough = lonely, folder / "enough"
    script = (
        f"import os, time\nwhile not os.path.exists({str(enough)!r}): time.sleep(0.05)\n"
        "print('its last words', flush=True)"
    )
    service = node.create(program("python3"), "-c", script)
    errors = node.folder / f"run/services/{service}/runmh.err"
    errors.unlink()
    errors.mkdir()
    try:
        kill_supervisor(node, service)
        shown(node, service, lambda row: "none can take over yet" in row["status_reason"])
        enough.touch()
        shown(node, service, lambda row: row["status"] == "exited")
        assert node.log(service).splitlines() == ["its last words"]
    finally:
        errors.rmdir()


@pytest.mark.django_db(transaction=True)
def test_nothing_is_dumped_that_could_not_be_known_to_come_back(folder: Path) -> None:
    """The disk of STATE_DIR is full. The agent's other work goes on meanwhile, and it is tried again."""
    paths, boot = started_anew(folder)
    replacing, service = Replacing(boot, 0), coming_back()
    untaken = {service.pk: Untaken(time.monotonic(), 3, 0, JobFailed("x", "It hangs.", ""))}
    full = paths.state_dir / f"boot.json.{os.getpid()}.tmp"
    full.mkdir()  # where its next content would be written
    replacing.sweep(untaken)
    boot.sweep()
    assert not service.jobs.filter(kind="dump").exists()
    assert "cannot be noted" in replacing.outlook(service.pk, comes_back=True)
    full.rmdir()

    def asked() -> Job | None:
        replacing.sweep(untaken)
        return service.jobs.filter(kind="dump", source="agent").first()

    assert eventually(asked)
    assert service.pk in json.loads((paths.state_dir / "boot.json").read_bytes())["replaced"]


@pytest.mark.django_db(transaction=True)
def test_a_full_disk_keeps_no_service_from_coming_back_after_a_boot(folder: Path) -> None:
    paths, boot = started_anew(folder)
    service = coming_back()
    recorded_image(service)
    (paths.state_dir / "boot.json").unlink(missing_ok=True)
    (paths.state_dir / f"boot.json.{os.getpid()}.tmp").mkdir()
    boot = Boot(paths, service.node.name, 0)
    boot.look()
    Service.objects.update(status="exited", pid=None)  # as the rows are settled then
    boot.sweep()
    assert service.jobs.filter(kind="restore", source="agent").exists()


@pytest.mark.django_db(transaction=True)
def test_a_restore_that_was_asked_for_without_an_answer_is_not_asked_for_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database goes away when it has committed it; the service has ended again before the next look."""
    _paths, boot = started_anew(folder)
    service = coming_back()
    recorded_image(service)
    Service.objects.update(status="exited", pid=None)
    boot._pending[service.pk] = []
    ask = images.bring_back

    def cut_off(image: Image, why: str) -> Job:
        ask(image, why)
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(images, "bring_back", cut_off)
    with contextlib.suppress(OperationalError):
        boot.sweep()
    boot.sweep()
    restore = service.jobs.get(kind="restore")
    operations.succeed(taken(restore), service_state=ServiceState.EXITED, result={}, statistics={})
    boot.sweep()
    assert service.jobs.filter(kind="restore").count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("source", ["agent", "mhctl"])
def test_only_what_the_agent_itself_has_dumped_is_brought_back(folder: Path, source: str) -> None:
    """Its dump was cancelled, failed or came too late: an operator has put the service away."""
    paths, boot = started_anew(folder)
    service = coming_back()
    boot.expect(service.pk)
    operations.cancel(operations.request_dump(service, actor="agent", source="agent"), "root")
    job = taken(operations.request_dump(service, actor="root", source=source))
    recorded_image(service, job.image_id)
    paths.spec(service.pk).parent.mkdir(parents=True)
    connections.service_left(paths, service.pk, job.image_id)
    operations.succeed(job, service_state=None, result={}, statistics={})
    boot.sweep()
    asked = [job.image_id for job in service.jobs.filter(kind="restore")]
    assert asked == ([job.image_id] if source == "agent" else [])
    assert (service.pk in boot._pending) == bool(asked)


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is twice as long as the last, an hour at most."""
    now = [1000.0]
    monkeypatch.setattr("worker.pauses.time.monotonic", lambda: now[0])
    pauses = Pauses(60)
    assert not pauses.last("service")
    for length in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        pauses.begin("service")
        assert pauses.last("service") and not pauses.last("another")
        now[0] += length - 1
        assert pauses.last("service")
        now[0] += 1
        assert not pauses.last("service")
    pauses.forget("service")
    pauses.begin("service")
    now[0] += 60
    assert not pauses.last("service")
