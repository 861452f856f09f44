"""Many clients at once, each with any wish: every job comes to one end, and no service is there twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign, Fault
from tests.faults.lab import Lab
from tests.faults.replay import contradictions
from tests.stack import Reply

SERVICES = 10
CLIENTS = 8
REFUSALS = {404, 409, 422}
"""What a client is told whose wish cannot be: it is gone, it is busy, it is not in that state."""

WISHES = (
    "start",
    "stop",
    "restart",
    "dump",
    "copy",
    "restore",
    "restore",
    "verify",
    "delete image",
    "cancel",
)


def wish(lab: Lab, chances: random.Random, services: list[str]) -> Reply:
    """Ask for anything about any of the services, as an operator or a schedule would."""
    kind = chances.choice(WISHES)
    service = chances.choice(services)
    wait = f"wait={chances.choice([0, 0, 5])}"
    if kind in {"dump", "copy"}:
        return lab.api("POST", f"services/{service}/dump?{wait}", {"leave_running": kind == "copy"})
    if kind in {"start", "stop", "restart"}:
        return lab.api("POST", f"services/{service}/{kind}?{wait}")
    things = lab.api("GET", "jobs?status=queued" if kind == "cancel" else "images").body
    if not things:
        return Reply(404, None)
    chosen = chances.choice(things)["object_id"]
    if kind == "cancel":
        return lab.api("POST", f"jobs/{chosen}/cancel")
    if kind == "delete image":
        return lab.api("DELETE", f"images/{chosen}?{wait}")
    return lab.api("POST", f"images/{chosen}/{kind}?{wait}")


def test_a_crowd_brings_nothing_out_of_order(lab: Lab, campaign: Campaign) -> None:
    asked = campaign.rounds(40, 500)
    what = f"{asked} random operations by {CLIENTS} clients at once on {SERVICES} services"
    with campaign.fault("a crowd", what) as fault:
        services = [
            lab.api("POST", "services?wait=60", {"args": ["sleep", "100000"]}).body["service"]
            for _ in range(SERVICES)
        ]
        before = promise.host(lab)
        answers: Counter[int] = Counter()

        def client(number: int) -> list[Reply]:
            chances = random.Random(f"{fault.seed}:crowd:{number}")
            return [wish(lab, chances, services) for _ in range(asked // CLIENTS)]

        began = time.monotonic()
        with fault.round(), ThreadPoolExecutor(CLIENTS) as pool:
            for replies in pool.map(client, range(CLIENTS)):
                answers.update(reply.status for reply in replies)
                for reply in replies:
                    if reply.status not in {200, 202} | REFUSALS:
                        raise Broken(f"answered with {reply}")
        fault.rounds = asked
        _look(lab, services, before, fault)
        jobs = [job for job in lab.api("GET", "jobs?limit=1000").body if job["kind"] != "check"]
        fault.facts |= {
            "answers": {str(status): count for status, count in sorted(answers.items())},
            "jobs": dict(Counter(job["status"] for job in jobs)),
            "seconds for all": round(time.monotonic() - began, 1),
        }


def _look(lab: Lab, services: list[str], before: promise.Host, fault: Fault) -> None:
    promise.settle(lab)
    wrong: list[str] = contradictions(lab.folder / "state/database/db.sqlite3", alone=services)
    errored: list[Any] = lab.api("GET", "jobs?status=errored&limit=1000").body
    wrong += [f"a job hit a bug: {job['error']['message']}" for job in errored]
    for service in services:
        row = lab.api("GET", f"services/{service}").body
        supervisors = promise.supervisors_of(service)
        if len(supervisors) != (row["status"] == "running"):
            wrong.append(f"service {service[:8]} is {row['status']} and has {len(supervisors)} runmh")
        if row["status"] == "dumped" and not (lab.state / "images" / str(row["image"])).is_dir():
            wrong.append(f"service {service[:8]} is LOST: its image is not there")
    wrong += promise.wrong_on_disk(lab, read=True) + promise.wrong_on_host(lab, before)
    fault.findings += wrong
