"""A pool that is full, a CRIU that is killed or hangs, and a restore that cannot be finished."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.tight import PATIENCE, POOL, Tight
from tests.faults.verbs import after, ready
from tests.stack import eventually

MEBIBYTES = 128


def ended(node: Tight, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for a job's end and return it."""
    found: dict[str, Any] = node.api("GET", f"jobs/{job['object_id']}?wait=60").body
    return found


def test_a_pool_that_runs_full_at_any_moment(tight: Tight, campaign: Campaign) -> None:
    what = f"The pool is left less room than a dump of {MEBIBYTES} MiB needs, before it or while CRIU writes"
    with campaign.fault("pool full", what) as fault:
        service = Kept(tight, MEBIBYTES)
        before = promise.host(tight)
        ends: Counter[str] = Counter()
        for _ in range(campaign.rounds(2, 50)):
            chances = random.Random(f"{fault.seed}:pool:{fault.rounds}")
            verb = chances.choice(["dump", "copy"])
            at_start = chances.random() < 0.3
            moment, room = chances.uniform(0, 0.2), chances.randrange(0, MEBIBYTES << 20)
            title = f"{verb}, {room >> 20} MiB {'at the start' if at_start else f'after {moment:.3f} s'}"
            with fault.round(title):
                service.bring_to("running")
                service.forget_images()
                if at_start:
                    tight.resize_pool(room)
                job = service.begin(verb)
                if not at_start:
                    eventually(lambda job=job: tight.at_work(job["object_id"]), 5)  # type: ignore[misc]
                    time.sleep(moment)
                    tight.resize_pool(room)
                done = ended(tight, job)
                tight.resize_pool(POOL)
                promise.holds(tight, [service], before=before)
                code = (done["error"] or {}).get("code", done["status"])
                ends[code] += 1
                if code not in {"succeeded", "pool_full"}:
                    raise Broken(f"the dump ended with {done['error']}")
                if done["status"] == "failed" and service.row()["status"] != "running":
                    raise Broken("a failed dump has not left the service running")
            tight.resize_pool(POOL)
        fault.facts = {"the dumps ended": dict(ends)}
        service.bring_to("running")
        service.delete()


@pytest.mark.parametrize(("name", "number"), [("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)])
def test_a_criu_that_does_not_come_to_an_end(
    tight: Tight, campaign: Campaign, name: str, number: signal.Signals
) -> None:
    what = f"{number.name} to CRIU at any moment of a dump or a restore"
    if number is signal.SIGSTOP:
        what += f"; the time limit (here {PATIENCE:g} s) ends the job"
    with campaign.fault(f"CRIU {name}", what) as fault:
        service = Kept(tight, MEBIBYTES, line=True)
        before = promise.host(tight)
        ends: Counter[str] = Counter()
        hits = 0
        for _ in range(campaign.rounds(2, 60)):
            chances = random.Random(f"{fault.seed}:criu:{fault.rounds}")
            verb = chances.choice(["dump", "copy", "restore"])
            moment = chances.uniform(0.01, 0.25)
            with fault.round(f"{verb}, after {moment:.3f} s"):
                ready(service, verb)
                job = service.begin(verb)
                eventually(lambda job=job: tight.at_work(job["object_id"]), 5)  # type: ignore[misc]
                time.sleep(moment)
                hit = tight.signal_criu(number)
                hits += bool(hit)
                done = ended(tight, job)
                promise.settle(tight)
                after(service, verb)
                if "no longer held" in (done["error"] or {}).get("message", ""):
                    # It was broken off when it had begun to let go on what it then ended: clients were told.
                    service.hang_up()
                ends[f"{(done['error'] or {}).get('code', done['status'])}"] += 1
                # CRIU's own code runs inside the service for a part of a dump: what dies by it is on record.
                with_it = (done["error"] or {}).get("code") == "service_died_with_criu"
                with_it &= number is signal.SIGKILL  # one that hangs is let go on, and undoes what it did
                promise.holds(tight, [service], before=before, may_end=with_it)
                if hit and done["status"] not in {"succeeded", "failed"}:
                    raise Broken(f"the job ended as {done['status']}: {done['error']}")
        fault.facts = {"rounds in which CRIU was at work": hits, "the jobs ended": dict(ends)}
        fault.facts["rounds after which a client's connection went on"] = service.went_on
        service.bring_to("running")
        service.delete()


@contextlib.contextmanager
def away(folder: Path, *, file: bool = False) -> Iterator[None]:
    """Let a folder not be where it was, or a file be there, so that nobody can make it anew."""
    aside = folder.rename(folder.with_name("aside"))
    if file:
        folder.touch()
    try:
        yield
    finally:
        folder.unlink(missing_ok=True)
        aside.rename(folder)


def test_a_restore_that_cannot_be_finished(tight: Tight, campaign: Campaign, folder: Path) -> None:
    what = (
        "A restore finds its port taken, the folder gone that the service is in, or the one where a deleted"
        " file must be made anew, and so fails half way; the image is as good as before"
    )
    with campaign.fault("restore fails half way", what) as fault:
        at, grave = folder / "at", folder / "grave"
        for each in (at, grave):
            each.mkdir()
        service = Kept(tight, line=True, wishes=[f"at={at}", f"deleted=1:{grave}"])
        before = promise.host(tight)
        harms: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[object]]]] = {
            "port": ("port_in_use", lambda: socket.create_server(("127.0.0.1", service.port))),
            "folder": ("file_missing", lambda: away(at)),
            "deleted file": ("restore_failed", lambda: away(grave, file=True)),
        }
        for _ in range(campaign.rounds(3, 30)):
            name = list(harms)[fault.rounds % len(harms)]
            code, harm = harms[name]
            with fault.round(name):
                service.bring_to("dumped")
                with harm():
                    done = ended(tight, service.begin("restore"))
                    if (done["error"] or {}).get("code") != code:
                        raise Broken(f"it ended as {done['status']}: {done['error']}")
                    promise.holds(tight, [service], before=before)
                    if service.row()["status"] != "dumped":
                        raise Broken(f"the service is {service.row()['status']}")
                service.bring_to("running")
                promise.holds(tight, [service], before=before)
        fault.facts["rounds after which a client's connection went on"] = service.went_on
        service.delete()
