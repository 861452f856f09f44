"""kill -9 of the worker, its main process or the one that works, at any moment of a job."""

from __future__ import annotations

import random
import time

import pytest

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.faults.verbs import BEGINS_FROM, after, lasts, ready
from tests.stack import eventually

SETTLED_WITHIN = 10.0
"""Seconds within which a worker that was started again ends the job of the one before, or takes it up."""


def kill_during(lab: Lab, service: Kept, verb: str, victim: str, moment: float) -> None:
    """Ask for a job, kill a process of the worker so many seconds later, and wait until another is ready."""
    job = service.begin(verb)
    if victim == "pool":  # its moments are those of its work
        eventually(lambda: lab.at_work(job["object_id"]), 2)
    time.sleep(moment)
    at_work = lab.at_work(job["object_id"])
    if victim == "pool" and at_work:
        lab.kill(at_work)
        return
    sign = lab.folder / "run/worker.ready"
    sign.unlink(missing_ok=True)
    lab.kill_part("worker")
    assert eventually(sign.exists, 60), "no new worker says that it is ready"


@pytest.mark.parametrize(("size", "short", "long"), [(1, 4, 160), (1024, 1, 40)], ids=["1MiB", "1GiB"])
def test_no_service_is_lost_when_the_worker_is_killed(
    lab: Lab, campaign: Campaign, size: int, short: int, long: int
) -> None:
    what = f"kill -9 of the worker's main or pool process while it works on a service of {size} MiB"
    with campaign.fault(f"worker killed, {size} MiB", what) as fault:
        service = Kept(lab, size, line=True)
        before = promise.host(lab)
        slowest = 0.0
        ends: dict[str, int] = {}
        for _ in range(campaign.rounds(short, long)):
            chances = random.Random(f"{fault.seed}:{fault.rounds}:{size}")
            verb = chances.choice(list(BEGINS_FROM))
            victim = chances.choice(["main", "pool"])
            moment = chances.uniform(0, lasts(size, verb))
            with fault.round(f"{verb}, {victim} killed after {moment:.3f} s"):
                ready(service, verb)
                kill_during(lab, service, verb, victim, moment)
                eventually(lambda: not promise.criu_processes(), 60)
                reborn = time.monotonic()
                promise.settle(lab)
                took = time.monotonic() - reborn
                slowest = max(slowest, took)
                after(service, verb)
                promise.holds(lab, [service], before=before, may_end=verb == "stop")
                if took > SETTLED_WITHIN and campaign.long:  # the short form may meet a busy machine
                    raise Broken(f"the job was settled only after {took:.1f} s")
                end = lab.api("GET", f"jobs?service={service.id}&limit=1").body[0]["status"]
                ends[end] = ends.get(end, 0) + 1
            lab.calm()
        fault.facts = {"slowest settling, s": round(slowest, 1), "jobs ended": ends}
        fault.facts["rounds after which a client's connection went on"] = service.went_on
        service.bring_to("running")
        service.delete()
