"""Writes docs/reliability.md from the records of a run of the fault suite. Harms nothing itself.

usage: python -m tests.faults.page RECORDS
"""

from __future__ import annotations

import json
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
"""


def page(records: list[dict[str, Any]], machine: str, day: str) -> str:
    """Return the page.

    Args:
        records: one a fault, as `campaign.Fault` has them; of two with one name the later counts.
    """
    faults = list({record["name"]: record for record in records}.values())
    rounds = sum(fault["rounds"] for fault in faults)
    findings = sum(len(fault["findings"]) for fault in faults)
    lost = sum(fault["lost"] for fault in faults)
    text = f"{_HEAD}\nTaken on {day} on {machine}.\n\n"
    text += f"**{rounds} rounds, {findings} findings, {lost} services lost.**\n\n"
    rows = []
    for fault in faults:
        told = [fault["rounds"], len(fault["findings"]), fault["lost"], fault["seed"]]
        rows.append([fault["name"], *map(str, told), f"{fault['seconds']:.0f}", str(fault.get("load", ""))])
    text += table(["fault", "rounds", "findings", "lost", "seed", "seconds", "load"], rows)
    for fault in faults:
        text += f"## {fault['name']}\n\n{fault['what']}.\n\n"
        text += "".join(f"- {name}: {_told(value)}\n" for name, value in fault["facts"].items())
        text += "\n" if fault["facts"] else ""
        if fault["findings"]:
            text += "Findings:\n\n" + "".join(f"- {line}\n" for line in fault["findings"]) + "\n"
    return text.rstrip() + "\n"


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_told, value)) or "none"
    return str(value)


def main() -> None:
    """Write the page."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    PAGE.write_text(page(records, machine(), f"{datetime.now(UTC):%Y-%m-%d}"), encoding="utf-8")


if __name__ == "__main__":
    main()
