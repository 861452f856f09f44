"""Live pages beside the rest of the host: what they may take of it, and whom they serve."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import Permission, User
from django.http import HttpRequest
from django.test import Client

from services.authentication import Hearing
from services.roles import ADMINISTER, SEE
from services.threads import POLITE
from tests.rows import member
from tests.stack import CHECKOUT

A_SITE = """
import asyncio, os, sys
from django.conf import settings
from services.threads import in_polite_thread
settings.configure()
os.nice(int(sys.argv[1]))
os.setuid(65534)
print(asyncio.run(in_polite_thread(os.getpriority, os.PRIO_PROCESS, 0)))
"""


@pytest.mark.parametrize("nicer", [0, 15])
def test_pages_are_rendered_politely_however_nice_the_site_was_started(nicer: int) -> None:
    command = [sys.executable, "-c", A_SITE, str(nicer)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    own = os.getpriority(os.PRIO_PROCESS, 0) + nicer
    assert done.stdout.strip() == str(min(19, max(POLITE, own))), done.stderr


def listening(user: User) -> HttpRequest:
    browser = Client()
    browser.force_login(user)
    request = HttpRequest()
    request.user, request.session = user, browser.session
    return request


@pytest.mark.django_db(transaction=True)
def test_all_that_somebody_listens_to_asks_one_question_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ask = [0.0], Hearing._is_welcome
    asked: list[Hearing] = []

    def counted(hearing: Hearing) -> bool:
        asked.append(hearing)
        return ask(hearing)

    monkeypatch.setattr("services.authentication.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(Hearing, "_is_welcome", counted)
    leaving, staying = member("admin"), member("admin")
    his, another = listening(leaving), listening(staying)
    pages = [Hearing(his) for _ in range(20)]
    audit, other = Hearing(his, ADMINISTER), Hearing(another, ADMINISTER)

    async def over(*hearings: Hearing) -> set[bool]:
        return set(await asyncio.gather(*(each.is_over() for each in hearings)))

    async def a_few_seconds() -> None:
        assert await over(*pages) == {False} and not asked  # he was let in just now
        clock[0] += 1
        assert await over(*pages) == await over(*pages) == {False} and len(asked) == 1
        await leaving.groups.aclear()
        await leaving.user_permissions.aadd(await _right(SEE))
        clock[0] += 1
        assert await over(*pages) == {False} and await over(audit) == {True} and await over(other) == {False}
        await his.session.aflush()
        clock[0] += 1
        assert await over(*pages) == {True} and await over(other) == {False}
        assert len(asked) == 1 + 3 + 2
        clock[0] += 9
        assert not await other.is_over(speaking=False) and len(asked) == 6
        await User.objects.filter(pk=staying.pk).aupdate(is_active=False)
        clock[0] += 1
        assert await other.is_over(speaking=False)

    asyncio.run(a_few_seconds())


async def _right(name: str) -> Permission:
    return await Permission.objects.aget(content_type__app_label="services", codename=name.partition(".")[2])
