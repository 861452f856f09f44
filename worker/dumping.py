"""One dump, from a running service to a sealed image. Knows nothing of jobs.

A service that shall end is ended only after its image is sealed: CRIU asks (its stage "post-dump") while the
service is still frozen and its connections are still held, and lets it go on if the sealing failed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pycriu.rpc_pb2 as rpc

from worker import carry, connections, criu, files, manifest, process
from worker import spec as specs
from worker.durable import write_json
from worker.errors import JobFailed
from worker.explaining import explained
from worker.mending import mend
from worker.process import Process
from worker.sums import GrowingSums
from worker.supervision import Running
from worker.tools import Tools
from worker.trees import TreeRefused

log = logging.getLogger(__name__)

_BY_ITS_OWN_DEATH = 1.0
"""Seconds within which a service has ended into which CRIU had put a trap when it was killed."""


_APART = 0.001
"""Seconds between two images of a service at the least."""


class Dumped(NamedTuple):
    """A sealed image.

    Attributes:
        path: its folder.
        statistics: CRIU's figures, and the time that sums and syncing took; times in microseconds.
    """

    path: Path
    statistics: dict[str, int]


class Dump:
    """One dump in its steps."""

    def __init__(
        self,
        tools: Tools,
        service_id: str,
        image_id: str,
        running: Running,
        account: criu.Account | None,
        leave_running: bool,
        lock: int,
        options: Mapping[str, Any],
        data: carry.Data,
        newest: float,
    ) -> None:
        self.tools = tools
        self.running = running
        self.account = account
        self.leave_running = leave_running
        self.lock = lock
        self.options = dict(options)
        self.data = data
        self.newest = newest
        self.shared: list[str] = []
        self.carried = carry.Figures()
        self.comm = ""
        self.service_id = service_id
        self.image_id = image_id
        self.partial = tools.paths.partial_image(image_id)
        self.final = tools.paths.image(image_id)
        self.work = tools.work_folder(service_id)
        self.sums = GrowingSums(self.partial)
        self.spec = specs.read(tools.paths.spec(service_id))
        self.sealed: dict[str, Any] | None = None
        self.sealing_failed: OSError | TreeRefused | None = None
        self.sealing_seconds = 0.0

    def run(self) -> Dumped:
        """Dump the service.

        Raises:
            JobFailed: it was not dumped; the service runs as before, unless the code says otherwise.
        """
        self.partial.mkdir(mode=0o700)
        try:
            with self.sums:
                answer = self._call()
                if answer.success and self.leave_running and self.sealing_failed is None:
                    self._seal()
            if self.sealed is None or not answer.success:
                raise self._failure()
        except BaseException as error:
            # Once the image is sealed and the service gone, the image is all there is of it, whatever went
            # wrong afterwards.
            if self.sealed is None or not self.running.has_been_killed():
                # Before the image goes, which may take a while: the service's clients wait.
                mend(self.running.init, criu.run_id(self.work / "dump.log"))
                manifest.remove(self.partial)
                manifest.remove(self.final)
                self._refuse_to_call_it_alive(error)
                raise
        figures = criu.statistics(self.work)._asdict()
        if self.data.carried or self.shared:
            figures |= self.carried._asdict()
        if not self.leave_running:
            self._end()
        manifest.add_figures(self.final, figures)
        return Dumped(self.final, {**figures, "sealing_time": round(self.sealing_seconds * 1e6)})

    def _end(self) -> None:
        """Note that the service is its image now, which is true whether or not there is room for the note."""
        self.tools.step("ending the dumped process")
        try:
            connections.service_left(self.tools.paths, self.service_id, self.image_id)
        except OSError as error:
            log.warning("the connections of service %s will not be picked up: %s", self.service_id, error)
        self.running.wait(self.tools.timeout)
        self.tools.paths.state(self.service_id).unlink(missing_ok=True)

    def _call(self) -> rpc.criu_resp:
        tools = self.tools
        if self.account is not None:
            for folder in (self.partial, self.work):
                os.chown(folder, self.account.uid, self.account.gid)
        tools.step("freezing and writing memory")
        call = criu.Call.launch(
            tools.criu, namespace_fd=tools.warm.namespace, account=self.account, keep=self.lock
        )
        try:
            with criu.folders(self.partial, self.work) as (image_fd, work_fd):
                request = rpc.criu_req(type=rpc.DUMP, opts=criu.common_options())
                opts = request.opts
                criu.apply_options(opts, self.options)
                opts.images_dir_fd = image_fd
                opts.work_dir_fd = work_fd
                opts.log_file = "dump.log"
                opts.pid = self.running.init.pid
                opts.leave_running = self.leave_running
                opts.unprivileged = self.account is not None
                opts.external.extend(criu.external_for_dump(self.running.mounts))
                opts.notify_scripts = True
                return call.converse(
                    request, timeout=tools.timeout, on_notify=self._on_notify, subject=self.running.init
                )
        finally:
            call.close()
            os.chown(self.work, 0, 0)

    def _on_notify(self, stage: str, _pid: int) -> bool:
        """Do what wants the service frozen, as CRIU holds it at its stage "post-dump"."""
        if stage == "post-dump":
            self.comm = _comm(self.running.init)
            self._look_at_the_disk()
            if not self.leave_running and self.sealing_failed is None:
                self._seal()
        return self.sealing_failed is None

    def _look_at_the_disk(self) -> None:
        """Record what of the disk the memory believes, and copy it, at the moment that the memory is of."""
        running = self.running
        try:
            found = files.record(
                running.init.pid, self.data.compared, running.mounts, runs_on=self.leave_running
            )
            write_json(self.partial / files.NAME, found, durable=False)
            files.require_readable(self.partial / files.NAME)
            self.shared = carry.shared_memory(found, running.mounts, self.data)
            if self.data.carried or self.shared:
                self.tools.step("carrying data")
                paths = [*self.data.carried, *self.shared]
                self.carried = carry.pack(self.partial, paths, running.mounts, self.data.owner)
        except (OSError, TreeRefused) as error:
            self.sealing_failed = error

    def _seal(self) -> None:
        self.tools.step("sealing image")
        began = time.monotonic()
        running = self.running
        facts = {
            "image": self.image_id,
            "service": self.service_id,
            "spec": self.spec,
            # A clock may have been set back, and the newest image is what a boot restores.
            "created": max(time.time(), self.newest + _APART),
            "leave_running": self.leave_running,
            "options": self.options,
            "criu": _version(self.tools.criu, Path(self.tools.criu).stat().st_mtime_ns),
            "kernel": os.uname().release,
            "machine": os.uname().machine,
            "mounts": running.mounts,
            "pipe": running.pipe,
            "data": self.data.compared,
            "carried": self.data.carried,
            "shared_memory": self.shared,
            "comm": self.comm,
            "pages_bytes": sum(path.stat().st_size for path in self.partial.glob("pages-*.img")),
        }
        try:
            connections.spare_unlocking(self.partial)
            self.sealed = manifest.seal(self.partial, self.final, facts, self.sums)
        except OSError as error:
            self.sealing_failed = error
        self.sealing_seconds = time.monotonic() - began

    def _refuse_to_call_it_alive(self, error: BaseException) -> None:
        """Say so if a CRIU that was killed has taken the service with it: its code was running inside.

        Raises:
            JobFailed: it has.
        """
        killed = isinstance(error, JobFailed) and error.code in {"criu_died", "criu_timeout"}
        if killed and self.running.init.wait(_BY_ITS_OWN_DEATH):
            raise JobFailed(
                "service_died_with_criu",
                "CRIU was killed while its code ran inside the service, and the service ended with it.",
                "Restore an image of it (mhctl image list), or start it anew (mhctl service start).",
                criu.error_lines(self.work / "dump.log"),
            ) from None

    def _failure(self) -> JobFailed:
        if self.sealing_failed is not None:
            if isinstance(self.sealing_failed, TreeRefused):
                return JobFailed(
                    "data_refused",
                    f"The service's data could not be looked at: {self.sealing_failed}",
                    "Declare its data anew (--data, --carry); the service runs as before.",
                )
            return JobFailed(
                "pool_full"
                if self.sealing_failed.errno in {errno.ENOSPC, errno.EDQUOT}
                else "sealing_failed",
                f"The image could not be sealed: {self.sealing_failed.strerror or self.sealing_failed}.",
                "Make room in the pool (mhctl image list), or look at its disk; the service runs as before.",
            )
        return explained("dump", self.partial, self.work / "dump.log")


@cache
def _version(binary: str, _modified: int) -> str:
    """Return the version of a binary, asked for once: starting CRIU costs as much as a small seal."""
    return criu.version(binary)


def _comm(init: Process) -> str:
    """Return the name of the service's own process: the first that its init started; empty without one."""
    for pid in process.children(init.pid):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/comm").read_text(errors="replace").removesuffix("\n")
    return ""
