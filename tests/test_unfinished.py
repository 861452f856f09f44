"""A restore whose worker and supervisor both die when CRIU has been told to let the service run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from django.conf import settings

from images import operations as images
from services import operations
from services.models import Job, Service
from tests.rows import running_service
from tests.stack import CHECKOUT, eventually
from tests.test_dry_run import Node
from tests.test_outliving import running_with
from worker import (
    cgroups,
    connections,
    criu,
    locks,
    orphans,
    process,
    reconcile,
    restoring,
    supervision,
    tasks,
    unfinished,
)
from worker.durable import write_json
from worker.engine import Engine
from worker.errors import JobFailed
from worker.process import Process

pytestmark = pytest.mark.django_db(transaction=True)

DEAD = "node:4194303:1"
"""A worker that does not live: a PID that has never had that start time."""

LIMITS = {"memory": 64 << 20, "tasks": 50}
"""Bytes and processes."""

# What a worker does that dies with the supervisor when it has said "go on"; with "criu", CRIU does with them.
RESTORES_AND_DIES = """
import os, signal, sys
from pathlib import Path
from worker import criu, restoring, supervision
from worker.engine import Engine
from worker.paths import Paths
from worker.process import children
from worker.tools import Tools
to, hear = restoring._Answers.to, criu.Call._hear
doomed = []
def to_and_kill(answers, stage, pid):
    agreed = to(answers, stage, pid)
    if stage == "post-restore":
        assert agreed
        runmh = supervision.read_state(answers._tools.paths, service)["runmh"][0]
        for swrk in set(children(runmh)) - {pid} if with_criu else ():
            os.kill(swrk, signal.SIGSTOP)
            doomed.append(swrk)
        os.kill(runmh, signal.SIGKILL)
        doomed.append(os.getpid())
    return agreed
def hear_and_die(*words, **options):
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    return hear(*words, **options)
restoring._Answers.to, criu.Call._hear = to_and_kill, hear_and_die
service, image, with_criu, binary, *folders = sys.argv[1:]
Engine(Tools(Paths(*map(Path, folders)), binary, "")).restore(service, image)
"""


class Restored(NamedTuple):
    """A service whose restore has lost worker and supervisor."""

    service: Service
    job: Job
    engine: Engine
    word: str


@pytest.fixture(params=["", "criu"], ids=["criu goes on", "criu dies with them"])
def broken_off(request: pytest.FixtureRequest) -> Iterator[tuple[Restored, bool]]:
    """Such a service, and whether CRIU could go on. Nothing of it is left."""
    orphans.adopt()
    service, word = running_service(), f"3600.{os.getpid()}"
    paths, engine = tasks.paths(), tasks.engine(lambda _step: None)
    paths.images.mkdir(exist_ok=True)
    engine.start(service.pk, {"argv": ["/bin/sleep", word], "limits": limits()})
    try:
        asked = operations.request_dump(service, actor="root", source="manage")
        dump = operations.claim(asked.pk, worker=DEAD)
        assert dump
        engine.dump(service.pk, dump.image_id)
        assert eventually(lambda: reconcile.settle_lost_jobs(paths, service.node.name)) == 1
        service.refresh_from_db()
        asked = images.request_restore_of(service, actor="root", source="manage")
        job = operations.claim(asked.pk, worker=DEAD)
        assert job
        words = [service.pk, job.image_id, request.param, settings.MIEHISTO_CRIU, *map(str, paths)]
        died = subprocess.run([sys.executable, "-c", RESTORES_AND_DIES, *words], cwd=CHECKOUT, check=False)
        assert died.returncode == -signal.SIGKILL
        yield Restored(service, job, engine, word), not request.param
    finally:
        engine.stop(service.pk, 0)
        engine.delete_service(service.pk)
        assert eventually(lambda: not running_with(word))
        # Without a supervisor it leaves them.
        cgroups.remove({str(file.parent) for file in limit_files(service.pk)})
        orphans.reap()


def limits() -> dict[str, int]:
    """Return limits that this host can set."""
    return {name: most for name, most in LIMITS.items() if cgroups.home(name)}


def limit_files(service_id: str) -> dict[Path, int]:
    """Return the files of the control groups that a service has for them, and what shall be in each."""
    return {
        Path(at.folder, f"miehisto-{service_id}", cgroups._FILES[name, at.version]): most
        for name, most in limits().items()
        if (at := cgroups.home(name))
    }


def test_what_was_restored_is_found_and_taken_over_or_ended(broken_off: tuple[Restored, bool]) -> None:
    """It runs with a supervisor, or is an image as before: never half restored, and never unseen."""
    (service, job, engine, word), runs = broken_off
    paths = engine.paths
    assert eventually(lambda: len(running_with(word)) == 2), "init and sleep, whatever becomes of them"
    alone = supervision.read_state(paths, service.pk)
    assert alone["phase"] == "restoring" and Process(*alone["init"]).alive()
    assert supervision.running(paths, service.pk) is None, "nobody has said yet that it runs"

    assert eventually(lambda: reconcile.settle_lost_jobs(paths, service.node.name)) == 1
    job.refresh_from_db()
    service.refresh_from_db()
    assert job.status == "lost"
    if not runs:
        assert service.status == "dumped"
        assert running_with(word) == []
        engine.restore(service.pk, job.image_id)
        return
    assert (service.status, service.supervisor_pid) == ("running", None)
    assert connections.present_image(paths, service.pk) == ""
    assert supervision.take_over(paths, service.pk, None, 20)
    taken = supervision.running(paths, service.pk)
    assert taken and taken.runmh.alive() and taken.adopted
    assert list(taken.init) == alone["init"]
    assert sorted(running_with(word)) == sorted(process.tree(taken.init.pid))
    wanted = limit_files(service.pk)
    assert {file: int(file.read_text()) for file in wanted} == wanted, "CRIU's room is taken back"


def test_a_rescan_finds_it_too(broken_off: tuple[Restored, bool]) -> None:
    """The row of the job, by which it would be settled, may be lost with the database."""
    (service, _job, engine, word), runs = broken_off
    node = service.node
    Job.objects.all().delete()
    Service.objects.filter(pk=service.pk).delete()

    def alone() -> bool:
        with locks.held(engine.paths.job_lock(service.pk)) as lock:
            return lock is not None

    assert eventually(alone), "CRIU holds it as long as it works"
    full = Path(f"{engine.paths.state(service.pk)}.{os.getpid()}.tmp")
    full.mkdir()  # no room where its next content would be written
    (line,) = [line for line in reconcile.rescan(engine.paths, node) if service.pk in line]
    assert "cannot be written" in line and "rescan again" in line
    assert not Service.objects.filter(pk=service.pk).exists(), "what is not known is not said"
    full.rmdir()
    reconcile.rescan(engine.paths, node)
    again = Service.objects.get(pk=service.pk)
    assert again.status == ("running" if runs else "failed")
    assert runs or "broken off" in again.status_reason
    assert bool(running_with(word)) == runs


def test_a_worker_that_lives_ends_what_is_left_of_a_restore(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervisor and CRIU are killed, and neither has ended what was about to run."""
    orphans.adopt()
    node, word = Node(folder), f"3600.{os.getpid()}"
    service, image = uuid.uuid4().hex, uuid.uuid4().hex
    node.engine.start(service, {"argv": ["/bin/sleep", word]})
    node.engine.dump(service, image)
    answer = restoring._Answers.to

    def and_kill(answers: restoring._Answers, stage: str, pid: int) -> bool:
        agreed = answer(answers, stage, pid)
        if stage == "post-restore":
            assert agreed
            runmh = supervision.read_state(node.paths, service)["runmh"][0]
            (criu,) = set(process.children(runmh)) - {pid}
            for each in (runmh, criu):
                os.kill(each, signal.SIGKILL)
        return agreed

    with monkeypatch.context() as deadly:
        deadly.setattr(restoring._Answers, "to", and_kill)
        with pytest.raises(JobFailed) as failure:
            node.engine.restore(service, image)
    assert failure.value.code == "criu_died"
    assert running_with(word) == []
    node.engine.restore(service, image)
    node.engine.stop(service, 0)
    assert running_with(word) == []
    orphans.reap()


def test_a_supervisor_that_is_about_to_be_dead_is_waited_for(folder: Path) -> None:
    """It has let go of its pipe and its locks already, as a process does a moment before its end."""
    paths, service = Node(folder).paths, uuid.uuid4().hex
    paths.runtime(service).mkdir(parents=True)
    paths.job_lock(service).touch()
    with subprocess.Popen(["/bin/sleep", "0.2"]) as dying, subprocess.Popen(["/bin/sleep", "60"]) as restored:
        runmh, init = map(Process.of, (dying.pid, restored.pid))
        left: dict[str, object] = {
            "phase": "restoring",
            "runmh": runmh,
            "init": init,
            "mounts": [],
            "pipe": 1,
            "image": "",
        }
        write_json(paths.state(service), left)
        unfinished.end(paths, service, 10)
        assert restored.wait(10) == -signal.SIGKILL


def test_a_file_s_name_in_the_log_of_criu_is_not_its_last_word(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    name = "(00.012345)  1: \t\tGoing to open /srv/Restore finished successfully. Tasks resumed.\n"
    log.write_text(name)
    assert not criu.has_restored(log)
    log.write_text(name + "(00.043210) Restore finished successfully. Tasks resumed.\n")
    assert criu.has_restored(log)
