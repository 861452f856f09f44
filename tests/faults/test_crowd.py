"""Many clients at once, each with any wish: every job comes to one end, and no service is there twice."""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.faults.replay import contradictions
from tests.stack import Reply, eventually

SERVICES = 10
CLIENTS = 8
OPERATORS = ("anna", "ben")
SCHEDULED = 20
"""For so many operations all services' schedules are due once; the clients have the operators' tokens."""
REFUSALS = {403, 404, 409, 422}
"""What a client is told whose wish cannot be: an admin's, gone, busy, not in that state."""

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

MAKE_OPERATORS = f"""
from django.contrib.auth.models import Group, User
from services.authentication import issue
for name in {OPERATORS!r}:
    user = User.objects.create_user(name)
    user.groups.add(Group.objects.get(name="operator"))
    print(name, issue(user))
"""

Asked = tuple[str, str, str, str]
"""Who asked, by what way, for what, and the job."""


class Crowd:
    """The clients, and what they were told.

    Args:
        services: what they work on.
    """

    def __init__(self, lab: Lab, services: Sequence[Kept], seed: int) -> None:
        self.lab, self.seed = lab, seed
        self.services = [service.id for service in services]
        said = lab.manage("shell", "-c", MAKE_OPERATORS).out.splitlines()
        self.tokens = dict(line.split() for line in said if line.startswith(OPERATORS))
        ((self.begins,),) = promise.rows(lab, "SELECT max(id) FROM services_auditevent")

    def operator(self, number: int, wishes: int) -> tuple[list[Reply], list[Asked]]:
        """Ask for so many things at random as an operator; return the answers, and what was granted."""
        chances = random.Random(f"{self.seed}:crowd:{number}")
        name = OPERATORS[number % len(OPERATORS)]
        told = [self._wish(chances, self.tokens[name]) for _ in range(wishes)]
        granted = [
            (name, "api", "cancel" if kind == "cancel" else reply.body["kind"], reply.body["object_id"])
            for kind, reply in told
            if reply.status in {200, 202}
        ]
        return [reply for _, reply in told], granted

    def _wish(self, chances: random.Random, token: str) -> tuple[str, Reply]:
        while True:
            kind, service = chances.choice(WISHES), chances.choice(self.services)
            wait = f"wait={chances.choice([0, 0, 5])}"
            body = None
            if kind in {"start", "stop", "restart"}:
                path = f"services/{service}/{kind}?{wait}"
            elif kind in {"dump", "copy"}:
                path, body = f"services/{service}/dump?{wait}", {"leave_running": kind == "copy"}
            else:
                things = self.lab.api(
                    "GET", "jobs?status=queued" if kind == "cancel" else "images", token=token
                ).body
                if not things:
                    continue  # there is nothing that this could be wished of
                chosen = chances.choice(things)["object_id"]
                path = {
                    "cancel": f"jobs/{chosen}/cancel",
                    "delete image": f"images/{chosen}?{wait}",
                }.get(kind, f"images/{chosen}/{kind}?{wait}")
            if kind != "delete image":
                return kind, self.lab.api("POST", path, body, token=token)
            reply = self.lab.api("DELETE", path, token=token)
            if reply.status not in {403, 404}:
                raise Broken(f"an operator has deleted an image: {reply}")
            return kind, reply

    def schedule(self, times: int) -> tuple[list[Reply], list[Asked]]:
        """Give each service a schedule that keeps one image, and let all be due so often; return as
        `operator` does, with what the schedules asked for.
        """
        replies: list[Reply] = []
        granted: list[Asked] = []
        for service in self.services:
            replies.append(self.lab.api("PUT", f"services/{service}/schedule", {"every": "1h", "keep": 1}))
            granted.append(("root", "api", "set", service))
        for _ in range(times):
            now = str(datetime.now(UTC).replace(tzinfo=None))
            with closing(sqlite3.connect(self.lab.folder / "state/database/db.sqlite3", timeout=30)) as rows:
                rows.execute("UPDATE images_schedule SET next_at = ?", (now,))
                rows.commit()
            time.sleep(0.5)
        busy = "SELECT count(*) FROM images_schedule WHERE last_at IS NULL OR NOT settled"
        if not eventually(lambda: promise.rows(self.lab, busy) == [(0,)], 60):
            raise Broken("the schedules come to no end")
        asked = "SELECT requested_by, source, kind, id FROM services_job WHERE source = 'schedule'"
        jobs = [tuple(row) for row in promise.rows(self.lab, asked)]
        if not jobs:
            raise Broken("no schedule has asked for anything")
        return replies + [Reply(202, job) for job in jobs], granted + jobs

    def on_record(self) -> list[Asked]:
        """Return who asked for what by the audit, since the crowd came."""
        query = (
            "SELECT actor, source, action, coalesce(json_extract(detail, '$.job'), target_id)"
            " FROM services_auditevent WHERE id > ? AND outcome <> 'refused'"
        )
        return [tuple(row) for row in promise.rows(self.lab, query, self.begins)]


def test_a_crowd_brings_nothing_out_of_order(lab: Lab, campaign: Campaign) -> None:
    asked = campaign.rounds(40, 500)
    what = (
        f"{asked} random operations by {CLIENTS} clients at once on {SERVICES} services: two operators, each"
        " with several clients, and a schedule of each service. Who asked for what is compared with the audit"
    )
    with campaign.fault("a crowd", what) as fault:
        before = promise.host(lab)
        services = [Kept(lab, user="nobody") for _ in range(SERVICES)]
        crowd = Crowd(lab, services, fault.seed)
        scheduled = asked // SCHEDULED
        others = CLIENTS - 1
        shares = [(asked - scheduled + number) // others for number in range(others)]
        answers: Counter[int] = Counter()
        began = time.monotonic()
        with fault.round():
            with ThreadPoolExecutor(CLIENTS) as pool:
                clients = [pool.submit(crowd.schedule, scheduled)]
                clients += [pool.submit(crowd.operator, *each) for each in enumerate(shares)]
            granted: list[Asked] = []
            for client in clients:
                replies, of_client = client.result()
                answers.update(reply.status for reply in replies)
                granted += of_client
                for reply in replies:
                    if reply.status not in {200, 202} | REFUSALS:
                        raise Broken(f"answered with {reply}")
            lasted = time.monotonic() - began
            recorded = crowd.on_record()
            fault.facts["seconds for all"] = round(lasted, 1)
            fault.facts["asked by"] = dict(Counter(name for name, *_ in recorded))
            _look(lab, services, before)
            if sorted(granted) != sorted(recorded):
                differ = sorted(set(granted) ^ set(recorded))
                raise Broken(f"the audit and what the clients were told differ: {differ}")
        fault.rounds = answers.total()
        jobs = [job for job in lab.api("GET", "jobs?limit=1000").body if job["kind"] != "check"]
        fault.facts |= {
            "answers": {str(status): count for status, count in sorted(answers.items())},
            "jobs": dict(Counter(job["status"] for job in jobs)),
        }


def _look(lab: Lab, services: Sequence[Kept], before: promise.Host) -> None:
    """Fail unless all is well; each service that is an image by now must go on from there."""
    for service in services:
        service.memory = None  # who knows by now what was asked of it last
    promise.holds(lab, services, before=before, may_end=True)
    wrong = contradictions(
        lab.folder / "state/database/db.sqlite3", alone=[service.id for service in services]
    )
    errored = lab.api("GET", "jobs?status=errored&limit=1000").body
    wrong += [f"a job hit a bug: {job['error']['message']}" for job in errored]
    if wrong:
        raise Broken("; ".join(wrong))
    for service in services:
        if (row := service.row())["status"] == "dumped":
            service.do("POST", f"images/{row['image']}/restore")
            service.must_answer()
