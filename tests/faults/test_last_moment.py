"""kill -9 of all who know that a restore comes to its end, between CRIU's last question and that end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab, sweep_scratch
from tests.faults.verbs import after, ready
from tests.stack import eventually
from worker import process, supervision
from worker.paths import Paths

LASTS = 0.006
"""Seconds that it takes from the question until the supervisor has said that the service runs, and more."""

VICTIMS = [
    ("pool", "runmh"),
    ("worker", "runmh"),
    ("pool", "criu"),
    ("runmh", "criu"),
    ("pool", "runmh", "criu"),
]


def asked(log: Path) -> bool:
    """Tell whether CRIU has asked whether the service may run."""
    with contextlib.suppress(OSError):
        return b"Running post-restore scripts" in log.read_bytes()
    return False


def kill_at_the_last(lab: Lab, service: Kept, victims: tuple[str, ...], moment: float) -> bool:
    """Restore a service, and kill these at the last; False if that came too late to hit them all."""
    folder = lab.folder / f"run/services/{service.id}"
    log = folder / "criu/restore.log"
    log.unlink(missing_ok=True)
    paths = Paths(lab.state, lab.folder / "run", lab.folder / "log")
    job = service.begin("restore")
    pool = eventually(lambda: lab.at_work(job["object_id"]), 10)
    deadline = time.monotonic() + 10
    while not (has_asked := asked(log)) and time.monotonic() < deadline:
        pass  # without a pause: such a moment is short
    assert has_asked, f"CRIU did not ask in {log}, or has other words for it"
    runmh = supervision.read_state(paths, service.id).get("runmh", [0])[0]
    criu = [pid for pid in process.children(runmh) if _is_criu(pid)]
    time.sleep(moment)
    pids = {"pool": [pool], "worker": [pool, lab.part("worker")], "runmh": [runmh], "criu": criu[:1]}
    doomed = [pid for victim in victims for pid in pids[victim] or [None]]
    hits = 0
    for pid in filter(None, doomed):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            hits += 1
    if "worker" in victims:
        lab.deaths += 1
        assert eventually(lambda: lab.parts().get("worker", doomed[1]) != doomed[1], 20), "no new worker"
    return hits == len(doomed)


def _is_criu(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "criu\n"
    return False


def test_a_restore_whose_witnesses_die_at_its_last_moment(lab: Lab, campaign: Campaign) -> None:
    what = (
        "kill -9 of the worker, the supervisor and CRIU, two or three of them at once, when CRIU has asked"
        " whether the restored service may run"
    )
    with campaign.fault("killed at the last moment of a restore", what) as fault:
        service = Kept(lab, line=True)
        before = promise.host(lab)
        ends: Counter[str] = Counter()
        hits = 0
        for _ in range(campaign.rounds(3, 100)):
            chances = random.Random(f"{fault.seed}:last:{fault.rounds}")
            victims = VICTIMS[(fault.seed + fault.rounds) % len(VICTIMS)]
            moment = chances.uniform(0, LASTS)
            with fault.round(f"{' and '.join(victims)}, after {moment:.4f} s"):
                ready(service, "restore")
                hits += kill_at_the_last(lab, service, victims, moment)
                eventually(lambda: not promise.criu_processes(), 60)
                promise.settle(lab)
                after(service, "restore")
                promise.holds(lab, [service], before=before)
                end = service.row()["status"]
                ends[end] += 1
                if end not in {"running", "dumped"}:
                    raise Broken(f"the service is {end}")
            lab.calm()
            sweep_scratch()
        fault.facts = {"rounds that hit all of them": hits, "the service was afterwards": dict(ends)}
        fault.facts["rounds after which a client's connection went on"] = service.went_on
        service.bring_to("running")
        service.delete()
