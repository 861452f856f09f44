"""The page that compares two images: which are offered, and which are chosen at first."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from images import contents
from images.models import Image
from services.models import Service
from tests.rows import recorded_image, stopped_service
from tests.site_fixtures import text_of

pytestmark = pytest.mark.django_db(transaction=True)


def images_of(service: Service, count: int, *, minutes_ago: int = 0) -> list[Image]:
    """Return images of a service, the oldest first, a minute between them."""
    made = [recorded_image(service) for _ in range(count)]
    for age, image in enumerate(reversed(made), start=minutes_ago):
        Image.objects.filter(pk=image.pk).update(created_at=timezone.now() - timedelta(minutes=age))
    return made


def shown(page: str) -> list[str]:
    """Return what a browser shows in each select: what is selected, else the first that is offered."""
    found = []
    for options in re.findall(r"<select.*?</select>", page):
        chosen = re.findall(r'value="(\w+)" selected', options) or re.findall(r'value="(\w+)"', options)
        found.append(chosen[0])
    return found


def test_what_is_compared_is_what_the_selects_show_however_old_it_is(admin: Client) -> None:
    made = images_of(stopped_service("web"), 105)
    seen: dict[str, Any] = {
        "processes": [],
        "sockets": [],
        "files": [],
        "memory": {},
        "mappings": [],
        "environment": {},
    }
    for a, b in ((made[0], made[1]), (made[1], made[-1]), (made[-1], made[0])):
        for image in (a, b):
            contents.record(image.pk, seen)
        page = text_of(admin, "/images/compare/", a=a.pk, b=b.pk)
        assert shown(page) == [a.pk, b.pk]
        offered = re.findall(r'<option value="(\w+)"', page.partition("</select>")[0])
        assert len(offered) == len(set(offered)) == 100 + len({a, b} & set(made[:5]))


def test_two_images_are_chosen_at_first_and_never_one_twice(admin: Client) -> None:
    other = images_of(stopped_service("other"), 2, minutes_ago=60)
    [lonely] = images_of(stopped_service("lonely"), 1)
    assert shown(text_of(admin, "/images/compare/")) == [other[0].pk, other[1].pk]
    web = images_of(stopped_service("web"), 3, minutes_ago=5)
    assert shown(text_of(admin, "/images/compare/")) == [web[1].pk, web[2].pk]
    for one, beside in ((web[2], web[1]), (web[0], web[2])):
        assert shown(text_of(admin, "/images/compare/", a=one.pk)) == [one.pk, beside.pk]
        assert shown(text_of(admin, "/images/compare/", b=one.pk)) == [beside.pk, one.pk]
    refused = admin.get("/images/compare/", {"a": lonely.pk, "b": web[0].pk}).content.decode()
    assert "are of different services" in refused
    assert shown(refused) == [lonely.pk, web[0].pk]
