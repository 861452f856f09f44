"""Hundreds of dumps and restores leave nothing behind in the processes that live on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from miehistod.parts import WORKER_PROCESSES
from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.stack import eventually
from worker import process

SAMPLES = 30
WARM_UP = 4, 60
"""Cycles (short form, long form) until what works has its caches, and the allocator an arena a thread."""

AT_REST_WITHIN = 30.0
"""Seconds after the last cycle within which what was only in use is closed."""

OPEN = 4, 0
"""Descriptors and threads that it may grow by: in a short run a thread may only now meet the database."""
MEMORY = 64 * 1024, 8 * 1024
"""KiB that a process may grow by: one that has just had its first job has its caches before it."""
MEMORY_OF_RUNMH = 1024
"""The same for a supervisor, which has no caches."""


class Use(NamedTuple):
    """What a process uses."""

    descriptors: int
    threads: int
    memory: int


def used(pid: int) -> Use:
    """Return what a process uses now; its memory in KiB."""
    status = process.status(pid)
    return Use(len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]), int(status["VmRSS"].split()[0]))


def uses(lab: Lab, services: dict[str, Kept]) -> dict[str, Use]:
    """Return what each process uses that lives on from cycle to cycle, and the supervisors of services."""
    assert lab.daemon is not None
    found = {"miehistod": used(lab.daemon.pid), "worker with agent": used(lab.part("worker"))}
    found |= {f"pool process {number}": used(pid) for number, pid in enumerate(sorted(lab.pool()), 1)}
    for name, service in services.items():
        (supervisor,) = promise.supervisors_of(service.id)
        found[name] = used(supervisor)
    return found


def at_rest(lab: Lab, services: dict[str, Kept]) -> dict[str, Use] | None:
    """Return what each process uses while the agent watches all services; None while it does not.

    For each it has two descriptors open, one of them a pidfd; a new one it takes up when it next looks.
    """
    worker = lab.part("worker")
    kinds = [os.readlink(link) for link in Path(f"/proc/{worker}/fd").iterdir() if link.is_symlink()]
    return uses(lab, services) if kinds.count("anon_inode:[pidfd]") >= len(services) else None


def least(samples: Sequence[Use]) -> Use:
    """Return the least that a process used at some moments, for what is in use comes and goes."""
    return Use(*(min(each[field] for each in samples) for field in range(3)))


def grown(first: Use, last: Use, most: Use) -> bool:
    """Tell whether a process uses more than it did, and more than what it may grow by."""
    return any(now - was > may for was, now, may in zip(first, last, most, strict=True))


def test_dumps_and_restores_leak_nothing(lab: Lab, campaign: Campaign) -> None:
    rounds = campaign.rounds(6, 300)
    what = f"{rounds} dumps and restores of one service, and as many dumps that leave another running"
    with campaign.fault("leaks", what) as fault:
        service, stays = Kept(lab), Kept(lab)
        before = promise.host(lab)
        _each_has_worked(lab)
        for _ in range(WARM_UP[campaign.long]):
            _cycle(service, stays)
        watched = {"runmh, a new one each time": service, "runmh of the other service": stays}
        first = _looks(lab, watched)
        samples = first[-1:]
        for _ in range(rounds):
            with fault.round():
                _cycle(service, stays)
                if fault.rounds % max(1, rounds // SAMPLES) == 0:
                    samples.append(uses(lab, watched))
                    promise.holds(lab, [service, stays], before=before)
        last: list[dict[str, Use]] = []

        def more() -> list[str]:
            last.extend(_looks(lab, watched, 1))
            return [
                name
                for name in first[0]
                if grown(
                    least([look[name] for look in first]),
                    least([look[name] for look in last]),
                    _may_grow(name, campaign.long),
                )
            ]

        eventually(lambda: not more(), AT_REST_WITHIN)
        for name in first[0]:
            fault.facts[name] = _told(
                least([look[name] for look in first]),
                [sample[name] for sample in samples],
                least([look[name] for look in last]),
            )
        fault.findings += [f"{name} has grown: {fault.facts[name]}" for name in more()]
        service.delete()
        stays.delete()


def test_one_descriptor_in_fifty_cycles_is_seen() -> None:
    nothing = _may_grow("runmh", True)
    busy = [Use(45 + number % 4 // 3 * 8, 1 + number % 3, 1000) for number in range(300)]
    assert not grown(least(busy[:10]), least(busy[-10:]), nothing)
    leaky = [use._replace(descriptors=use.descriptors + number // 50) for number, use in enumerate(busy)]
    assert grown(least(leaky[:10]), least(leaky[-10:]), nothing)


def _may_grow(name: str, long: bool) -> Use:
    if "runmh" in name:
        return Use(0, 0, MEMORY_OF_RUNMH)
    return Use(OPEN[long], OPEN[long], MEMORY[long])


def _looks(lab: Lab, services: dict[str, Kept], count: int = 20) -> list[dict[str, Use]]:
    """Look so many times at what is used at rest."""
    looks = []
    for _ in range(count):
        found = eventually(lambda: at_rest(lab, services))
        assert found, "the agent does not watch all services"
        looks.append(found)
        time.sleep(0.1)
    return looks


def _told(first: Use, samples: Sequence[Use], last: Use) -> str:
    between = [_range(each[field] for each in samples) for field in range(2)]
    return (
        f"{first.descriptors} descriptors at first, {between[0]} between, {last.descriptors} at last;"
        f" {first.threads} threads, {between[1]}, {last.threads};"
        f" {first.memory / 1024:.1f} MiB, {last.memory / 1024:.1f} MiB"
    )


def _range(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]}-{found[-1]}"


def _each_has_worked(lab: Lab) -> None:
    """Let each pool process have had a job, so that it has opened what it keeps.

    As many services are dumped at once as the pool has when none is missing. Celery takes seconds to replace
    one that an earlier fault killed, and with a service less the last process never gets a job.
    """
    services = [Kept(lab) for _ in range(WORKER_PROCESSES)]

    def have_worked() -> bool:
        jobs = [service.begin("copy") for service in services]
        for service, job in zip(services, jobs, strict=True):
            service.wait(job["object_id"])
        claims = promise.rows(lab, "SELECT DISTINCT worker FROM services_job WHERE worker <> ''")
        pool = {str(pid) for pid in lab.pool()}
        return len(pool) == WORKER_PROCESSES and pool <= {claim.split(":")[1] for (claim,) in claims}

    assert eventually(have_worked, 60), "not every pool process gets jobs"
    for service in services:
        service.delete()


def _cycle(service: Kept, stays: Kept) -> None:
    """Dump and restore one service, and dump another that runs on, the two at once."""
    copy, dump = stays.begin("copy"), service.begin("dump")
    stays.wait(copy["object_id"])
    service.wait(dump["object_id"])
    image = service.row()["image"]
    if service.row()["status"] != "dumped" or not image:
        raise Broken("it is not dumped")
    service.resume(image)
    stays.must_answer()
    for each in (service, stays):
        each.forget_images()
        if not Path(f"/proc/{each.row()['pid']}").exists():
            raise Broken("its process is not there")
