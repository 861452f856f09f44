"""The checkers themselves: a history that contradicts itself is seen, and a page tells what was found."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from tests.faults.page import page
from tests.faults.replay import contradictions

TABLES = """
CREATE TABLE services_service (id TEXT, status TEXT);
CREATE TABLE services_job (id TEXT, kind TEXT, service_ref TEXT, status TEXT, options TEXT,
    service_state_before TEXT, error_code TEXT);
CREATE TABLE services_jobevent (id INTEGER PRIMARY KEY, job_id TEXT, status TEXT, text TEXT);
"""


def told(tmp_path: Path, service: str, jobs: list[tuple[str, str, str, str]], events: str) -> list[str]:
    """Return what contradicts itself in a history of one service.

    Args:
        service: its state now.
        jobs: id, kind, state and the service's state before of each.
        events: such as ``a:queued a:taken a:succeeded``.
    """
    database = tmp_path / "rows"
    database.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(database)) as rows, rows:
        rows.executescript(TABLES)
        rows.execute("INSERT INTO services_service VALUES ('web', ?)", [service])
        for job, kind, status, before in jobs:
            values = [job, kind, "web", status, "{}", before, ""]
            rows.execute("INSERT INTO services_job VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        for event in events.split():
            job, _, what = event.partition(":")
            status, text = ("running", "taken by node") if what == "taken" else (what, "")
            rows.execute(
                "INSERT INTO services_jobevent (job_id, status, text) VALUES (?, ?, ?)", [job, status, text]
            )
    return contradictions(database, alone=["web"])


def test_the_replay_believes_a_history_that_fits_and_no_other(tmp_path: Path) -> None:
    jobs = [("a", "dump", "succeeded", "running"), ("b", "restore", "succeeded", "dumped")]
    fits = "a:queued a:taken a:running a:succeeded b:queued b:taken b:succeeded"
    assert told(tmp_path, "running", jobs, fits) == []
    assert "is stopped" in told(tmp_path, "stopped", jobs, fits)[0]
    assert any(
        "went from succeeded to failed" in line
        for line in told(tmp_path, "running", jobs, fits + " a:failed")
    )
    twice = told(tmp_path, "running", jobs, fits.replace("a:running", "a:taken"))
    assert any("taken twice" in line for line in twice)
    at_once = "a:queued b:queued a:taken b:taken a:succeeded b:succeeded"
    assert any("began while" in line for line in told(tmp_path, "running", jobs, at_once))
    wrong = [("a", "dump", "succeeded", "running"), ("b", "restore", "succeeded", "stopped")]
    assert any("began from stopped" in line for line in told(tmp_path, "running", wrong, fits))
    assert any("its events say running" in line for line in told(tmp_path, "running", jobs, fits[:-12]))


def test_the_page_adds_up_what_several_runs_of_a_fault_found() -> None:
    record = {"name": "tini killed", "what": "kill -9", "rounds": 3, "lost": 0, "seconds": 2.0, "load": 1.0}
    runs = [
        record | {"seed": 1, "findings": [], "facts": {"ended": {"exited": 3}}},
        record | {"seed": 2, "findings": ["round 1: it is gone"], "facts": {}, "lost": 1},
    ]
    text = page(runs, "a machine", "2026-01-01", "0123abc")
    assert "Taken on 2026-01-01 from commit 0123abc on a machine." in text
    assert "**6 rounds, 1 findings, 1 services lost.**" in text
    assert "| tini killed | 6 | 1 | 1 | 1, 2 | 4 | 1.0 |" in text
    assert "- seed 2, round 1: it is gone" in text and "- ended: exited 3" in text
