"""Replays the history of jobs by their events alone: does it lead to what the rows say now?"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from services.states import (
    ENDED_JOB,
    JOB_TRANSITIONS,
    KINDS,
    SETTLED,
    JobKind,
    JobState,
    ServiceState,
    may_move,
    state_after_success,
    transient_state,
)


class Job(NamedTuple):
    """A job's row, as far as a replay needs it."""

    id: str
    kind: JobKind
    service: str
    status: JobState
    options: str
    before: str
    error: str


_REFUSALS = {"service_running", "service_not_running", "service_not_found"}
"""Codes of jobs that found, when they were about to begin, that they may not; they changed nothing."""


def contradictions(database: Path, *, alone: Collection[str] = ()) -> list[str]:
    """Return what the history contradicts.

    Each job's events must go along the table of transitions, from queued to the one end that its row tells.
    On one service no two jobs may run at a time, each must begin from a state that it may begin from and that
    the one before could have left, and the last must have left what the service's row says.

    Args:
        database: the node's SQLite file.
        alone: services that nothing but jobs has changed; others may have ended by themselves.
    """
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as rows:
        rows.execute("BEGIN")
        jobs = {
            str(row[0]): Job(row[0], JobKind(row[1]), row[2], JobState(row[3]), row[4], row[5], row[6])
            for row in rows.execute(
                "SELECT id, kind, service_ref, status, options, service_state_before, error_code"
                " FROM services_job"
            )
        }
        events = rows.execute("SELECT job_id, status, text FROM services_jobevent ORDER BY id").fetchall()
        services = dict(rows.execute("SELECT id, status FROM services_service").fetchall())
    return _jobs_wrong(jobs, events) + _services_wrong(jobs, events, services, alone)


def _jobs_wrong(jobs: dict[str, Job], events: list[tuple[Any, ...]]) -> list[str]:
    found = []
    told: dict[str, JobState] = {}
    taken: set[str] = set()
    for job_id, status, text in events:
        now = JobState(status)
        was = told.get(job_id)
        if was is None and now is not JobState.QUEUED:
            found.append(f"job {job_id[:8]} begins as {now}")
        elif was is not None and now != was and now not in JOB_TRANSITIONS[was]:
            found.append(f"job {job_id[:8]} went from {was} to {now}")
        elif was is not None and was in ENDED_JOB:
            found.append(f"job {job_id[:8]} had ended as {was}, and then was {now}")
        told[job_id] = now
        if text.startswith("taken by"):
            if job_id in taken:
                found.append(f"job {job_id[:8]} was taken twice")
            taken.add(job_id)
    for job in jobs.values():
        if told.get(job.id) != job.status:
            found.append(f"job {job.id[:8]} is {job.status}, its events say {told.get(job.id)}")
    return found


def _services_wrong(
    jobs: dict[str, Job], events: list[tuple[Any, ...]], services: dict[str, str], alone: Collection[str]
) -> list[str]:
    found = []
    working: dict[str, str] = {}
    could_be: dict[str, set[ServiceState]] = {}
    for job_id, status, text in events:
        job = jobs[job_id]
        if not job.service or KINDS[job.kind].allowed == frozenset():
            continue
        label = f"job {job.kind} {job_id[:8]}"
        now = JobState(status)
        if now is JobState.RUNNING and text.startswith("taken by"):
            if job.service in working:
                found.append(f"{label} began while {working[job.service][:8]} worked on the same service")
            working[job.service] = job_id
            if job.before and job.error not in _REFUSALS:
                found += _begins_wrong(label, job, could_be.get(job.service), job.service in alone)
        elif now in ENDED_JOB and working.get(job.service) == job_id:
            del working[job.service]
            if job.before and job.error not in _REFUSALS:
                could_be[job.service] = _after(job, now)
    for service, states in could_be.items():
        if service in working:
            continue
        now_is = services.get(service)
        if now_is is None:
            if states:
                found.append(f"service {service[:8]} has no row, its history says {sorted(states)}")
        elif not _reachable(states, ServiceState(now_is), service in alone):
            found.append(f"service {service[:8]} is {now_is}, its history says {sorted(states)}")
    return found


def _begins_wrong(label: str, job: Job, states: set[ServiceState] | None, alone: bool) -> list[str]:
    before = ServiceState(job.before)
    if before not in KINDS[job.kind].allowed:
        return [f"{label} began from {before}"]
    if states and not _reachable(states, before, alone):
        return [f"{label} began from {before}, its history says {sorted(states)}"]
    return []


def _reachable(states: set[ServiceState], state: ServiceState, alone: bool) -> bool:
    """Tell whether a service in one of `states` can be in `state` without a job: what it did by itself."""
    if alone:
        return state in states
    return any(may_move(each, state) for each in states) and state in SETTLED


def _after(job: Job, end: JobState) -> set[ServiceState]:
    """Return the states that a job's end may leave; none for a service that is deleted."""
    before = ServiceState(job.before)
    if end is JobState.SUCCEEDED:
        if job.kind is JobKind.DELETE_SERVICE:
            return set()
        state = state_after_success(job.kind, leave_running='"leave_running": true' in job.options)
        return {state or before}
    during = transient_state(job.kind, before)
    # What a failure leaves is read from the node; it must be a state that the service can fall to from there.
    return {before} | ({state for state in SETTLED if may_move(during, state)} if during else set())
