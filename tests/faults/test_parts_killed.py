"""kill -9 of miehistod, of its parts, of a supervisor and of an init, at any moment, at work or at rest."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.faults.replay import contradictions
from tests.faults.verbs import BEGINS_FROM, after, lasts, ready
from tests.stack import eventually


def kill_redis(lab: Lab, _service: Kept) -> None:
    lab.kill_part("redis")


def kill_site(lab: Lab, _service: Kept) -> None:
    lab.kill_part("site")


def kill_scheduler(lab: Lab, _service: Kept) -> None:
    lab.kill_part("scheduler")


def kill_miehistod(lab: Lab, _service: Kept) -> None:
    lab.fallen()


def kill_supervisor(lab: Lab, service: Kept) -> None:
    for pid in promise.supervisors_of(service.id):
        lab.kill(pid)


def kill_init(lab: Lab, service: Kept) -> None:
    for pid in promise.processes_of(service)[0]:
        lab.kill(pid)


FAULTS: dict[str, tuple[Callable[[Lab, Kept], None], str]] = {
    "redis": (kill_redis, "kill -9 of Redis, whose memory is gone with all that was queued"),
    "site": (kill_site, "kill -9 of the site"),
    "scheduler": (kill_scheduler, "kill -9 of the scheduler"),
    "miehistod": (kill_miehistod, "kill -9 of miehistod, which starts anew"),
    "runmh": (
        kill_supervisor,
        "kill -9 of a service's supervisor while a job works on the service or none does",
    ),
    "tini": (kill_init, "kill -9 of a service's init, and so of the service"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_no_service_is_lost_when_a_part_is_killed(lab: Lab, campaign: Campaign, name: str) -> None:
    kill, what = FAULTS[name]
    with campaign.fault(f"{name} killed", what) as fault:
        service = Kept(lab, line=True)
        before = promise.host(lab)
        ends: dict[str, int] = {}
        for _ in range(campaign.rounds(1, 20)):
            chances = random.Random(f"{fault.seed}:{name}:{fault.rounds}")
            verb = chances.choice([*BEGINS_FROM, "nothing"])
            moment = chances.uniform(0, lasts(1, verb))
            with fault.round(f"{verb}, killed after {moment:.3f} s"):
                ready(service, verb)
                if verb != "nothing":
                    service.begin(verb)
                time.sleep(moment)
                kill(lab, service)
                promise.settle(lab)
                after(service, verb)
                may_end = name == "tini" or verb in {"stop", "start"}
                promise.holds(lab, [service], before=before, may_end=may_end)
                end = service.row()["status"]
                ends[end] = ends.get(end, 0) + 1
            lab.calm()
        fault.facts = {"the service was afterwards": ends}
        fault.facts["rounds after which a client's connection went on"] = service.went_on
        service.bring_to("running")
        service.delete()


def test_jobs_in_a_dead_redis_are_sent_again_and_none_runs_twice(lab: Lab, campaign: Campaign) -> None:
    what = "The worker stands still, jobs are queued, Redis is killed with them; then both go on"
    with campaign.fault("queue lost", what) as fault:
        for _ in range(campaign.rounds(1, 10)):
            with fault.round():
                held = [lab.part("worker"), *lab.pool()]
                for pid in held:
                    os.kill(pid, signal.SIGSTOP)
                try:
                    jobs = [
                        lab.api("POST", "services", {"args": ["sleep", "600"]}).body["object_id"]
                        for _ in range(4)
                    ]
                    lab.kill_part("redis")
                finally:
                    for pid in held:
                        os.kill(pid, signal.SIGCONT)
                promise.settle(lab, 60)
                ended = [lab.api("GET", f"jobs/{job}").body["status"] for job in jobs]
                if ended != ["succeeded"] * 4:
                    raise Broken(f"the jobs ended as {ended}")
                running = [row for row in lab.api("GET", "services").body if row["status"] == "running"]
                pids = [promise.supervisors_of(row["object_id"]) for row in running]
                if [len(found) for found in pids] != [1] * 4:
                    raise Broken(f"four services have the supervisors {pids}")
                wrong = contradictions(lab.folder / "state/database/db.sqlite3")
                if wrong:
                    raise Broken("; ".join(wrong))
                lab.clear()
            lab.calm()
        assert eventually(lambda: not lab.api("GET", "services?all=1").body)
