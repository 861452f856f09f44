"""The agent: a thread of the worker that keeps rows true while nobody asks for anything.

It says that the node lives, notices within a second what a service does by itself, ends jobs whose worker
died, and sends again what the queue has lost.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from typing import Any

from celery import bootsteps, current_app
from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection

from services import operations
from services.models import Job, Service
from services.states import JobState, ServiceState
from worker import criu, exporting, host, importing, reconcile, supervision
from worker.errors import JobFailed
from worker.paths import Paths

log = logging.getLogger(__name__)

LOOK_EVERY = 0.25
HEARTBEAT_EVERY = 5.0
SWEEP_EVERY = 2.0
TIDY_EVERY = 600.0
RESEND_AFTER = 10.0


class Agent:
    """Watches one node.

    Args:
        paths: the node's folders.
        node: the node's name.
        criu_binary: whose version the heartbeat tells.
    """

    def __init__(self, paths: Paths, node: str, criu_binary: str) -> None:
        self._paths = paths
        self._node = node
        self._criu_binary = criu_binary
        self._seen: dict[str, tuple[int, int]] = {}
        self._watched: dict[str, int] = {}
        self._poll = select.poll()
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
        version = self._criu_version()
        can: dict[str, Any] = dict(host.capabilities(self._criu_binary))
        beat = sweep = tidy = 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            try:
                close_old_connections()
                if now - beat >= HEARTBEAT_EVERY:
                    operations.heartbeat(self._node, version, os.uname().release, can)
                    (self._paths.run_dir / "worker.ready").touch()
                    beat = now
                if now - sweep >= SWEEP_EVERY:
                    reconcile.settle_lost_jobs(self._paths, self._node)
                    reconcile.end_services_without_trace(self._paths, self._node)
                    operations.resend_waiting(self._node, RESEND_AFTER)
                    sweep = now
                if now - tidy >= TIDY_EVERY:
                    importing.sweep(self._paths.images)
                    exporting.sweep(self._paths.archives)
                    tidy = now
                self.look()
            except DatabaseError as error:
                log.warning("the agent cannot write what it sees, and tries again: %s", error)
                self._seen.clear()
                self._stopping.wait(1.0)
            except Exception:
                log.exception("the agent failed at a look, and goes on")
                self._stopping.wait(1.0)
            self._wait()
        connection.close()

    def _criu_version(self) -> str:
        try:
            return criu.version(self._criu_binary)
        except JobFailed as failure:
            log.warning("%s %s", failure.message, failure.remedy)
            return ""

    def look(self) -> None:
        """Bring the rows of services whose state file changed, or whose supervisor ended, up to date."""
        present = set()
        for entry in os.scandir(self._paths.run_dir / "services"):
            present.add(entry.name)
            try:
                found = os.stat(f"{entry.path}/state.json")
            except FileNotFoundError:
                continue
            stamp = (found.st_ino, found.st_mtime_ns)
            if self._seen.get(entry.name) != stamp and self._observe(entry.name):
                self._seen[entry.name] = stamp
        for gone in set(self._seen) - present:
            self._forget(gone)

    def _observe(self, service_id: str) -> bool:
        """Write what is true of a service; False if that has to be looked at again."""
        # Before the look, for a job may end between the look and what is written of it.
        row = Service.objects.filter(pk=service_id)
        changed_at = row.values_list("changed_at", flat=True).first()
        if changed_at is None:
            return False  # a rescan may make its row
        found = reconcile.truth(self._paths, service_id)
        if found is None:
            return True
        if found.state is ServiceState.RUNNING:
            self._watch(service_id)
        if operations.observe(service_id, state=found.state, **found.extras(), as_of=changed_at):
            return True
        # A job that works on the service has the word; what it leaves is looked at once more after it.
        working = Job.objects.filter(service=service_id, status=JobState.RUNNING).exists()
        return not working and row.filter(changed_at=changed_at).exists()

    def _watch(self, service_id: str) -> None:
        self._forget(service_id)
        running = supervision.running(self._paths, service_id)
        descriptor = (running.runmh.open() or running.init.open()) if running else None
        if descriptor is not None:
            self._watched[service_id] = descriptor
            self._poll.register(descriptor, select.POLLIN)

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
        self._agent = Agent(paths, settings.MIEHISTO_NODE, settings.MIEHISTO_CRIU)

    def start(self, _worker: Any) -> None:
        """Start the agent."""
        self._agent.start()

    def stop(self, _worker: Any) -> None:
        """Stop the agent."""
        self._agent.stop()


current_app.steps["worker"].add(AgentStep)
