"""What a job does on a node: start, stop, dump, restore a service; verify and delete an image.

One way through each: lock, preflight, act, manifest. It knows folders and processes, but no rows: what it is
told comes as arguments, what it did goes back as values.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from worker import (
    claims,
    connections,
    encryption,
    exporting,
    importing,
    lines,
    locks,
    manifest,
    preflight,
    putback,
    scanning,
    supervision,
)
from worker import spec as specs
from worker.dumping import Dump, Dumped
from worker.durable import write_json
from worker.errors import JobFailed
from worker.paths import archive_name
from worker.policy import Policy
from worker.restoring import restore
from worker.supervision import Running
from worker.tools import Tools

_FOR_A_TAKE_OVER = 5.0
"""Seconds to wait for who gives the service a new supervisor, which takes a tenth of one."""

_COLD_START = "Or start it anew, without its memory (mhctl service start)."


class Ended(NamedTuple):
    """How a service ended: an exit code or a signal number, never both."""

    exit_code: int | None
    exit_signal: int | None


class Engine:
    """The node's hands.

    Args:
        tools: what it works with.
    """

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.paths = tools.paths
        self.step = tools.step

    @contextmanager
    def _alone(self, service_id: str) -> Iterator[int]:
        """Hold a service against every other job, also one of another worker on this node.

        Yields:
            The lock's descriptor, which CRIU inherits: a worker that dies does not free what CRIU works on.
        """
        folder = self.paths.runtime(service_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locks.held(self.paths.job_lock(service_id), _FOR_A_TAKE_OVER) as lock:
            if lock is None:
                raise JobFailed(
                    "service_busy",
                    "Another job works on this service.",
                    "Wait for it (mhctl job list), then try again.",
                )
            putback.settle(self.paths, service_id)
            yield lock

    @contextmanager
    def _admitted(self, policy: Policy, service_id: str) -> Iterator[None]:
        """Keep the number of services that live within the policy while one more comes to life.

        Raises:
            JobFailed: there are as many as there may be.
        """
        if policy.services is None:
            yield
            return
        with locks.waited_for(self.paths.admission_lock):
            policy.check_number(len(supervision.living(self.paths) - {service_id}))
            yield

    def permitted(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return a spec as it may be run now.

        Raises:
            JobFailed: it has not the shape of one, or root's policy forbids it.
        """
        return self.tools.policy().applied(specs.checked(spec))

    def _permitting(self, image_id: str, facts: dict[str, Any]) -> Policy:
        """Return root's policy if it lets an image run; the manifest's spec is then within its limits.

        Raises:
            JobFailed: it does not, or this host cannot set the limits.
        """
        policy = self.tools.policy()
        specs.checked(facts["spec"])
        facts["spec"] = policy.check_image(facts)
        preflight.check_limits(facts["spec"]["limits"])
        preflight.check_insides(self.paths.image(image_id), policy)
        return policy

    def start(self, service_id: str, spec: dict[str, Any]) -> Running:
        """Start a service from its spec.

        Args:
            spec: argv, user, group, cwd, env, binds, data, privileges, limits.

        Raises:
            JobFailed: it could not be started, or ended within `settle` seconds.
        """
        with self._alone(service_id):
            self._refuse_running(service_id)
            policy = self.tools.policy()
            spec = policy.applied(specs.checked(spec))
            preflight.check_limits(spec["limits"])
            self.step("starting")
            path = self.paths.spec(service_id)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(path, spec)
            self.paths.empty_root.mkdir(mode=0o700, exist_ok=True)
            log = self.paths.log(service_id)
            said_before = lines.end_of(log)
            with self._admitted(policy, service_id):
                running = supervision.launch(
                    self.paths, "start", service_id, self.tools.tini, self.tools.timeout, self.tools.title
                )
            connections.service_runs(self.paths, service_id, "")
            self.step("watching it settle")
            if running.wait(self.tools.settle):
                ended = self.ended(service_id)
                raise JobFailed(
                    "exited_at_once",
                    f"The service ended as soon as it was started ({describe(ended)}).",
                    "Read its last lines; try the command by hand as the same user.",
                    lines.last(log, said_before),
                )
            return running

    def stop(self, service_id: str, grace: float) -> Ended:
        """End a service: SIGTERM, and SIGKILL after `grace` seconds. One that has ended already is fine."""
        with self._alone(service_id):
            running = supervision.running(self.paths, service_id)
            if running is not None:
                self.step("stopping")
                self.paths.stopping(service_id).touch()
                running.init.signal(signal.SIGTERM)
                if not running.wait(grace):
                    self.step("killing")
                    running.init.signal(signal.SIGKILL)
                    running.wait(self.tools.timeout)
                if running.init.alive():
                    raise JobFailed(
                        "not_killed",
                        f"The service has not ended within {self.tools.timeout:g} seconds of SIGKILL.",
                        "Look for a task of it in state D (ps), which waits for a disk or a network; it ends"
                        " when that answers.",
                    )
            ended = self.ended(service_id)
            # Its end is the operator's doing, not the service's own, as what is left there would say.
            self.paths.state(service_id).unlink(missing_ok=True)
            self.paths.stopping(service_id).unlink(missing_ok=True)
            return ended

    def ended(self, service_id: str) -> Ended:
        """Return how the service's last run ended, as its runmh wrote it."""
        state = supervision.read_state(self.paths, service_id)
        return Ended(state.get("exit_code"), state.get("exit_signal"))

    def check_service(self, service_id: str, options: dict[str, Any]) -> dict[str, Any]:
        """Look at a running service without stopping it, and tell whether a dump would succeed.

        It takes no lock, for it changes nothing. What it returns is what `scanning.scan` does.
        """
        self.step("looking at the live processes")
        running = self._running(service_id)
        policy = self.tools.policy()
        _, size = preflight.check_data(self.paths, service_id, running, options.get("carry", []), policy)
        check = self._room(running, policy, size)
        claimed = partial(claims.promised, self.paths, self.paths.job_lock(service_id), policy.pool)
        return scanning.scan(running.init.pid, room=lambda: check(claimed()), options=options, carried=size)

    def _room(self, running: Running, policy: Policy, carried: int) -> Callable[[int], int]:
        """Return what checks that a dump has room beside so many bytes that others have claimed."""
        return lambda claimed: preflight.check_room(
            self.paths.images, running.init.pid, policy.pool, carried, claimed
        )

    def dump(
        self,
        service_id: str,
        image_id: str,
        *,
        leave_running: bool = False,
        options: Mapping[str, Any] | None = None,
        carry: Sequence[str] = (),
        newest: float = 0.0,
    ) -> Dumped:
        """Dump a running service into a new image.

        `options` are those that `criu.apply_options` knows; the manifest keeps them.

        A service that shall end is ended only after the image is sealed: CRIU waits for the sealing with the
        service still frozen and, if that fails, lets it go on as if nothing had been.

        Args:
            carry: files and folders, as the service sees them, that the image shall hold besides those that
                the service's spec names.
            newest: when the service's newest image was made (s since 1970); this one is newer at any clock.

        Raises:
            JobFailed: it was not dumped; the service runs as before and no image is left.
        """
        with self._alone(service_id) as lock:
            self.step("looking before freezing")
            running = self._running(service_id)
            account = preflight.account_for_dump(running.init.pid)
            policy = self.tools.policy()
            data, size = preflight.check_data(self.paths, service_id, running, carry, policy)
            look = self._room(running, policy, size)

            def check(claimed: int) -> int:
                try:
                    return look(claimed)
                except JobFailed:
                    # What interrupted imports have left makes way for a service.
                    if not importing.sweep(self.paths, kept_for=0):
                        raise
                    return look(claimed)

            with claims.claimed(self.paths, self.paths.job_lock(service_id), image_id, policy.pool, check):
                return Dump(
                    self.tools,
                    service_id,
                    image_id,
                    running,
                    account,
                    leave_running,
                    lock,
                    options or {},
                    data,
                    newest,
                ).run()

    def restore(
        self, service_id: str, image_id: str, *, accept_changed_files: bool = False, tcp_close: bool = False
    ) -> Running:
        """Restore a service from an image.

        Args:
            accept_changed_files: also if files on the disk have moved on since.
            tcp_close: drop the image's connections instead of taking them up.

        Raises:
            JobFailed: it was not restored; nothing of it runs, and the image is as good as before.
        """
        with self._alone(service_id) as lock:
            self._refuse_running(service_id)
            with _offering_a_cold_start():
                facts = manifest.read(self.paths.image(image_id))
                _require_same(service_id, image_id, facts)
            policy = self._permitting(image_id, facts)
            with _offering_a_cold_start(), self._admitted(policy, service_id):
                preflight.check_mounts(facts)
                self.paths.empty_root.mkdir(mode=0o700, exist_ok=True)
                try:
                    running = restore(
                        self.tools,
                        service_id,
                        image_id,
                        facts,
                        lock,
                        accept_changed_files=accept_changed_files,
                        tcp_close=tcp_close,
                    )
                except BaseException:
                    # The service is what it was before; a last word that says "failed" would make it another.
                    if supervision.running(self.paths, service_id) is None:
                        self.paths.state(service_id).unlink(missing_ok=True)
                    raise
            connections.service_runs(self.paths, service_id, image_id)
            return running

    def take_back(self, service_id: str, spec: dict[str, Any]) -> None:
        """Make once more what the node kept of a service until it was deleted, so that it can be restored.

        Its connections were let go then, so no image of it may pick them up.
        """
        path = self.paths.spec(service_id)
        if path.exists():
            return
        with self._alone(service_id):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connections.service_runs(self.paths, service_id, "")
            write_json(path, spec)

    def verify(self, image_id: str) -> None:
        """Read every byte of an image.

        Raises:
            JobFailed: the image is missing or damaged; the lines name each file.
        """
        self.step("reading every byte")
        image = self.paths.image(image_id)
        facts = manifest.read(image)
        faults = manifest.faults(image, facts)
        faults += [] if faults else manifest.changed(image, facts, manifest.large_files(facts))
        if faults:
            raise manifest.damaged(image, faults)

    def export_image(
        self,
        image_id: str,
        file: str,
        *,
        recipients: Sequence[str],
        gpg_recipients: Sequence[str],
        origin: dict[str, Any],
    ) -> exporting.Exported:
        """Write an archive of an image into the folder of archives.

        Args:
            file: its name there; "" for the image's id.
            recipients, gpg_recipients, origin: as for `exporting.export`.

        Raises:
            JobFailed: it could not be written; nothing of it is left.
        """
        name = file or image_id + encryption.suffix(recipients, gpg_recipients)
        return exporting.export(
            self.paths.image(image_id),
            self.paths.archives / archive_name(name),
            origin=origin,
            recipients=recipients,
            gpg_recipients=gpg_recipients,
            step=self.step,
        )

    def import_image(
        self,
        file: str,
        *,
        identity: str,
        check: Callable[[dict[str, Any]], None],
        notes: dict[str, Any],
    ) -> importing.Imported:
        """Make an image of an archive that lies in the folder of archives.

        Args:
            file: its name there.
            identity: the name, there too, of the file with age's key, or "".
            check, notes: as for `importing.Import`.

        Raises:
            JobFailed: it could not be imported.
        """
        folder = self.paths.archives
        return importing.Import(
            self.paths,
            folder / archive_name(file),
            identity=folder / archive_name(identity) if identity else None,
            check=check,
            notes=notes,
            most=self.tools.policy().pool,
            step=self.step,
        ).run()

    def delete_image(self, image_id: str) -> None:
        """Delete an image, and the firewall rules that kept its clients' connections for it."""
        self.step("deleting image")
        image = self.paths.image(image_id)
        connections.release(connections.run_of(image))
        manifest.remove(image)

    def delete_service(self, service_id: str) -> None:
        """Delete what a service that has ended left: its spec, its state, its log. Its images stay."""
        with self._alone(service_id):
            self._refuse_running(service_id)
            self.step("deleting service")
            folder = self.paths.spec(service_id).parent
            if folder.is_dir():  # one that was never let start has none
                connections.service_runs(self.paths, service_id, "")
                shutil.rmtree(folder, ignore_errors=True)
            log = self.paths.log(service_id)
            for path in log.parent.glob(f"{log.name}*"):
                path.unlink()
            shutil.rmtree(self.paths.runtime(service_id), ignore_errors=True)

    def _running(self, service_id: str) -> Running:
        running = supervision.running(self.paths, service_id)
        if running is None:
            raise JobFailed(
                "service_not_running",
                "The service has no process to work on.",
                "Start it (mhctl service start), or restore an image of it.",
            )
        return running

    def _refuse_running(self, service_id: str) -> None:
        running = supervision.running(self.paths, service_id)
        if running is not None:
            raise JobFailed(
                "service_running",
                f"The service runs already, as PID {running.shown_pid}.",
                "Dump or stop it first.",
            )


def _require_same(service_id: str, image_id: str, facts: dict[str, Any]) -> None:
    """What a row says of whose memory an image holds is not believed."""
    if facts["service"] != service_id:
        raise JobFailed(
            "image_of_another",
            f"The image {image_id} holds the memory of another service, {facts['service']}.",
            "Restore an image of this service (mhctl image list).",
        )


@contextmanager
def _offering_a_cold_start() -> Iterator[None]:
    """Let a restore that fails also name the way that needs no image."""
    try:
        yield
    except JobFailed as failure:
        failure.remedy = f"{failure.remedy} {_COLD_START}".strip()
        raise


def describe(ended: Ended) -> str:
    """Return how a service ended, in words."""
    if ended.exit_signal is not None:
        return f"killed by {_signal(ended.exit_signal)}"
    return "no exit status is known" if ended.exit_code is None else f"exit status {ended.exit_code}"


def _signal(number: int) -> str:
    """Return a signal's name; of the real-time ones only the first and the last have one (signal(7))."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
