"""`make bench-peers`: the same server checkpointed and restored by Miehistö, bare CRIU and container engines.

One round is every contender once, so that a machine that slows down slows all of them. Writes no page.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import bare, engines
from benchmarks.contenders import Bare, Contender, Miehisto, Place, Plain, Podman
from benchmarks.engines import Engines
from benchmarks.measuring import Sample, timed
from benchmarks.node import Node, wait_for
from scripts.command import SetupError
from worker import namespaces, orphans

# What a contender that does not work on this host raises; it becomes a remark.
_FAILURES = (OSError, RuntimeError, LookupError, ValueError, subprocess.SubprocessError, SetupError)


def ways() -> list[tuple[str, bool]]:
    """Return the ways to measure, as title and `keep_probe`: where /run is no tmpfs, without one and with."""
    if namespaces.is_tmpfs("/run"):
        return [("On this host", False)]
    return [("On this host as it is", False), ("With a tmpfs on /run for the others", True)]


def measure(node: Node, scratch: Path, criu: str, pairs: int, *, keep_probe: bool) -> dict[str, Any]:
    """Time `pairs` rounds of every contender that works on this host.

    Args:
        node: a running node.
        scratch: an empty folder on the disk of its pool.
        criu: the CRIU that all of them shall use.
        keep_probe: give the others a tmpfs on /run where the host has none.
    Returns:
        times, name → {"dump": Sample, "restore": Sample}, Miehistö first; and remarks, in sentences.
    Raises:
        RuntimeError: Miehistö itself does not work. What is wrong with another one becomes a remark.
    """
    stop = threading.Event()
    leftovers = engines.Leftovers()

    def work() -> dict[str, Any]:
        with bare.namespace() as root:
            return _measure(Place(node, scratch, criu, root, keep_probe), pairs, stop)

    try:
        # A thread, because only a thread can leave its mount namespace alone.
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            try:
                return done.result()
            except BaseException:
                stop.set()
                raise
    finally:
        leftovers.remove()
        orphans.reap()


def _measure(place: Place, pairs: int, stop: threading.Event) -> dict[str, Any]:
    remarks = ["Only Miehistö's dump ends when the image is summed and synced to the disk."]
    times: dict[str, dict[str, list[float]]] = {}
    used: dict[str, list[str]] = {}
    with _contenders(place, remarks) as works:

        def drop(one: Contender, error: Exception) -> None:
            if isinstance(one, Miehisto):
                raise error
            works.remove(one)
            times.pop(one.name, None)
            remarks.append(f"{one.name} does not work on this host: {_first_line(error)}")

        for one in list(works):
            if stop.is_set():
                break
            try:
                one.do(one.start)
                wait_for(one.port)
                # A first time for nothing: caches are filled, and it is seen who works at all.
                version = one.do(partial(_round, one, {"dump": [], "restore": []}))
                used.setdefault(version, []).append(one.name)
                times[one.name] = {"dump": [], "restore": []}
            except _FAILURES as error:
                drop(one, error)
        for _ in range(pairs):
            for one in list(works):
                if stop.is_set():
                    break
                try:
                    one.do(partial(_round, one, times[one.name]))
                except _FAILURES as error:
                    drop(one, error)
    remarks += [f"CRIU {version} by its own word: {', '.join(names)}." for version, names in used.items()]
    samples = {
        name: {verb: Sample(values) for verb, values in verbs.items()} for name, verbs in times.items()
    }
    return {"times": samples, "remarks": remarks}


def _round(one: Contender, times: dict[str, list[float]]) -> str:
    """Dump and restore once; return the CRIU that was at work."""
    times["dump"].append(timed(one.dump))
    version = one.criu_version()
    _pause()
    one.after_dump()
    times["restore"].append(timed(one.restore))
    wait_for(one.port)
    _pause()
    one.after_restore()
    _pause()
    return version


def _pause() -> None:
    """Let what a contender does after its answer, such as an engine's clean-up, not fall on the next one."""
    time.sleep(0.25)
    orphans.reap()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or repr(error)


@contextlib.contextmanager
def _contenders(place: Place, remarks: list[str]) -> Iterator[list[Contender]]:
    """Yield all contenders that can be had, and end them."""
    mixed_groups = engines.has_mixed_groups()
    remarks.append(engines.keep_kernel_probe(place.criu) if place.keep_probe else "")
    found: list[Contender] = [Miehisto(place), Bare(place)]
    inside: list[Contender] = []

    def add_engines() -> None:
        remarks.append(engines.enter())
        peers = Engines(place.scratch / "engines", place.criu, mixed_groups=mixed_groups)
        inside.extend([Plain(place, peers, "crun"), Plain(place, peers, "runc")])
        remarks.append(
            f"crun, runc and podman are those of Debian's {engines.SUITE}, unpacked, not installed. Their "
            "root file system is a copy of the host's Python, their network is the host's."
        )
        remarks.append(
            "An exported checkpoint was made by `--export FILE --compress none`, the others stay in podman's "
            "folder of the container."
        )
        peers.import_image()
        inside.extend([Podman(place, peers, "crun"), Podman(place, peers, "crun", export=True)])
        inside.append(Podman(place, peers, "runc"))

    # A second thread, because bare CRIU needs all of the host's mounts, and crun can't bear them.
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(add_engines).result()
        except _FAILURES as error:
            remarks.append(f"Not all engines could be had: {_first_line(error)}")
        for one in inside:
            one.thread = thread
        found += inside
        remarks[:] = [remark for remark in remarks if remark]
        try:
            yield list(found)
        finally:
            for one in found:
                with contextlib.suppress(*_FAILURES):
                    one.do(one.end)
