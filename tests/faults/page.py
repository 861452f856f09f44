"""Writes docs/reliability.md from the records of a run of the fault suite. Harms nothing itself.

usage: python -m tests.faults.page RECORDS [NOTE]
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine
from benchmarks.report import table

PAGE = Path(__file__).resolve().parents[2] / "docs/reliability.md"
_HEAD = """# Reliability

This page is written by `make test-faults`; nobody edits it. The promise: at any moment, whatever dies, each
service is either running, or in a sealed image that restores, or its end is on record with its cause. Never
none of these, never two of them.

Each fault is done to a real node with real services, at random moments from a seed;
`make test-faults PYTEST_ARGS='--seed N -k WORD'` repeats it. After each round the promise is checked from
outside: the service's own count in its memory, asked over its port; every byte of every image; the process
table (one supervisor a service, nothing stopped, nothing half restored); mounts, firewall tables, zombies;
the rows through the API; and the history of events, which is replayed.

A finding is a round after which any of that was not as it must be, or a job was not settled within 10 s of
a new worker's being ready. `load` is how busy the machine was with other things, too. A service is lost when
it neither runs nor is in an image, and no cause is on record.

A new run replaces this page, with all that an older one has found: what was found and mended stands in the
history of the repository, and in the tests.
"""


def page(records: list[dict[str, Any]], machine: str, day: str, commit: str, note: str = "") -> str:
    """Return the page.

    Args:
        records: as `campaign.Fault` has them; several of one name are runs of one fault, and all count.
        commit: of the code that was harmed.
        note: what a reader should know of these runs.
    """
    faults = merged(records)
    rounds = sum(fault["rounds"] for fault in faults)
    findings = sum(len(fault["findings"]) for fault in faults)
    lost = sum(fault["lost"] for fault in faults)
    text = f"{_HEAD}\nTaken on {day} from commit {commit} on {machine}.{' ' if note else ''}{note}\n\n"
    text += f"**{rounds} rounds, {findings} findings, {lost} services lost.**\n\n"
    rows = []
    for fault in faults:
        told = [fault["rounds"], len(fault["findings"]), fault["lost"], fault["seed"]]
        rows.append([fault["name"], *map(str, told), f"{fault['seconds']:.0f}", str(fault.get("load", ""))])
    text += table(["fault", "rounds", "findings", "lost", "seed", "seconds", "load"], rows)
    for fault in faults:
        text += f"## {fault['name']}\n\n{fault['what']}.\n\n"
        for facts in fault["facts"]:
            text += "".join(f"- {name}: {_told(value)}\n" for name, value in facts.items()) + "\n"
        if fault["findings"]:
            text += "Findings:\n\n" + "".join(f"- {line}\n" for line in fault["findings"]) + "\n"
    return text.rstrip() + "\n"


def merged(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one record a fault: all rounds and findings, each with the seed that repeats it."""
    faults: dict[str, dict[str, Any]] = {}
    for record in records:
        one = record | {
            "findings": [f"seed {record['seed']}, {line}" for line in record["findings"]],
            "facts": [record["facts"]] if record["facts"] else [],
            "seed": str(record["seed"]),
        }
        before = faults.setdefault(record["name"], one)
        if before is not one:
            for name in ("rounds", "findings", "lost", "seconds", "facts"):
                before[name] += one[name]
            before["seed"] += f", {one['seed']}"
            before["load"] = max(before.get("load", 0), one.get("load", 0))
    return list(faults.values())


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_told, value)) or "none"
    return str(value)


def commit() -> str:
    """Return the commit that is checked out; "-dirty" behind it says that there is more than that."""
    words = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    return subprocess.run(words, cwd=PAGE.parent, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Write the page."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    text = page(records, machine(), today, commit(), " ".join(sys.argv[2:]))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
