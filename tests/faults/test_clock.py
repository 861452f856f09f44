"""A clock that is set back by an hour while jobs work and wait."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.faults import promise
from tests.faults.campaign import Broken, Campaign
from tests.faults.clocked import Clocked, Visitor, Window
from tests.faults.kept import Kept
from tests.faults.verbs import BEGINS_FROM, after, ready, under_way
from tests.stack import CHECKOUT, eventually, living
from tests.stopping import worker_held_up

TOLD_WITHIN = 20.0
PRELOADED = b"clock.so"


@pytest.fixture
def clocked() -> Iterator[Clocked]:
    """A node whose clock can be set."""
    with living(Clocked, "clocked") as node:
        yield node


def test_a_clock_that_is_set_back(clocked: Clocked, campaign: Campaign) -> None:
    what = (
        "While a job works and another waits in the queue, which is lost in half of the rounds, the clock of"
        " miehistod, all its parts and mhctl is set back by an hour, and by one more in each round. Somebody"
        " waits for the job with mhctl, has a page open and a token from before. (The kernel's clock is the"
        " same for all of the host, so a preloaded library sets it back for these processes; CRIU, services"
        " and the times of files keep the host's)"
    )
    with campaign.fault("clock set back", what) as fault:
        working, waiting = Kept(clocked), Kept(clocked)
        visitor = Visitor.of(clocked)
        before = promise.host(clocked)
        for _ in range(campaign.rounds(2, 20)):
            with fault.round() as chances, ExitStack() as held:
                page = held.enter_context(Window.of(clocked, visitor, "/services/"))
                assert page.shows(working.id, TOLD_WITHIN)
                last = chances.choice(list(BEGINS_FROM))
                ready(waiting, last)
                first, one = under_way(working, chances)
                _wrong_clocks(promise.criu_processes())
                with worker_held_up(clocked):
                    other = waiting.begin(last)
                    waits = held.enter_context(_waiting_for(clocked, other["object_id"]))
                    clocked.set_back()
                    if chances.random() < 0.5:
                        clocked.kill_part("redis")
                for service, job in ((working, one), (waiting, other)):
                    service.wait(job["object_id"])
                if eventually(lambda waits=waits: waits.poll() is not None, TOLD_WITHIN) is not True:  # type: ignore[misc]
                    raise Broken("mhctl still waits for a job that has ended")
                if waits.returncode:
                    raise Broken(f"mhctl could not wait for a job that has ended well: {waits.returncode}")
                after(working, first)
                after(waiting, last)
                promise.holds(clocked, [working, waiting], before=before)
                _goes_on(clocked, working, visitor, page)
                promise.holds(clocked, [working, waiting], before=before)
            clocked.calm()
        for service in (working, waiting):
            service.bring_to("running")
            service.delete()


def _goes_on(node: Clocked, service: Kept, visitor: Visitor, page: Window) -> None:
    """See that all goes on from there: new jobs, what a page is told, the node's heartbeat, a token."""
    name = f"at-{node.now():%H-%M-%S}"
    node.api("PATCH", f"services/{service.id}", {"name": name})
    if not page.shows(name, TOLD_WITHIN):
        raise Broken("an open page is told of no change any more")
    for state in ("running", "dumped", "running"):
        service.bring_to(state)
    processes = [pid for each in promise.processes_of(service) for pid in each]
    _wrong_clocks([*promise.supervisors_of(service.id), *processes])
    service.forget_images()
    if (reply := node.api("GET", "node", token=visitor.token)).status != 200:
        raise Broken(f"a token from before is refused: {reply}")

    def is_seen() -> bool:
        seen = datetime.fromisoformat(node.api("GET", "node").body["last_seen"])
        return abs(seen - node.now()) < timedelta(minutes=30)

    if not eventually(is_seen, TOLD_WITHIN):
        raise Broken("the node's heartbeat is not written any more")


def _wrong_clocks(pids: list[int]) -> None:
    """Fail if the clock of one of these is the test's: it was not to get the environment of the worker."""
    for pid in pids:
        with contextlib.suppress(OSError):
            folder = Path(f"/proc/{pid}")
            if PRELOADED in (folder / "environ").read_bytes() + (folder / "maps").read_bytes():
                raise Broken(f"{(folder / 'cmdline').read_bytes()!r} has the worker's environment")


@contextmanager
def _waiting_for(node: Clocked, job: str) -> Iterator[subprocess.Popen[bytes]]:
    """Begin to wait for a job as an operator does; yield the mhctl that does so by now."""
    words = [sys.executable, "-c", "import sys; from mhctl.main import main; sys.exit(main())"]
    words += ["job", "wait", job]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(words, cwd=CHECKOUT, env=node.environment, stdin=nothing, stdout=nothing) as made:
        try:
            assert eventually(lambda: _is_connected(made.pid)), "mhctl asks nobody"
            yield made
        finally:
            made.kill()


def _is_connected(pid: int) -> bool:
    links = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.readlink(link).startswith("socket:") for link in links if link.is_symlink())
