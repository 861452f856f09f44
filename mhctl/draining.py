"""`mhctl service drain`: dumps many services at once, in a bounded time, and says which it could not."""

from __future__ import annotations

import time

from mhctl.client import segment
from mhctl.errors import MhctlError, Unreachable
from mhctl.jobs import client_of
from mhctl.text import plain, put, put_json
from mhctl.waiting import ENDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mhctl.client import Client
    from mhctl.commandline import Parsed

    Json = dict[str, Any]

PATIENCE = 300  # seconds for all of them, unless told otherwise
PAUSE = 0.25  # seconds between two looks


class Dump:
    """One service on its way into an image.

    Attributes:
        job: as it was last seen; None until the daemon has taken it.
        why_not: why the service is not dumped; "" while that may still come, and when it is.
    """

    def __init__(self, service: Json) -> None:
        self.service = service
        self.job: Json | None = None
        self.why_not = ""

    @property
    def done(self) -> bool:
        return bool(self.why_not) or (self.job is not None and self.job["status"] in ENDED)

    def go_on(self, client: Client, options: Json) -> None:
        """Ask for the dump if nobody has taken it, or see how it is.

        Raises:
            Unreachable: the daemon is not there at present.
        """
        try:
            if self.job is None:
                path = f"services/{segment('service', self.service['object_id'])}/dump"
                self.job = client.call("POST", path, body=options)
            else:
                self.job = client.call("GET", f"jobs/{segment('job', self.job['object_id'])}")
        except Unreachable:
            raise
        except MhctlError as error:
            if error.code != "job_active":  # else what was asked for before goes first
                self.why_not = error.message
            return
        if self.done and self.job["status"] != "succeeded":
            told = self.job.get("error") or {}
            self.why_not = str(told.get("message") or f"The dump was {self.job['status']}.")

    def give_up(self, client: Client, seconds: int) -> None:
        """Time is up: a dump that no worker has begun shall not begin later."""
        self.why_not = f"It was not dumped within {seconds} seconds."
        if self.job is not None:
            try:
                client.call("POST", f"jobs/{segment('job', self.job['object_id'])}/cancel")
            except MhctlError:
                self.why_not += f" Job {self.job['object_id']} goes on."


def drain(parsed: Parsed, body: Json) -> None:
    """Dump every running service that shall come back after a boot, or all that run with --all.

    Args:
        body: the options of each dump as the API has them.

    Raises:
        MhctlError: some could not be dumped; it names each with its reason.
    """
    options = parsed.options
    client = client_of(parsed)
    seconds = PATIENCE if options["timeout"] is None else options["timeout"]
    deadline = time.monotonic() + seconds
    rows = client.rows("services")
    dumps = [Dump(row) for row in rows if options["all"] or row.get("restore_on_boot")]
    while True:
        try:
            for dump in dumps:
                if not dump.done:
                    dump.go_on(client, body)
        except Unreachable:  # miehistod starts a dead site again
            if time.monotonic() >= deadline:
                raise
        if all(dump.done for dump in dumps):
            break
        if time.monotonic() >= deadline:
            for dump in dumps:
                if not dump.done:
                    dump.give_up(client, seconds)
            break
        time.sleep(PAUSE)
    _report(parsed, dumps)


def _report(parsed: Parsed, dumps: list[Dump]) -> None:
    if parsed.options["json"]:
        put_json(
            [
                {"service": dump.service["object_id"], "job": dump.job, "why_not": dump.why_not or None}
                for dump in dumps
            ]
        )
    else:
        put("".join(f"{_path(dump.job)}\n" for dump in dumps if dump.job and not dump.why_not))
    failed = [dump for dump in dumps if dump.why_not]
    if failed:
        raise MhctlError(
            f"{len(failed)} of {len(dumps)} services could not be dumped.",
            remedy="They run on. Where one has an older image, a boot brings it back from that.",
            code="not_drained",
            notes=[f"{_name(dump.service)}: {plain(dump.why_not)}" for dump in failed],
            shown=True,
        )


def _path(job: Json) -> str:
    return str((job.get("result") or {}).get("path") or job.get("image"))


def _name(service: Json) -> str:
    name = service.get("name")
    return f"{service['object_id']} ({name})" if name else str(service["object_id"])
