"""The first page: what its heading and its notices say of nodes, services and jobs."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from images import retrying
from images.models import Image
from services import operations
from services.models import Job, Node
from services.states import JobState, ServiceState
from tests.rows import member, recorded_image, running_service, stopped_service, taken
from tests.site_fixtures import text_of

pytestmark = pytest.mark.django_db(transaction=True)

GIB = 2**30
WELL = {
    "sys_resource": True,
    "pool_size": 100 * GIB,
    "pool_free": 50 * GIB,
    "policy": {"file": "", "rules": {}},
}
FULL = {"pool_free": 5 * GIB}
POLICY = {"policy": {"error": "This node's policy, /etc/p.toml, cannot be relied on: it is no TOML."}}


def heard(name: str = "", *, ago: int = 0, criu: str = "4.2.1", **can: Any) -> Node:
    """Return a node as its heartbeat wrote it so many seconds ago."""
    node = operations.heartbeat(name or Node.objects.local().name, criu, "6", WELL | can)
    Node.objects.filter(pk=node.pk).update(last_seen_at=timezone.now() - timedelta(seconds=ago))
    return node


def seen(client: Client) -> tuple[str, list[str]]:
    """Return the heading and the notices, the tags left out."""
    page = text_of(client, "/")
    heading = re.search(r"<h1>(.*?)</h1>", page)
    notices = re.findall(r'<p class="notice[^>]*>(.*?)</p>', page, re.DOTALL)
    assert heading
    return heading[1], [html.unescape(re.sub(r"<[^>]*>", "", each)) for each in notices]


@pytest.mark.parametrize(
    ("nodes", "heading", "said"),
    [
        ([{}], "All is well", []),
        ([{"dirty_tracking": False, "limits_memory": False}], "All is well", []),
        ([{"pool_free": 10 * GIB}], "All is well", []),
        ([{"ago": 60}], "1 node silent", ["was last heard"]),
        ([{"ago": 60, "criu": "", **FULL}], "1 node silent", ["See whether miehistod runs"]),
        ([{"criu": ""}], "1 node cannot work", ["no CRIU"]),
        ([POLICY], "1 node cannot work", ["/etc/p.toml, cannot be relied on: it is no TOML. Mend"]),
        ([FULL], "Little room for images", ["95 % full. A dump that finds no room fails"]),
        ([{"pool_free": 1}], "1 node cannot work", ["100 % full"]),
        ([FULL, {"name": "0", "criu": ""}], "1 node cannot work", ["0 has no CRIU", "95 % full"]),
        ([{"criu": ""}, {"name": "~z", "ago": 60}], "1 node silent", ["of ~z was", "no CRIU"]),
        (
            [{"criu": "", **POLICY}, {"name": "~z", "criu": ""}],
            "2 nodes cannot work",
            ["no CRIU", "TOML", "~z has no CRIU"],
        ),
    ],
)
def test_the_heading_says_what_keeps_a_node_from_working(
    admin: Client, nodes: list[dict[str, Any]], heading: str, said: list[str]
) -> None:
    running_service("web")
    for node in nodes:
        heard(**node)
    found, notices = seen(admin)
    assert (found, len(notices)) == (heading, len(said))
    assert all(words in notice for words, notice in zip(said, notices, strict=True)), notices


def test_what_a_host_lacks_is_listed_and_a_full_pool_leads_to_what_may_be_done(admin: Client) -> None:
    heard(limits_memory=False, limits_tasks=False, pool_free=5 * GIB)
    page = text_of(admin, "/")
    assert "2 things this host lacks" in page and "control group for tasks" in page
    assert re.search(r'href="/images/prune/\?node=[^"]+" data-dialog>Free space', page)
    viewer = Client()
    viewer.force_login(member("viewer"))
    assert "Free space" not in text_of(viewer, "/")


def test_a_damaged_image_is_said_after_all_else(admin: Client) -> None:
    heard()
    service = stopped_service("web")
    recorded_image(service)
    Image.objects.update(status="damaged")
    heading, (notice,) = seen(admin)
    assert heading == "1 image damaged" and "1 image is damaged on" in notice
    dump = taken(operations.request_start(service, actor="root", source="manage"))
    failed(dump, ServiceState.STOPPED)
    assert seen(admin)[0] == "1 job failed in 24 hours"


def failed(job: Job, after: ServiceState, message: str = "It failed.") -> Job:
    """Let a job that a worker has end so."""
    operations.fail(job, code="x", message=message, remedy="", lines=[], service_state=after)
    job.refresh_from_db()
    return job


def test_a_failure_that_was_tried_again_with_success_is_over(admin: Client) -> None:
    heard()
    service = running_service("web")
    job = failed(taken(operations.request_dump(service, actor="root", source="manage")), ServiceState.RUNNING)
    assert seen(admin)[0] == "1 job failed in 24 hours"
    again = taken(retrying.request_retry(job, actor="root", source="manage"))
    assert seen(admin)[0] == "1 job failed in 24 hours", "it is not known yet"
    failed(again, ServiceState.RUNNING)
    assert seen(admin)[0] == "2 jobs failed in 24 hours"
    last = taken(retrying.request_retry(again, actor="root", source="manage"))
    operations.succeed(last, service_state=ServiceState.RUNNING, result={}, statistics={})
    assert seen(admin)[0] == "All is well"
    assert job.pk not in text_of(admin, "/")


def test_what_a_service_is_down_for_is_said_once(admin: Client) -> None:
    heard()
    service = stopped_service("web")
    job = failed(
        taken(operations.request_start(service, actor="root", source="manage")),
        ServiceState.FAILED,
        "No such.",
    )
    page = text_of(admin, "/")
    assert seen(admin)[0] == "1 service down"
    assert page.count("No such.") == page.count(f"/jobs/{job.pk}/") == 1
    Job.objects.filter(pk=job.pk).update(error_message="Another thing.")
    assert "Another thing." in text_of(admin, "/")


def test_all_that_ended_badly_is_one_choice_of_the_jobs(admin: Client) -> None:
    service = running_service("web")
    ids = {}
    for state in JobState:
        ids[state] = Job.objects.create(
            node=service.node, kind="check", status=state, queued_at=timezone.now()
        ).pk
    page = text_of(admin, re.findall(r'href="([^"]*)">all failed jobs', text_of(admin, "/"))[0])
    shown = {state for state, pk in ids.items() if f"job-{pk}" in page}
    assert shown == {JobState.FAILED, JobState.ERRORED, JobState.LOST}
