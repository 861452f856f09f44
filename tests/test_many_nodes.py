"""Names are unique on a node only: where there are several, the pages say which is meant."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from images.models import Image
from services import operations
from services.models import Job, Node, Service
from services.states import ServiceState
from tests.rows import recorded_image, running_service, taken
from tests.site_fixtures import text_of

pytestmark = pytest.mark.django_db(transaction=True)

LISTS = ("/services/", "/images/", "/jobs/")


def in_dialog(client: Client, service: Service) -> str:
    """Return the dialog that asks for the dumps of many services, of this one alone."""
    page = text_of(client, f"/services/bulk/?do=dump&id={service.pk}")
    dialog = re.search(r'<form class="dialog".*?</form>', page, re.DOTALL)
    assert dialog and service.name in dialog[0]
    # A token of random letters has any short name in it, now and then.
    return re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", dialog[0])


def test_of_two_with_one_name_it_is_said_where_each_is(admin: Client) -> None:
    local = Node.objects.local().name
    here = running_service("web")
    recorded_image(here)
    assert local not in in_dialog(admin, here)
    failing = taken(operations.request_stop(here, actor="root", source="manage"))
    operations.fail(
        failing, code="x", message="It failed.", remedy="", lines=[], service_state=ServiceState.FAILED
    )
    assert local not in in_dialog(admin, here), "it is left out"
    for address in (*LISTS, "/"):
        head = "<h3>" if address == "/" else ""  # where the first page names its nodes
        assert f">{local}<" not in text_of(admin, address).partition(head or "\0")[0], address

    other = Node.objects.create(name="elsewhere")
    for model in (Service, Image, Job):
        model.objects.update(node=other)
    there, here = here, running_service("web")
    recorded_image(here)
    operations.request_dump(here, actor="root", source="manage")
    for address in LISTS:
        rows = re.findall(r'<td class="head-cell">.*?</td>', text_of(admin, address))
        nodes = [re.findall(r'<span class="small">([^<]+)</span>', row) for row in rows]
        assert {*map(tuple, nodes)} == {(local,), ("elsewhere",)}, address
    feeds = re.findall(r'<ul class="feed">.*?</ul>', text_of(admin, "/"), re.DOTALL)
    told = [re.findall(r'<span class="small">([^<]+)</span>', feed) for feed in feeds]
    assert told == [["elsewhere"], [local]]
    chosen = text_of(admin, "/services/bulk/", do="stop", id=[here.pk, there.pk])
    assert f'>web <span class="small">{local} · /bin/true<' in chosen
    assert "web (failed on elsewhere)" in chosen
