"""`make bench-pages`: how fast the pages are when the database is large, how soon an open one shows a change,
and what open ones cost a dump.

It writes a section of docs/performance.md, on SQLite and on PostgreSQL. A node is started as an operator
does, so a page is timed through gunicorn, every middleware, the view and the database, to the last byte.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import database, first_view, measuring, report, showing
from benchmarks.measuring import Sample, timed
from benchmarks.node import CHECKOUT, MHCTL, Node, free_port, small, started, wait_for
from benchmarks.open_pages import opened

T = TypeVar("T")
WARMING = 4  # requests before the timed ones: the site has two processes, and each reads its templates once
SCRAPES = 12
READ_WITHIN = 30.0  # seconds for the worker to look into an image


def addresses(ids: dict[str, str]) -> dict[str, str]:
    """Return the pages of a viewer and an admin, label to address. ids: as filling.py tells them."""
    month = [datetime.now(UTC).date() - timedelta(days=ago) for ago in (60, 30)]
    service, good, bad, a, b = (ids[name] for name in ("service", "good", "bad", "a", "b"))
    return {
        "overview": "/",
        "services": "/services/",
        "services, searched": "/services/?q=mail",
        "services that failed": "/services/?status=failed",
        "services by memory, page 10": "/services/?sort=-memory&page=10",
        "a service": f"/services/{service}/",
        "a service's log": f"/services/{service}/logs/",
        "a service's log, searched": f"/services/{service}/logs/?q=nothing",
        "a service's dump dialog": f"/services/{service}/dump/",
        "a service's stop dialog": f"/services/{service}/stop/",
        "a service's delete dialog": f"/services/{service}/delete/",
        "create a service": "/services/new/",
        "images": "/images/",
        "images, searched": "/images/?q=mail",
        "images by size, page 100": "/images/?sort=-size&page=100",
        "an image": f"/images/{a}/",
        "an image's restore dialog": f"/images/{a}/restore/",
        "an image's delete dialog": f"/images/{a}/delete/",
        "free space": "/images/prune/",
        "compare: choose": "/images/compare/",
        "compare two images": f"/images/compare/?a={a}&b={b}",
        "jobs": "/jobs/",
        "jobs, searched": "/jobs/?q=mail-10",
        "jobs that ended badly": "/jobs/?status=ended_badly",
        "dumps that failed": "/jobs/?status=failed&kind=dump",
        "jobs, page 2000": "/jobs/?page=2000",
        "a job": f"/jobs/{good}/",
        "a failed job": f"/jobs/{bad}/",
        "audit": "/audit/",
        "audit of a person": "/audit/?q=operator",
        "audit, two filters": "/audit/?action=dump&source=web",
        "audit, a month": f"/audit/?from={month[0]}&to={month[1]}",
        "tokens": "/account/tokens/",
        "admin": "/admin/",
        "admin: nodes": "/admin/services/node/",
        "admin: services": "/admin/services/service/",
        "admin: jobs": "/admin/services/job/",
        "admin: a job": f"/admin/services/job/{good}/change/",
        "admin: images": "/admin/images/image/",
        "admin: schedules": "/admin/images/schedule/",
        "admin: contents": "/admin/images/imagecontents/",
        "admin: loads": "/admin/services/serviceload/",
        "admin: job logs": "/admin/services/joblog/",
        "admin: service events": "/admin/services/serviceevent/",
        "admin: audit": "/admin/services/auditevent/",
        "admin: tokens": "/admin/services/apitoken/",
        "admin: users": "/admin/auth/user/",
        "metrics": "/metrics",
    }


class Site:
    """One kept connection to a node's site, with the session of an admin."""

    def __init__(self, port: int, session: str) -> None:
        self._port = port
        self._cookie = {"Cookie": f"sessionid={session}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def get(self, address: str) -> int:
        """Return the length of a page, in bytes.

        Raises:
            RuntimeError: it is answered by something else than 200.
        """
        self._connection.request("GET", address, headers=self._cookie)
        answer = self._connection.getresponse()
        octets = len(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{address}: {answer.status}")
        return octets

    def begin(self, address: str) -> None:
        """Read the first bytes of an answer, and leave."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        connection.request("GET", address, headers=self._cookie)
        answer = connection.getresponse()
        if answer.status != 200 or not answer.read(64):
            raise RuntimeError(f"{address}: {answer.status}")
        connection.close()

    def close(self) -> None:
        """Leave."""
        self._connection.close()


def pages(site: Site, ids: dict[str, str], count: int) -> dict[str, dict[str, Any]]:
    """Return for each page its times and its length in bytes."""
    found: dict[str, dict[str, Any]] = {}
    for label, address in addresses(ids).items():
        # The first scrape counts all jobs, once.
        began = [timed(lambda address=address: site.get(address)) for _ in range(WARMING)]  # type: ignore[misc]
        octets = site.get(address)
        times = [timed(lambda address=address: site.get(address)) for _ in range(count)]  # type: ignore[misc]
        found[label] = {"sample": Sample(times), "octets": octets, "first": max(began)}
        _tell(f"  {label}: {found[label]['sample']}, first {max(began):.3f}")
    # A file of 100,000 rows, which takes its time: asked for less often.
    begun = Sample([timed(lambda: site.begin("/audit.csv")) for _ in range(max(1, count // 6))])
    found["audit.csv, to its first bytes"] = {"sample": begun, "octets": 0, "first": begun.seconds[0]}
    _tell(f"  audit.csv: {begun}")
    return found


def scraped_anew(port: int, session: str) -> float:
    """Return the seconds of the first scrape of another process than the one that was asked until now.

    Each connection is somebody's of the site's two processes, so the longest of some is the other's first.
    """
    times = []
    for _ in range(SCRAPES):
        site = Site(port, session)
        times.append(timed(lambda site=site: site.get("/metrics")))  # type: ignore[misc]
        site.close()
    return max(times)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class Filled(NamedTuple):
    """A service that runs on a node, its port, and what to ask the node's full database for."""

    service: str
    port: int
    ids: dict[str, str]


def dumped(node: Node) -> tuple[str, str, int]:
    """Create a small service, dump it, and return the service, the job of the dump, and the port.

    It goes on after the dump, and the worker has looked into its image.

    Raises:
        RuntimeError: the worker doesn't look into it.
    """
    port = free_port()
    service = node.mhctl("service", "create", "--", *small(port))
    wait_for(port)
    image = Path(node.mhctl("service", "dump", "--leave-running", service)).name
    job = next(job["object_id"] for job in node.json("job", "list") if job["kind"] == "dump")
    deadline = time.monotonic() + READ_WITHIN
    while not _is_read(node, image):
        if time.monotonic() > deadline:
            raise RuntimeError("the worker does not look into the image")
        time.sleep(0.2)
    return service, job, port


def _is_read(node: Node, image: str) -> bool:
    token = (node.paths.run_dir / "token").read_text().strip()
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
    with contextlib.closing(connection):
        heads = {"Authorization": f"Bearer {token}"}
        connection.request("GET", f"/api/v1/images/{image}/contents", headers=heads)
        return bool(json.loads(connection.getresponse().read())["state"] == "read")


def filled(node: Node, numbers: dict[str, int]) -> Filled:
    """Start a service, and fill the node's database with the likes of its first dump."""
    service, pattern, port = dumped(node)
    words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.filling", *words, "--pattern", pattern],
        cwd=CHECKOUT,
        env=node.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Filled(service, port, json.loads(done.stdout))


def looked_at(filled_with: Filled) -> list[str]:
    """Return the addresses of the pages that are open, in turn."""
    return [
        "/",
        "/services/",
        f"/services/{filled_with.service}/",
        "/images/",
        "/jobs/",
        "/audit/",
        f"/services/{filled_with.ids['service']}/",
        "/services/?status=running",
    ]


def watched(node: Node, filled_with: Filled, pairs: int, count: int) -> dict[str, Any]:
    """Dump and restore a service in turn while nobody looks and while `count` pages do."""
    service, port, ids = filled_with
    times: dict[str, list[float]] = {"dump": [], "restore": [], "dump, watched": [], "restore, watched": []}
    events = 0

    def both(suffix: str) -> None:
        said: list[str] = []
        times[f"dump{suffix}"].append(timed(lambda: said.append(node.mhctl("service", "dump", service))))
        image = Path(said[0]).name
        restore = ("service", "restore", "--from", image)
        times[f"restore{suffix}"].append(timed(lambda: node.mhctl(*restore)))
        wait_for(port)
        node.mhctl("image", "delete", image)
        time.sleep(0.5)  # the pages draw what happened, the worker looks into images

    both("")  # CRIU takes longer for the first dump of a process than for that of one that it has restored
    for samples in times.values():
        samples.clear()
    for _ in range(pairs):
        both("")
        with opened(node.port, ids["session"], looked_at(filled_with), count) as streams:
            both(", watched")
            events += streams.events
            if streams.lost:
                raise RuntimeError(f"{streams.lost} streams of {count} pages were lost")
        time.sleep(0.5)
    return {
        "samples": {name: Sample(values) for name, values in times.items()},
        "events": events / pairs / count,
        "pages": count,
    }


def on(node: Node, filled_with: Filled, arguments: argparse.Namespace, *, with_views: bool) -> dict[str, Any]:
    """Return all measurements on one database."""
    ids, found = filled_with.ids, dict[str, Any]()
    site = Site(node.port, ids["session"])
    found["pages"] = step("pages", lambda: pages(site, ids, arguments.requests))
    site.close()
    found["scraped anew"] = scraped_anew(node.port, ids["session"])
    looks = {"overview": "/", "services": "/services/", "a service": f"/services/{ids['service']}/"}
    looks |= {"an image": f"/images/{ids['a']}/", "jobs": "/jobs/", "a job": f"/jobs/{ids['good']}/"}
    if with_views:
        found["views"] = step("views", lambda: first_view.views(node.port, ids["session"], looks))
    others = (looked_at(filled_with), arguments.changes, arguments.open)
    found["shown"] = step(
        "changes", lambda: showing.shown(node, ids["session"], filled_with.service, *others)
    )
    found["watched"] = step("open pages", lambda: watched(node, filled_with, arguments.pairs, arguments.open))
    return found


def step(name: str, work: Callable[[], T]) -> T:
    """Do a part of the work and say how long it took."""
    began = time.monotonic()
    result = work()
    _tell(f"{name}: {time.monotonic() - began:.0f} s")
    return result


@contextlib.contextmanager
def nodes(arguments: argparse.Namespace) -> Iterator[dict[str, tuple[Node, Filled]]]:
    """Yield a node for each database, all of them filled at once."""
    with contextlib.ExitStack() as open_:
        found = {"SQLite": open_.enter_context(started())}
        if not arguments.only:
            url = open_.enter_context(database.postgresql())
            found["PostgreSQL"] = open_.enter_context(started({"DATABASE_URL": url}))
        numbers = {name: getattr(arguments, name) for name in ("services", "images", "jobs")}
        with ThreadPoolExecutor(len(found)) as pool:
            ready = step(
                "filling", lambda: list(pool.map(lambda node: filled(node, numbers), found.values()))
            )
        yield dict(zip(found, zip(found.values(), ready, strict=True), strict=True))


def main() -> None:
    """Measure, print, and write the section of docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=30, help="timed requests a page")
    parser.add_argument("--open", type=int, default=200, help="pages open at once")
    parser.add_argument("--changes", type=int, default=20, help="changes that a page is to show")
    parser.add_argument("--pairs", type=int, default=8, help="dumps with and without open pages")
    parser.add_argument("--only", choices=("SQLite",), default="", help="leave PostgreSQL out")
    parser.add_argument("--no-write", action="store_true", help="print only, leave docs/performance.md")
    arguments = parser.parse_args()
    if not Path(MHCTL).exists():
        raise SystemExit("mhctl is not installed: run make setup")
    found: dict[str, Any] = {name: getattr(arguments, name) for name in ("services", "images", "jobs")}
    with nodes(arguments) as each:
        # A first view has the same bytes on any database.
        found["on"] = {
            name: on(node, filled_with, arguments, with_views=name == "SQLite")
            for name, (node, filled_with) in each.items()
        }
    text = report.pages(found)
    sys.stdout.write(f"{measuring.machine()}\n\n{text}")
    if not arguments.no_write:
        report.write("pages", text)


if __name__ == "__main__":
    main()
