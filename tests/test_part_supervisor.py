"""miehistod's supervisor with real processes: parts are kept running, and end with nothing left."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miehistod.supervisor import GaveUp, PartSpec, Supervisor
from tests.supervising import supervised
from worker import process


def shell(text: str, name: str = "part", **more: Any) -> PartSpec:
    return PartSpec(name=name, argv=["/bin/sh", "-c", text], **more)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_dead_part_is_started_again_with_growing_pauses(tmp_path: Path) -> None:
    script = (
        f"date +%s.%N >> {tmp_path}/starts; [ $(wc -l < {tmp_path}/starts) -ge 4 ] && exec sleep 60; exit 3"
    )

    async def work(supervisor: Supervisor) -> None:
        part = supervisor.start(shell(script))
        await until(lambda: part.starts == 4)

    said = supervised(work)
    starts = [float(line) for line in (tmp_path / "starts").read_text().split()]
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=False))
    assert said[:2] == [
        "miehistod | part ended with status 3; starting it again in 0.05 s",
        "miehistod | part ended with status 3; starting it again in 0.1 s",
    ]


def test_too_many_deaths_end_it_with_the_last_words() -> None:
    async def work(supervisor: Supervisor) -> None:
        supervisor.start(shell("echo one; echo two >&2; kill -9 $$"))
        with pytest.raises(
            GaveUp, match=r"part died 4 times within 30 s, the last time it was killed by SIGKILL"
        ) as end:
            await supervisor.wait()
        assert end.value.said[-2:] == ["one", "two"]

    supervised(work)


def test_a_program_that_is_missing_counts_as_a_death() -> None:
    async def work(supervisor: Supervisor) -> None:
        supervisor.start(PartSpec(name="part", argv=["/nowhere/program"]))
        with pytest.raises(GaveUp, match="cannot be started"):
            await supervisor.wait()

    supervised(work)


def test_a_part_that_a_fault_keeps_from_starting_is_not_given_up_in_silence() -> None:
    async def work(supervisor: Supervisor) -> None:
        supervisor.start(PartSpec(name="part", argv=["no\0program"]))
        with pytest.raises(ValueError, match="null byte"):
            await supervisor.wait()

    supervised(work)


def test_parts_end_in_order_and_the_slow_one_by_force(tmp_path: Path) -> None:
    log = tmp_path / "log"
    polite = f"trap 'echo NAME >> {log}; exit 0' TERM; while :; do sleep 0.02; done"

    async def work(supervisor: Supervisor) -> None:
        broker = supervisor.start(shell(polite.replace("NAME", "broker"), "broker", stop_last=True))
        deaf = supervisor.start(shell("trap '' TERM; while :; do sleep 0.02; done", "deaf"))
        site = supervisor.start(shell(polite.replace("NAME", "site"), "site"))
        await until(lambda: broker.pid and deaf.pid and site.pid)
        await asyncio.sleep(0.2)

    said = supervised(work)
    assert log.read_text() == "site\nbroker\n"
    assert "miehistod | ending by force: deaf" in said


def test_services_in_sessions_of_their_own_go_on_and_other_children_end(tmp_path: Path) -> None:
    script = f"setsid sleep 300 & echo $! > {tmp_path}/service; sleep 300 & echo $! > {tmp_path}/child; wait"

    async def work(supervisor: Supervisor) -> None:
        supervisor.start(shell(script))
        await until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().endswith("\n"))
        await asyncio.sleep(0.2)

    supervised(work)
    service, child = (int((tmp_path / name).read_text()) for name in ("service", "child"))
    try:
        deadline = time.monotonic() + 5
        while process.Process.of(child) and time.monotonic() < deadline:  # a signal is sent, not yet taken
            time.sleep(0.01)
        assert not process.Process.of(child)
        assert process.Process.of(service)
    finally:
        os.kill(service, signal.SIGKILL)


def test_output_is_cut_into_lines_under_the_parts_name() -> None:
    async def work(supervisor: Supervisor) -> None:
        supervisor.start(shell(r"printf 'one\r\ntwo \377\nno end'; exec sleep 60"))
        await asyncio.sleep(0.2)

    assert supervised(work)[:3] == ["part      | one", "part      | two \\xff", "part      | no end"]


def test_output_cannot_steer_a_terminal() -> None:
    async def work(supervisor: Supervisor) -> None:
        supervisor.start(shell(r"printf 'a\tb\033[2J\302\205\303\251\n'; exec sleep 60"))
        await asyncio.sleep(0.2)

    assert supervised(work)[0] == r"part      | a{}b\x1b[2J\x85é".format("\t")
