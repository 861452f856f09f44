"""From a log of CRIU to a failure that an operator understands. Knows nothing of how CRIU was called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from worker import criu, failures, preflight
from worker.errors import JobFailed


def explained(
    when: Literal["dump", "restore"], image: Path, log: Path, otherwise: JobFailed | None = None
) -> JobFailed:
    """Return the failure that CRIU's log tells of.

    Args:
        when: ``dump`` or ``restore``.
        image: the image's folder, complete or not.
        log: CRIU's log.
        otherwise: what is known besides, for a log that tells nothing known.
    """
    lines = criu.error_lines(log)
    explanation = failures.explain(when, lines)
    if explanation is None:
        return otherwise or JobFailed(
            f"{when}_failed",
            f"CRIU could not {when} the service, for a reason that Miehistö does not know.",
            f"Read CRIU's lines; its whole log is {log}.",
            lines,
        )
    message = explanation.cause
    if explanation.code == "port_in_use":
        message += _holders(image)
    if explanation.code == "pool_full":
        message += _room(image.parent)
    return JobFailed(explanation.code, message, explanation.remedy, lines, explanation.words)


def tail(log: Path, most: int = 64 << 10) -> str:
    """Return the end of a log, whole lines, at most so many bytes; empty if there is none."""
    try:
        with log.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - most)
            file.seek(start)
            text = file.read(most)
    except OSError:
        return ""
    if start:
        text = text.partition(b"\n")[2]
    # A database's text has no NUL.
    return text.decode("utf-8", "replace").replace("\0", "")


def _room(pool: Path) -> str:
    """Return what the pool has left, as a sentence to add."""
    try:
        free = os.statvfs(pool)
    except OSError:
        return ""
    files = f" and room for {free.f_favail} files" if free.f_files else ""
    return f" {pool} has {free.f_bavail * free.f_frsize >> 20} MiB{files} left."


def _holders(image: Path) -> str:
    """Return who holds the ports that the image listens on, as sentences to add."""
    found = ""
    for port in sorted(set(listening_ports(image))):
        holder = preflight.holder_of_port(port)
        if holder:
            found += f" Port {port} is held by {holder}."
    return found


def listening_ports(image: Path) -> list[int]:
    """Return the TCP ports that the processes in an image listen on."""
    sockets = [
        entry["isk"]
        for entry in criu.entries_if_any(image / "files.img")
        if isinstance(entry.get("isk"), dict)
    ]
    # pycriu gives a TCP state as a name or, for the kernel's TCP_LISTEN, as 10.
    return [int(sock["src_port"]) for sock in sockets if sock.get("state") in {"LISTEN", "TCP_LISTEN", 10}]
