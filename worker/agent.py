"""The agent: a thread of the worker that keeps rows true while nobody asks for anything.

It says that the node lives, notices within a second what a service does by itself, ends jobs whose worker
died, and sends again what the queue has lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import threading
import time
from collections.abc import Sequence
from typing import Any

from celery import bootsteps, current_app
from celery.platforms import EX_FAILURE
from django.conf import settings
from django.db import DatabaseError, close_old_connections, connections

from services import bell, operations
from services.models import Job, Service
from services.resending import Resender
from services.states import JobState
from worker import cgroups, criu, exporting, forks, host, importing, manifest, reconcile, supervision
from worker.answering import Answerer
from worker.background import Background
from worker.booting import Boot
from worker.errors import JobFailed
from worker.paths import Paths
from worker.reading import Reader
from worker.replacing import Replacing, Untaken
from worker.runmh.log import RotatedLog
from worker.sampling import Sampler
from worker.supervision import Running

log = logging.getLogger(__name__)

LOOK_EVERY = 0.25
HEARTBEAT_EVERY = 5.0
SWEEP_EVERY = 2.0
TIDY_EVERY = 600.0
TAKE_OVER_WITHIN = 5.0
TAKE_OVERS_AT_ONCE = 3
TAKE_OVER_AGAIN_EVERY = 10.0


class Agent:
    """Watches one node.

    Args:
        paths: the node's folders.
        node: the node's name.
        criu_binary: whose version the heartbeat tells.
        patience: seconds that CRIU may work on after its worker has died.
        alone: seconds that a service may run on without a supervisor where its policy knows a way out.
    """

    def __init__(self, paths: Paths, node: str, criu_binary: str, patience: float, alone: float) -> None:
        self._paths = paths
        self._node = node
        self._criu_binary = criu_binary
        self._seen: dict[str, tuple[int, int]] = {}
        self._watched: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._untaken: dict[str, Untaken] = {}
        self._resender = Resender(node)
        self._boot = Boot(paths, node, alone)
        self._replacing = Replacing(self._boot, alone)
        self._patience = patience
        self._waited: dict[str, float] = {}
        self._poll = select.poll()
        os.register_at_fork(after_in_child=self._let_go)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="agent", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching and wait for the end of the present look."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def run(self) -> None:
        """Watch until told to stop. A database that is away is waited for."""
        cgroups.make_room()
        cgroups.sweep()
        with forks.kept_away():  # for as long as their time limits at the most
            version = self._criu_version()
            can: dict[str, Any] = dict(host.capabilities(self._criu_binary))
        beat = sweep = tidy = 0.0
        # This process forks the pool's, also to replace one that was killed.
        mine = connections["default"]
        mine.inc_thread_sharing()
        forks.close_before_each(mine.close)
        while not self._stopping.is_set():
            now = time.monotonic()
            try:
                new = self.keep()
                with forks.kept_away():
                    close_old_connections()
                    if now - beat >= HEARTBEAT_EVERY:
                        can["policy"] = host.rules()
                        operations.heartbeat(
                            self._node, version, os.uname().release, can | host.pool(self._paths)
                        )
                        (self._paths.run_dir / "worker.ready").touch()
                        beat = now
                    if now - sweep >= SWEEP_EVERY:
                        self._boot.look()
                        reconcile.settle_lost_jobs(self._paths, self._node, self._overdue)
                        reconcile.end_services_without_trace(self._paths, self._node)
                        self._resender.sweep()
                        self._replacing.sweep(self._untaken)
                        self._boot.sweep()
                        sweep = now
                    if now - tidy >= TIDY_EVERY:
                        importing.sweep(self._paths)
                        manifest.sweep(self._paths.images)
                        exporting.sweep(self._paths.archives)
                        private = host.private_folders(self._paths)
                        if not private.ok:
                            log.warning("%s. %s", private.detail, private.remedy)
                        tidy = now
                    self.look(new)
            except DatabaseError as error:
                log.warning("the agent cannot write what it sees, and tries again: %s", error)
                self._seen.clear()
                self._stopping.wait(1.0)
            except Exception:
                log.exception("the agent failed at a look, and goes on")
                self._stopping.wait(1.0)
            self._wait()
        mine.close()

    def _overdue(self, job_id: str) -> bool:
        """Tell whether a lost job has been waited for long enough."""
        now = time.monotonic()
        return now - self._waited.setdefault(job_id, now) >= self._patience

    def _criu_version(self) -> str:
        try:
            return criu.version(self._criu_binary)
        except JobFailed as failure:
            log.warning("%s %s", failure.message, failure.remedy)
            return ""

    def keep(self) -> list[tuple[str, tuple[int, int], bool]]:
        """Watch over services whose state file changed, or whose supervisor ended; needs no database.

        Returns:
            Of each: its id, the stamp of its state, and whether it has what it needs.
        """
        present = {}
        for entry in os.scandir(self._paths.run_dir / "services"):
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(f"{entry.path}/state.json")
                present[entry.name] = (found.st_ino, found.st_mtime_ns)
        for gone in (self._seen.keys() | self._outputs.keys() | self._untaken.keys()) - present.keys():
            self._forget(gone)
            self._hold(gone, None)
            self._untaken.pop(gone, None)
        new = {name: stamp for name, stamp in present.items() if self._seen.get(name) != stamp}
        return [(name, stamp, self._keep(name)) for name, stamp in new.items()]

    def look(self, new: Sequence[tuple[str, tuple[int, int], bool]]) -> None:
        """Bring the rows of these services, as `keep` returned them, up to date."""
        for name, stamp, kept in new:
            if self._observe(name) and kept:
                self._seen[name] = stamp

    def _observe(self, service_id: str) -> bool:
        """Write what is true of a service; False if that has to be looked at again."""
        # Before the look, for a job may end between the look and what is written of it.
        row = Service.objects.filter(pk=service_id)
        known = row.values_list("changed_at", "restore_on_boot").first()
        if known is None:
            return False  # a rescan may make its row
        changed_at, comes_back = known
        found = reconcile.truth(self._paths, service_id)
        if found is None:
            return True
        untaken = self._untaken.get(service_id)
        if untaken is not None and untaken.tries >= TAKE_OVERS_AT_ONCE:
            outlook = self._replacing.outlook(service_id, comes_back=comes_back)
            found = found._replace(reason=reconcile.unwatched(untaken.why, outlook))
        if operations.observe(service_id, state=found.state, **found.extras(), as_of=changed_at):
            return True
        # A job that works on the service has the word; what it leaves is looked at once more after it.
        working = Job.objects.filter(service=service_id, status=JobState.RUNNING).exists()
        return not working and row.filter(changed_at=changed_at).exists()

    def _keep(self, service_id: str) -> bool:
        """Watch a service that runs, by its supervisor; give it one if that was killed.

        Returns:
            False if it runs without a supervisor even so: that has to be tried again.
        """
        self._forget(service_id)
        running = supervision.running(self._paths, service_id)
        self._hold(service_id, running)
        descriptor = running.runmh.open() if running is not None else None
        if running is None or descriptor is not None:
            self._untaken.pop(service_id, None)
        if running is None:
            return True
        if descriptor is not None:
            self._watched[service_id] = descriptor
            self._poll.register(descriptor, select.POLLIN)
            return True
        return self._take_over(service_id) and self._keep(service_id)

    def _take_over(self, service_id: str) -> bool:
        """Give a service another supervisor; False if it has none yet. After a few failures it may wait."""
        before = self._untaken.get(service_id)
        if before is not None and time.monotonic() < before.again:
            return False
        output = self._outputs.get(service_id)
        try:
            return supervision.take_over(self._paths, service_id, output, TAKE_OVER_WITHIN)
        except JobFailed as failure:
            now = time.monotonic()
            tries = before.tries + 1 if before is not None else 1
            pause = TAKE_OVER_AGAIN_EVERY if tries >= TAKE_OVERS_AT_ONCE else 0.0
            since = before.since if before is not None else now
            self._untaken[service_id] = Untaken(since, tries, now + pause, failure)
            log.warning(
                "service %s is not taken over: %s", service_id, failure.message, extra={"service": service_id}
            )
            return False

    def _hold(self, service_id: str, running: Running | None) -> None:
        """Hold a read end of a running service's output, so that it outlives its supervisor's death."""
        held = self._outputs.get(service_id)
        if held is not None and (running is None or os.fstat(held).st_ino != running.pipe):
            if service_id in self._untaken:
                self._log_rest(service_id, held)
            os.close(self._outputs.pop(service_id))
            held = None
        if held is None and running is not None:
            try:
                found = supervision.output_of(running)
            except OSError as error:  # it is tried again when a supervisor takes over
                log.warning("the output of service %s cannot be held: %s", service_id, error)
                return
            if found is not None:
                self._outputs[service_id] = found

    def _log_rest(self, service_id: str, output: int) -> None:
        """Write into a service's log what it had printed last, with no supervisor to do so."""
        with contextlib.suppress(OSError):
            service_log = RotatedLog(str(self._paths.log(service_id)))
            while data := os.read(output, 65536):
                service_log.write(data)

    def _let_go(self) -> None:
        """Close in a new process of the worker's pool what is only this one's to watch."""
        for descriptor in (*self._watched.values(), *self._outputs.values()):
            os.close(descriptor)
        self._watched.clear()
        self._outputs.clear()

    def _forget(self, service_id: str) -> None:
        self._seen.pop(service_id, None)
        descriptor = self._watched.pop(service_id, None)
        if descriptor is not None:
            self._poll.unregister(descriptor)
            os.close(descriptor)

    def _wait(self) -> None:
        """Sleep until it is time to look again, or a supervisor has ended."""
        ended = {descriptor for descriptor, _ in self._poll.poll(LOOK_EVERY * 1000)}
        for service_id in [name for name, descriptor in self._watched.items() if descriptor in ended]:
            self._forget(service_id)


class AgentStep(bootsteps.StartStopStep):
    """Starts the agent with the worker's main process and stops it with it."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        paths = Paths(settings.MIEHISTO_STATE_DIR, settings.MIEHISTO_RUN_DIR, settings.MIEHISTO_LOG_DIR)
        self._agent = Agent(
            paths,
            settings.MIEHISTO_NODE,
            settings.MIEHISTO_CRIU,
            settings.MIEHISTO_JOB_TIMEOUT,
            settings.MIEHISTO_TAKE_OVER_TIMEOUT,
        )
        self._beside: list[Background | Answerer] = [
            Reader(paths, settings.MIEHISTO_NODE),
            Sampler(settings.MIEHISTO_NODE),
            Answerer(paths, settings.MIEHISTO_NODE, bell.redis_url(settings.CELERY_BROKER_URL)),
        ]

    def start(self, _worker: Any) -> None:
        """Start the agent."""
        # Two descriptors of each running service; a service's own limits are runmh's to set.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._agent.start()
        for each in self._beside:
            each.start()

    def close(self, worker: Any) -> None:
        """End at once, for miehistod to start another, where Celery has met what it cannot bear.

        A message that is no message does that. Celery's own end would wait for ever for its pool, which
        nobody hears any more.
        """
        if worker.exitcode == EX_FAILURE:
            os._exit(EX_FAILURE)

    def stop(self, _worker: Any) -> None:
        """Stop the agent."""
        for each in self._beside:
            each.stop()
        self._agent.stop()


current_app.steps["worker"].add(AgentStep)
