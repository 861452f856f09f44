"""Hundreds of dumps and restores leave nothing behind in the processes that live on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from worker import process

SAMPLES = 30
WARM_UP = 4, 60
"""Cycles (short form, long form) until what works has its caches, and the allocator an arena a thread."""

OPEN = 8, 2
"""Descriptors and threads by which it may: in a short run a process may only just have had its first job."""
MEMORY = 64 * 1024, 8 * 1024
"""KiB by which the least of the last samples of a process may be above the most of the first."""


class Use(NamedTuple):
    """What a process uses."""

    descriptors: int
    threads: int
    memory: int


def used(pid: int) -> Use:
    """Return what a process uses now; its memory in KiB."""
    status = process.status(pid)
    return Use(len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]), int(status["VmRSS"].split()[0]))


def uses(lab: Lab, service: Kept) -> dict[str, Use]:
    """Return what each process uses that lives on from cycle to cycle, and the supervisor of the day."""
    assert lab.daemon is not None
    found = {"miehistod": used(lab.daemon.pid), "worker with agent": used(lab.part("worker"))}
    found |= {f"pool process {number}": used(pid) for number, pid in enumerate(sorted(lab.pool()), 1)}
    (supervisor,) = promise.supervisors_of(service.id)
    return found | {"runmh": used(supervisor)}


def test_dumps_and_restores_leak_nothing(lab: Lab, campaign: Campaign) -> None:
    rounds = campaign.rounds(6, 300)
    with campaign.fault("leaks", f"{rounds} dumps and restores of one service") as fault:
        service = Kept(lab)
        before = promise.host(lab)
        for _ in range(WARM_UP[campaign.long]):
            _cycle(service)
        samples = [uses(lab, service)]
        for _ in range(rounds):
            with fault.round():
                _cycle(service)
                if fault.rounds % max(1, rounds // SAMPLES) == 0:
                    samples.append(uses(lab, service))
                    promise.holds(lab, [service], before=before)
        third = len(samples) // 3
        for name in samples[0]:
            early = [sample[name] for sample in samples[:third]]
            late = [sample[name] for sample in samples[-third:]]
            fault.facts[name] = (
                f"{_range(each.descriptors for each in early)} descriptors at first,"
                f" {_range(each.descriptors for each in late)} at last;"
                f" {_range(each.threads for each in early)} threads, {_range(each.threads for each in late)};"
                f" {_range(each.memory // 1024 for each in early)} MiB,"
                f" {_range(each.memory // 1024 for each in late)} MiB"
            )
            opened, threads, memory = (
                min(each[field] for each in late) - max(each[field] for each in early) for field in range(3)
            )
            if max(opened, threads) > OPEN[campaign.long] or memory > MEMORY[campaign.long]:
                fault.findings.append(f"{name} has grown: {fault.facts[name]}")
        service.delete()


def _range(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]}-{found[-1]}"


def _cycle(service: Kept) -> None:
    service.wait(service.begin("dump")["object_id"])
    image = service.row()["image"]
    if service.row()["status"] != "dumped" or not image:
        raise Broken("it is not dumped")
    service.resume(image)
    service.forget_images()
    if not Path(f"/proc/{service.row()['pid']}").exists():
        raise Broken("its process is not there")
