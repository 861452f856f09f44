"""The promise, looked at from outside: each service runs once, or is in a sealed image, or its end is known.

What is believed is the service's own word over its port, the disk, the process table, the mount table and the
firewall; rows are what is compared with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from tests.faults.campaign import Broken
from tests.faults.kept import Kept
from tests.faults.replay import contradictions
from tests.refusals import mounts_of
from tests.stack import Stack, eventually
from worker import orphans, process
from worker.process import Process

SETTLED_WITHIN = 30.0
"""Seconds after the last job's end within which rows, folders and processes must agree."""

_CRIU = re.compile(r"criu: (dump|restore)\b|[^\0]*criu\0swrk\0")
_RUNMH = re.compile(r"runmh[ \0](\w+)[ \0]([0-9a-f]{32})\b")


_OF_ONE = re.compile(r"/[0-9a-f]{32}/")
"""In the path of a file of one service or one image."""

_OPENED_ONCE, _FOR_A_SERVICE = 16, 2
"""Descriptors that a process opens when it has its first job or first question, and keeps; and those by which
the agent watches a service and holds its output."""


class Host(NamedTuple):
    """What the host has of a node's."""

    mounts: list[str]
    tables: list[str]
    zombies: list[str]
    opened: dict[Process, list[str]]


def host(node: Stack) -> Host:
    """Return what of a node's can be seen on the host."""
    return Host(mounts_of(node), tables(), sorted(_zombies()), _opened(node))


def _opened(node: Stack) -> dict[Process, list[str]]:
    """Return what each of miehistod's own processes has open."""
    found: dict[Process, list[str]] = {}
    for part in ("worker", "site"):
        top = node.parts().get(part, 0)
        for pid in [top, *process.children(top)] if top else []:
            with contextlib.suppress(OSError):
                links = list(Path(f"/proc/{pid}/fd").iterdir())
                if each := Process.of(pid):
                    found[each] = [os.readlink(link) for link in links if link.is_symlink()]
    return found


def tables() -> list[str]:
    """Return CRIU's firewall tables, such as ``table inet CRIU-5``."""
    shown = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return sorted(line for line in shown.stdout.splitlines() if "CRIU" in line)


def rows(node: Stack, query: str, *arguments: str) -> list[tuple[Any, ...]]:
    """Read the node's database (SQLite) beside its processes."""
    database = node.folder / "state/database/db.sqlite3"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(query, arguments).fetchall()


def active_jobs(node: Stack) -> list[str]:
    """Return the ids of the jobs that have not ended."""
    found = [
        job["object_id"]
        for status in ("queued", "running")
        for job in node.api("GET", f"jobs?status={status}&limit=1000").body
    ]
    return sorted(found)


def settle(node: Stack, within: float = 90.0) -> None:
    """Wait until no job is active any more."""
    if eventually(lambda: active_jobs(node) == [], within) is not True:
        left = [node.api("GET", f"jobs/{job}").body for job in active_jobs(node)]
        told = ", ".join(f"{job['kind']} is {job['status']} at {job['step']!r}" for job in left)
        raise Broken(f"jobs have not ended within {within:g} s: {told}")


def holds(
    node: Stack, services: Sequence[Kept], *, before: Host, may_end: bool = False, images: bool = True
) -> None:
    """Check the promise.

    Args:
        services: all of the node's.
        before: what the host had before any fault.
        may_end: a service may have ended, with its cause on record; else it runs or is in an image.
        images: read every byte of every image.

    Raises:
        Broken: a line for each thing that is not as it must be.
    """
    settle(node)

    def wrong() -> list[str]:
        orphans.reap(frozenset([node.daemon.pid] if node.daemon else []))
        found = [line for service in services for line in _wrong_with(service, may_end)]
        return found + wrong_on_disk(node, read=images) + wrong_on_host(node, before, held=_held(services))

    found: list[str] = []

    def all_is_well() -> bool:
        found[:] = wrong()
        return not found

    eventually(all_is_well, SETTLED_WITHIN)
    if not node.environment.get("DATABASE_URL"):  # else the rows are in PostgreSQL
        found += contradictions(node.folder / "state/database/db.sqlite3")
    if found:
        raise Broken("; ".join(found))
    for service in services:
        status = service.row()["status"]
        if status == "running":
            service.must_answer()
        # A restore that is broken off in its last moment has taken the firewall table away.
        service.line_must_hold(awaited=status == "dumped" and bool(set(tables()) - set(before.tables)))


def _held(services: Sequence[Kept]) -> int:
    """Return how many services are images that wait for a client, by one of CRIU's firewall tables each."""
    return sum(service.line is not None and service.row()["status"] == "dumped" for service in services)


def _wrong_with(service: Kept, may_end: bool) -> list[str]:
    row = service.row()
    name = f"service {service.id[:8]} ({row['status']})"
    supervisors = supervisors_of(service.id)
    inits, mains = processes_of(service)
    found = []
    for pid in inits + mains:
        state = process.status(pid).get("State", "gone")[:1]
        if state in "Tt":
            found.append(f"{name}: its process {pid} is left stopped ({state})")
    counted = (len(supervisors), len(inits), len(mains))
    if row["status"] == "running":
        if counted != (1, 1, 1):
            found.append(
                f"{name}: {counted[0]} runmh, {counted[1]} init and {counted[2]} main processes"
                f"{' LOST' if counted[2] == 0 else ''}"
            )
        elif (row["pid"], row["ppid"]) != (mains[0], supervisors[0]):
            found.append(
                f"{name}: its row says {(row['pid'], row['ppid'])}, not {(mains[0], supervisors[0])}"
            )
        return found
    if counted != (0, 0, 0):
        found.append(f"{name}: yet {counted[0]} runmh, {counted[1]} init and {counted[2]} main processes")
    pool = service.node.state / "images"
    if row["status"] == "dumped":
        if row["image"] is None or not (pool / row["image"] / "manifest.json").exists():
            found.append(f"{name}: its image {row['image']} is LOST")
    elif row["status"] not in {"stopped", "exited", "failed", "created"}:
        found.append(f"{name}: that is no state to stay in")
    elif not _cause_is_known(service, row):
        found.append(f"{name}: LOST, for no cause is on record")
    elif not may_end and row["status"] != "stopped":
        found.append(f"{name}: LOST, for it ended: {row['status_reason']}")
    return found


def _cause_is_known(service: Kept, row: dict[str, Any]) -> bool:
    """Tell whether somebody who looks at the service learns why it does not run."""
    if row["status"] == "created":  # its first start was never carried out, and its job says why
        jobs = service.node.api("GET", "jobs?limit=1000").body
        return any(job["service"] == service.id and (job["error"] or {}).get("message") for job in jobs)
    return row["status"] == "stopped" or bool(row["status_reason"])


def supervisors_of(service_id: str) -> list[int]:
    """Return the PIDs of the runmh of a service; a launcher, which is gone in a moment, may be among them."""
    return [pid for pid, words in _command_lines() if (got := _RUNMH.search(words)) and got[2] == service_id]


def processes_of(service: Kept) -> tuple[list[int], list[int]]:
    """Return the PIDs of the inits and of the own processes of a service, wherever they are."""
    wanted = f"{Path(__file__).parent.parent}/programs/witness.py\0{service.port}\0"
    found = [(pid, words) for pid, words in _command_lines() if wanted in words]
    inits = [pid for pid, words in found if words.startswith("tini\0")]
    return inits, [pid for pid, _ in found if pid not in inits]


def criu_processes() -> list[int]:
    """Return the PIDs of each CRIU of this test run's that has a request or waits for one.

    Another run may be on the same host, and whoever asks may be about to kill them.
    """
    ours = set(process.tree(os.getpid()))  # what has lost its parent is this process's
    return [pid for pid, words in _command_lines() if pid in ours and _CRIU.match(words)]


def _command_lines() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((int(folder.name), (folder / "cmdline").read_bytes().decode(errors="replace")))
    return found


def _zombies() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        status = process.status(int(folder.name))
        if status.get("State", "")[:1] == "Z":
            found.append(f"{status['Name']} of {process.status(int(status['PPid'])).get('Name')}")
    return found


def wrong_on_disk(node: Stack, *, read: bool) -> list[str]:
    """Return where the pool and the rows of images differ, and, with `read`, what is damaged."""
    pool = node.state / "images"
    folders = {path.name for path in pool.iterdir()}
    found = [f"the pool has {name}" for name in sorted(folders) if not re.fullmatch("[0-9a-f]{32}", name)]
    known = {image["object_id"]: image for image in node.api("GET", "images").body}
    found += [f"the image {name[:8]} has no row" for name in sorted(folders - set(known)) if name[0] != "."]
    found += [f"the row of image {name[:8]} has no folder" for name in sorted(set(known) - folders)]
    for name in sorted(folders & set(known)) if read else []:
        found += [f"the image {name[:8]}: {line}" for line in damage(pool / name)]
    return found


def damage(image: Path) -> list[str]:
    """Return what is wrong with an image, by its manifest alone and with no help of Miehistö's."""
    try:
        files = json.loads((image / "manifest.json").read_bytes())["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"manifest.json: {error}"]
    found = []
    for name, recorded in files.items():
        try:
            digest = blake3().update_mmap(image / name).hexdigest()
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
            continue
        if digest != recorded["blake3"]:
            found.append(f"{name}: its content is not what was sealed")
    return found


def wrong_on_host(node: Stack, before: Host, held: int = 0) -> list[str]:
    """Return what is left on the host that was not there before.

    Args:
        held: so many firewall tables wait for the clients of images.
    """
    now = host(node)
    most = _OPENED_ONCE + _FOR_A_SERVICE * len(node.api("GET", "services").body)
    found = [f"a CRIU is left at work: {pid}" for pid in criu_processes()]
    for each, links in now.opened.items():
        found += [f"process {each.pid} has {link} open" for link in links if _OF_ONE.search(link)]
        grown = len(links) - len(before.opened.get(each, links))
        if grown > most:
            found.append(f"process {each.pid} has {grown} more descriptors than at first: {sorted(links)}")
    for kind in ("mounts", "tables", "zombies"):
        was, has = getattr(before, kind), getattr(now, kind)
        more = sorted(set(has) - set(was))[held if kind == "tables" else 0 :]
        if more:
            found.append(f"{kind} are left: {', '.join(more)[:300]}")
    return found
