"""A power cut: all that belongs to a node dies at once, at any moment, and RUN_DIR is empty afterwards."""

from __future__ import annotations

import time
from collections import Counter

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign, Fault
from tests.faults.kept import Kept
from tests.faults.lab import Lab
from tests.faults.verbs import BEGINS_FROM, lasts
from tests.stack import eventually


def test_no_service_is_lost_at_a_power_cut(lab: Lab, campaign: Campaign) -> None:
    what = (
        "All processes of a node are killed at once, its services too, while a job works; RUN_DIR is emptied,"
        " and miehistod started. A service that asked for it comes back from an image, another has ended."
        " (What was written is still there: that each write reaches the disk in time is not shown by this)"
    )
    with campaign.fault("power cut", what) as fault:
        returns, stays = Kept(lab), Kept(lab)
        lab.api("PATCH", f"services/{returns.id}", {"restore_on_boot": True})
        before = promise.host(lab)
        ends: Counter[str] = Counter()
        for _ in range(campaign.rounds(1, 20)):
            with fault.round() as chances:
                verbs = [chances.choice([*BEGINS_FROM, "nothing"]) for _ in range(2)]
                moment = chances.uniform(0, max(lasts(1, verb) for verb in verbs))
                _one(lab, fault, returns, stays, verbs, moment, before)
                ends[f"{returns.row()['status']} and {stays.row()['status']}"] += 1
        fault.facts = {"the two services were afterwards": dict(ends)}
        for service in (returns, stays):
            service.bring_to("running")
            service.delete()


def _came_from(lab: Lab, service: Kept) -> str | None:
    """Return the image that a running service was restored from; None: it began anew, as it was told to."""
    jobs = lab.api("GET", f"jobs?service={service.id}&status=succeeded").body
    last: dict[str, str] = next(job for job in jobs if job["kind"] in {"start", "restore"})
    return last["image"] if last["kind"] == "restore" else None


def _one(
    lab: Lab, fault: Fault, returns: Kept, stays: Kept, verbs: list[str], moment: float, before: promise.Host
) -> None:
    for service, verb in zip((returns, stays), verbs, strict=True):
        service.bring_to("running")
        service.forget_images()
        service.wait(service.begin("copy")["object_id"])
        service.bring_to(BEGINS_FROM.get(verb, "running"))
    for service, verb in zip((returns, stays), verbs, strict=True):
        if verb != "nothing":
            service.begin(verb)
    time.sleep(moment)
    lab.power_cut(before.tables)
    said = f"{verbs} after {moment:.3f} s"
    promise.settle(lab)
    if verbs[0] not in {"stop", "start"}:
        eventually(lambda: returns.row()["status"] == "running", 30)
        if returns.row()["status"] != "running":
            raise Broken(f"{said}: the service that shall come back is LOST: {returns.row()}")
    promise.settle(lab)
    for service in (returns, stays):
        row = service.row()
        if row["status"] == "running":
            image = _came_from(lab, service)
            if image and image not in service.images:
                raise Broken(f"{said}: it runs from an image that nobody made: {row}")
            service.memory = service.images[image] if image else None
    try:
        promise.holds(lab, [returns, stays], before=before, may_end=True)
    except Broken as broken:
        raise Broken(f"{said}: {broken}") from None
    if verbs[1] in {"nothing", "copy"} and stays.row()["status"] != "exited":
        raise Broken(f"{said}: the other service is {stays.row()['status']}")
