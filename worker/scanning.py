"""The dry run: can this service be dumped? Looks at its live processes without stopping any.

It says what a dump would: yes, yes with these options, or no because. Knows nothing of jobs and rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from worker import findings, preflight, process, scan_locks, scan_sockets
from worker.criu import GHOST_LIMIT
from worker.errors import JobFailed
from worker.files import shown
from worker.findings import Finding
from worker.scan_files import Files

_NAMESPACES = ("user", "pid", "net", "uts", "ipc", "cgroup", "time_for_children")
"""Of these a service may have the one that its init has; only mount namespaces may be its own."""
_SECOND_LOOK = 0.05
"""Seconds after which a process that is still in state D counts as stuck; most wait for a disk shortly."""
_FIXED = 64 * 1024
_A_PROCESS = 24 * 1024
"""Bytes of an image besides its memory, as seen of CRIU 4.2.1."""
_MOST_FINDINGS = 200


def scan(
    init: int,
    *,
    room: Callable[[], object],
    options: Mapping[str, Any] | None = None,
    carried: int = 0,
) -> dict[str, Any]:
    """Look at a running service.

    Args:
        init: its first process, in this PID namespace.
        room: raises the JobFailed that a dump would, if there is none for the image.
        options: those that the dump would have: tcp_close, tcp_skip_in_flight, ghost_limit (bytes),
            force_irmap (folders).
        carried: bytes of data that the image would hold besides.

    Returns:
        able, verdict (yes, options or no), sentence, options (those to add), findings, counts and an estimate
        of the image's size in bytes; all of it JSON.
    """
    asked = dict(options or {})
    files = Files(int(asked.get("ghost_limit") or GHOST_LIMIT), asked.get("force_irmap") or ())
    found: list[Finding] = []
    threads = 0
    pids = []
    suspects = []
    for pid in process.tree(init):
        status = process.status(pid)
        if not status or status["State"][0] in "ZX":
            continue
        try:
            files.look(pid)
            found += _process(pid, init, status)
        except OSError:
            if process.Process.of(pid) is None:
                continue
            raise
        pids.append(pid)
        threads += int(status.get("Threads", "1"))
        suspects += [pid] * (status["State"][0] == "D")
    found += files.findings
    found += files.terminals_without_other_end()
    found += scan_locks.look(files.locks, [init, *pids])
    sockets = scan_sockets.look(
        init,
        files.sockets,
        close=bool(asked.get("tcp_close")),
        skip_in_flight=bool(asked.get("tcp_skip_in_flight")),
    )
    found += sockets.findings
    found += _stuck(suspects)
    memory = sum(map(preflight.memory, pids))
    size = memory + files.deleted_bytes + carried + _FIXED + _A_PROCESS * len(pids)
    found += _refusal(lambda: preflight.account_for_dump(init))
    found += _refusal(room)
    return _verdict(found) | {
        "processes": len(pids),
        "threads": threads,
        "descriptors": files.descriptors,
        "connections": {"connected": sockets.connected, "waiting": sockets.waiting},
        "listening": sockets.listening,
        "estimate": {
            "image_bytes": size,
            "memory_bytes": memory,
            "deleted_files_bytes": files.deleted_bytes,
        },
    }


def _verdict(found: Iterable[Finding]) -> dict[str, Any]:
    """Return what the findings come to; of several that say the same, one stays."""
    # A service may name its files and sockets as it likes, also as no database and no page could have it.
    told = (each._replace(message=shown(each.message)) for each in found)
    once = {(each.code, each.message): each for each in told}
    order = ("refusal", "option", "warning", "note")
    ordered = sorted(once.values(), key=lambda each: order.index(each.severity))
    refusals = [each for each in ordered if each.severity == "refusal"]
    options: dict[str, Any] = {}
    for each in ordered:
        for name, value in each.options.items():
            known = options.get(name, value)
            options[name] = sorted({*known, *value}) if isinstance(value, list) else max(known, value)
    if refusals:
        verdict = "no"
        more = f" There are {len(refusals) - 1} more reasons." if len(refusals) > 2 else ""
        more = " There is one more reason." if len(refusals) == 2 else more
        sentence = f"No: {refusals[0].message}{more}"
    elif options:
        verdict = "options"
        sentence = f"Yes, with these options: {', '.join(sorted(options))}."
    else:
        verdict = "yes"
        sentence = "Yes: nothing was found that CRIU cannot dump."
    return {
        "able": verdict == "yes",
        "verdict": verdict,
        "sentence": sentence,
        "options": options,
        # A service can have a finding for each of half a million descriptors; the worst come first.
        "findings": [each.as_dict() for each in ordered[:_MOST_FINDINGS]],
    }


def _process(pid: int, init: int, status: Mapping[str, str]) -> list[Finding]:
    found = []
    tracer = int(status.get("TracerPid", "0"))
    if tracer:
        name = process.status(tracer).get("Name", "?")
        found.append(findings.debugged(pid, f"{name} (PID {tracer})"))
    for kind in _NAMESPACES:
        try:
            own, common = os.readlink(f"/proc/{pid}/ns/{kind}"), os.readlink(f"/proc/{init}/ns/{kind}")
        except FileNotFoundError:
            continue
        if own != common:
            found.append(findings.nested_namespace(pid, kind.removesuffix("_for_children")))
    return found


def _stuck(suspects: list[int]) -> list[Finding]:
    """Return those that cannot be interrupted now, and not a moment later either."""
    if not suspects:
        return []
    time.sleep(_SECOND_LOOK)
    states = [(pid, process.status(pid)) for pid in suspects]
    return [
        findings.uninterruptible(pid, now["Name"]) for pid, now in states if now and now["State"][0] == "D"
    ]


def _refusal(look: Callable[[], object]) -> list[Finding]:
    """Return as a finding what the preflight of a dump refuses."""
    try:
        look()
    except JobFailed as failure:
        return [findings.refused(failure.code, failure.message, failure.remedy)]
    return []
