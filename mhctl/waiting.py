"""Waiting for a job by one long request, its steps shown on a terminal; knows no verbs."""

from __future__ import annotations

import os
import sys
import time

from mhctl.client import PATIENCE, STREAM
from mhctl.errors import INTERRUPTED, ConnectionLost, MhctlError, Unreachable
from mhctl.jsontext import json_value
from mhctl.text import plain
from mhctl.transport import START_IT, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mhctl.client import Client
    from mhctl.transport import Response

    Json = dict[str, Any]

LONGEST_WAIT = 3600  # seconds the API holds an answer
ENDED = frozenset(("succeeded", "failed", "errored", "lost", "cancelled"))
RETRY_PAUSES = (
    0.2,
    0.5,
    1.0,
    2.0,
    3.0,
    5.0,
)  # together longer than miehistod takes to start a dead site again


class Progress:
    """A job's steps on stderr: one rewritten line on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self.rewrites = os.environ.get("TERM", "dumb") != "dumb"
        self.dirty = False

    def say(self, text: str) -> None:
        """Shows what the job is doing now."""
        if not (self.shown and text):
            return
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except OSError:
            width = 80
        text = plain(text)[: width - 1]
        sys.stderr.write(f"\r\033[K{text}" if self.rewrites else f"{text}\n")
        sys.stderr.flush()
        self.dirty = self.rewrites

    def clear(self) -> None:
        """Takes the line away again, so that the result stands alone."""
        if self.dirty:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self.dirty = False


class Wait:
    """One job-making request and what follows.

    Args:
        limit: seconds to wait for the job's end; None waits as long as it takes.
    """

    def __init__(self, client: Client, *, limit: float | None = None) -> None:
        self.client = client
        self.deadline = None if limit is None else time.monotonic() + limit
        self.progress = Progress()
        self.job_id = ""

    def run(self, method: str, path: str, body: Json | None, *, query: Json | None = None) -> Json:
        """Asks for a job and waits for its end.

        Returns:
            the ended job.

        Raises:
            ApiError, Unreachable: the job was not taken. MhctlError: waiting ended before the job did.
        """
        try:
            return self._run(method, path, body, query)
        except KeyboardInterrupt:
            self.progress.clear()
            if self.job_id:
                message = f"Interrupted; job {self.job_id} goes on."
                remedy = f"Wait for it with `mhctl job wait {self.job_id}`."
            else:
                message = "Interrupted; a job that miehistod took goes on."
                remedy = "See `mhctl job list`."
            raise MhctlError(message, remedy=remedy, code="interrupted", exit_code=INTERRUPTED) from None
        finally:
            self.progress.clear()

    def _run(self, method: str, path: str, body: Json | None, query: Json | None) -> Json:
        job: Json = {}
        attempt = 0
        while True:
            try:
                job = self._ask(method, path, body, query)
                attempt = 0
            except Unreachable as error:
                # Without an id nobody knows whether the job was taken: asking again might make a second one.
                if not self.job_id or attempt >= len(RETRY_PAUSES):
                    raise self._still_there(error) from error
                time.sleep(RETRY_PAUSES[attempt])
                attempt += 1
            if job.get("status") in ENDED:
                return job
            if self.deadline is not None and time.monotonic() >= self.deadline:
                raise MhctlError(
                    f"Job {self.job_id} has not ended yet, it is {job.get('status') or 'on its way'}.",
                    remedy=f"Wait longer with `mhctl job wait {self.job_id}`.",
                    code="wait_timeout",
                )
            method, path, body, query = "GET", f"jobs/{quote(self.job_id)}", None, None

    def _still_there(self, error: Unreachable) -> Unreachable:
        if not self.job_id:
            return error
        return ConnectionLost(
            f"{error.message.removesuffix('.')}; job {self.job_id} goes on if its worker lives.",
            remedy=f"Wait for it with `mhctl job wait {self.job_id}`.",
            code=error.code,
        )

    def _ask(self, method: str, path: str, body: Json | None, query: Json | None) -> Json:
        seconds = LONGEST_WAIT
        if self.deadline is not None:
            seconds = max(0, min(seconds, int(self.deadline - time.monotonic() + 0.999)))
        response = self.client.open(
            method, path, query={**(query or {}), "wait": seconds}, body=body, accept=STREAM, timeout=PATIENCE
        )
        try:
            _, found, reference = response.headers.get("location", "").rpartition("/jobs/")
            if found:
                self.job_id = reference.strip("/")
            return self._follow(response)
        except ValueError as error:
            raise ConnectionLost(
                "The daemon's answer is no JSON.", remedy=START_IT, code="not_reached"
            ) from error
        finally:
            response.close()

    def _follow(self, response: Response) -> Json:
        if STREAM not in response.headers.get("content-type", ""):
            return self._note_job(json_value(response.read()))
        job: Json = {}
        for line in response.lines():
            if not line.strip():
                continue  # a keep-alive
            part = json_value(line)
            if "job" in part:
                job = self._note_job(part["job"])
            elif "event" in part:
                event = part["event"]
                self.job_id = str(event.get("job") or self.job_id)
                self.progress.say(str(event.get("step") or event.get("text") or event.get("status") or ""))
            self._note_warning(part)
        if not job:
            raise ConnectionLost(
                "The daemon ended its answer before the job's end.",
                remedy="See `mhctl job list`.",
                code="not_reached",
            )
        return job

    def _note_job(self, job: Json) -> Json:
        self.job_id = str(job.get("object_id") or self.job_id)
        self._note_warning(job)
        return job

    def _note_warning(self, part: Json) -> None:
        if warning := part.get("warning"):
            self.progress.clear()
            sys.stderr.write(f"mhctl: warning: {plain(str(warning))}\n")
