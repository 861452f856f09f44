"""Many clients at once, each with any wish: every job comes to one end, and no service is there twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.faults.replay import contradictions
from tests.stack import Reply

SERVICES = 10
CLIENTS = 8
OPERATORS = ("anna", "ben")
SCHEDULED = 20
"""Of so many operations one is a schedule's; the other clients have the operators' tokens."""
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

    def schedule(self, wishes: int) -> tuple[list[Reply], list[Asked]]:
        """Ask for dumps by manage.py, as cron does, and delete older images; return as `operator` does."""
        chances = random.Random(f"{self.seed}:crowd:schedule")
        replies: list[Reply] = []
        granted: list[Asked] = []
        for number in range(wishes):
            images = self.lab.api("GET", "images").body if number % 2 else []
            if images:
                reply = self.lab.api("DELETE", f"images/{images[-1]['object_id']}")
                replies.append(reply)
                if reply.status == 202:
                    granted.append(("root", "api", reply.body["kind"], reply.body["object_id"]))
                continue
            service = chances.choice(self.services)
            done = self.lab.manage("dump", service, "--leave-running", "--no-wait", check=False)
            if done.code == 0:
                granted.append(("root", "manage", "dump", done.out.strip()))
            refused = done.code == 1 and "remedy:" in done.err
            replies.append(Reply(202 if done.code == 0 else 409 if refused else 500, done.err))
        return replies, granted

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
        " with several clients, and a schedule. Who asked for what is compared with the audit"
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
