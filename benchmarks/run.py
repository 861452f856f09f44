"""`make bench`: what Miehistö costs over bare CRIU, and where the time goes. Writes docs/performance.md.

What the pages take is measured by `make bench-pages` (pages.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bare, measuring, report
from benchmarks.measuring import Sample, timed
from benchmarks.node import MHCTL, Node, free_port, small, started, wait_for
from worker import process, spares
from worker.supervision import Running

CRIU = os.environ.get("MIEHISTO_CRIU") or "/opt/miehisto/bin/criu"

# A server that has written a gibibyte of memory before it answers.
_LARGE = """
import http.server, os
block = os.urandom(1 << 20)
memory = bytearray().join(block for _ in range(1024))
http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind="127.0.0.1")
"""


# Seconds before each dump, bare or ours, of a service that was just started: CRIU takes longer for the first
# dump of a process than for that of one that it has restored.
_IDLE = 2.0


def large(port: int) -> list[str]:
    """Return the command of a service with 1 GiB of memory."""
    return ["python3", "-c", _LARGE.format(port=port)]


def phases(job: dict[str, Any], began: float, ended: float) -> dict[str, float]:
    """Return the seconds between the points that a job passes, from the operator's key to his prompt."""

    def at(text: str) -> float:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

    steps = [
        (event["step"], at(event["at"]))
        for event in job["events"]
        if event["step"] and event["status"] == "running"
    ]
    points = [("client, HTTP, row", began), ("queue", at(job["queued"])), ("claim", at(job["started"]))]
    points += [*steps, ("answer, client's end", at(job["finished"])), ("", ended)]
    return {name: later - now for (name, now), (_, later) in pairwise(points)}


def against_bare(
    node: Node, scratch: Path, root: Path, command: list[str], port: int, pairs: int
) -> dict[str, Any]:
    """Dump and restore one service in turn by bare CRIU and by mhctl, `pairs` times each."""
    service = node.mhctl("service", "create", "--", *command)
    wait_for(port)
    times: dict[str, list[float]] = {"bare dump": [], "bare restore": [], "dump": [], "restore": []}
    where: dict[str, list[dict[str, float]]] = {"dump": [], "restore": []}

    def ours(verb: str, *words: str) -> str:
        began = time.time()
        said = node.mhctl("service", verb, *words)
        ended = time.time()
        times[verb].append(ended - began)
        job = node.json("job", "show", node.json("job", "list")[0]["object_id"])
        where[verb].append(phases(job, began, ended))
        return Path(said).name

    for _ in range(pairs):
        node.mhctl("service", "restart", service)
        wait_for(port)
        time.sleep(_IDLE)
        _bare_pair(node.running(service), scratch / "image", root, times)
        wait_for(port)
        bare.end(scratch / "image")
        time.sleep(0.6)  # the agent writes that the service has ended
        node.mhctl("service", "start", service)
        wait_for(port)
        time.sleep(_IDLE)
        image = ours("dump", service)
        ours("restore", "--from", image)
        wait_for(port)
        node.mhctl("image", "delete", image)
    node.mhctl("service", "delete", "--stop", service)
    return {
        "samples": {name: Sample(values) for name, values in times.items()},
        "phases": {verb: _medians(rows) for verb, rows in where.items()},
    }


def _bare_pair(running: Running, image: Path, root: Path, times: dict[str, list[float]]) -> None:
    """Bare CRIU works on the tree that runmh made."""
    times["bare dump"].append(timed(lambda: bare.dump(CRIU, running, image)))
    times["bare restore"].append(timed(lambda: bare.restore(CRIU, running, image, root)))


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: Sample([row.get(name, 0.0) for row in rows]).median for name in rows[-1]}


def many(node: Node, scratch: Path, count: int) -> dict[str, float]:
    """Dump `count` small services at once and restore them at once, against as many bare dumps in a row."""
    ports = [free_port() for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        services = list(pool.map(lambda port: node.mhctl("service", "create", "--", *small(port)), ports))
        for port in ports:
            wait_for(port)
        found: dict[str, float] = {}
        images: list[str] = []
        found["dumped at once"] = timed(
            lambda: images.extend(
                Path(said).name for said in pool.map(lambda one: node.mhctl("service", "dump", one), services)
            )
        )
        found["restored at once"] = timed(
            lambda: list(pool.map(lambda one: node.mhctl("service", "restore", "--from", one), images))
        )
        for port in ports:
            wait_for(port)
        trees = [node.running(service) for service in services]

        def in_a_row() -> None:
            for tree in trees:
                bare.dump(CRIU, tree, scratch / f"many-{tree.init.pid}")

        found["bare dumps in a row"] = timed(in_a_row)
        for tree in trees:
            bare.release(scratch / f"many-{tree.init.pid}")
        list(pool.map(lambda one: node.mhctl("image", "delete", "--force", one), images))
        time.sleep(0.6)
        list(pool.map(lambda one: node.mhctl("service", "delete", one), services))
    return found


def client(node: Node) -> Sample:
    """Return the time of `mhctl service list`, whole processes."""
    return Sample([timed(lambda: node.mhctl("service", "list")) for _ in range(20)])


def supervisor(node: Node) -> dict[str, float]:
    """Return a supervisor's size in MiB and its time to start in seconds."""
    port = free_port()
    service = node.mhctl("service", "create", "--", *small(port))
    rows = process.status(node.running(service).runmh.pid)
    node.mhctl("service", "delete", "--stop", service)
    words = supervision_words()
    starts = Sample(
        [timed(lambda: subprocess.run(words, check=False, capture_output=True)) for _ in range(20)]
    )
    return {"MiB resident": int(rows["VmRSS"].split()[0]) / 1024, "seconds to start": starts.median}


def supervision_words() -> list[str]:
    """Return a command that loads all of runmh and ends where it would begin to work."""
    return [*spares.PROGRAM[:-1], spares.PROGRAM[-1].replace("; main()", "")]


def in_a_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread, because only a thread can leave its mount namespace alone."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def scratch_folder(node: Node) -> Iterator[Path]:
    """Yield a folder on the pool's own disk."""
    with tempfile.TemporaryDirectory(dir=node.folder) as name:
        yield Path(name)


def main() -> None:
    """Measure, print, and write docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="pairs for the small service")
    parser.add_argument("--large-pairs", type=int, default=5, help="pairs for the 1 GiB service")
    parser.add_argument("--many", type=int, default=20, help="services dumped at once")
    parser.add_argument("--peers", action="store_true", help="measure container engines instead")
    parser.add_argument("--no-write", action="store_true", help="print only, leave docs/performance.md")
    arguments = parser.parse_args()
    if not Path(MHCTL).exists():
        raise SystemExit("mhctl is not installed: run make setup")
    found: dict[str, Any] = {}
    with started() as node, scratch_folder(node) as scratch:
        if arguments.peers:
            from benchmarks import peers

            for title, keep_probe in peers.ways():
                folder = scratch / f"peers-{keep_probe}"
                folder.mkdir()
                found[title] = peers.measure(node, folder, CRIU, arguments.pairs, keep_probe=keep_probe)
        else:

            def measure() -> None:
                with bare.namespace() as root:
                    for name, command, pairs in (
                        ("small", small, arguments.pairs),
                        ("large", large, arguments.large_pairs),
                    ):
                        port = free_port()
                        found[name] = against_bare(node, scratch, root, command(port), port, pairs)

            found["client"] = client(node)
            found["supervisor"] = supervisor(node)
            in_a_thread(measure)
            found["many"] = many(node, scratch, arguments.many)
    text = report.peers(found) if arguments.peers else report.bare(found)
    sys.stdout.write(f"{measuring.machine()}\n\n{text}")
    if not arguments.no_write:
        report.write("peers" if arguments.peers else "bare", text)
        sys.stderr.write("The pages' section is left as it was: make bench-pages writes it.\n")


if __name__ == "__main__":
    main()
