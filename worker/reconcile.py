"""Makes rows say what is true on the node's disk and in its process table. Knows nothing of queues.

One of the few modules of the worker that touch rows (tests/test_layers.py names them).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from images import operations as images
from images.models import Image
from services import operations
from services.models import Job, Node, Service
from services.states import TRANSIENT, JobKind, JobState, ServiceState, has_process
from worker import connections, criu, locks, manifest, mending, putback, supervision, unfinished
from worker import spec as specs
from worker.engine import Ended, describe
from worker.errors import JobFailed
from worker.errors import describe as in_words
from worker.paths import IS_ID, Paths
from worker.process import Process

log = logging.getLogger(__name__)

_SHOWN = ("version", "mounts", "machine", "spec", "origin", "carried")
"""What of a manifest the rows keep."""
_LAST_WORD_WITHIN = 0.5
"""Seconds that a supervisor may take to write how its service ended."""


_UNWATCHED = "Its supervisor was killed, and another one is about to take over."
_ADOPTED = "Its supervisor was killed, and another one has taken over."

_ENDING = {JobKind.STOP, JobKind.RESTART, JobKind.DELETE_SERVICE}


class Truth(NamedTuple):
    """What is true of a service now, in the words of its row."""

    state: ServiceState
    pid: int | None = None
    supervisor_pid: int | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    reason: str = ""

    def extras(self) -> dict[str, Any]:
        """Return all but the state, as the arguments of an operation."""
        return {name: value for name, value in self._asdict().items() if name != "state"}


def truth(paths: Paths, service_id: str) -> Truth | None:
    """Return what the process table and the supervisor's last word say; None if they say nothing."""
    running = supervision.running(paths, service_id)
    if running is not None:
        watched = running.runmh.alive()
        reason = (_ADOPTED if running.adopted else "") if watched else _UNWATCHED
        supervisor = running.runmh.pid if watched else None
        return Truth(ServiceState.RUNNING, running.shown_pid, supervisor, reason=reason)
    return _last_word(paths, service_id)


def unwatched(failure: JobFailed, outlook: str) -> str:
    """Return the reason of a service that runs without a supervisor, for none could take over.

    Args:
        outlook: what becomes of it.
    """
    return (
        f"Its supervisor was killed, and none can take over yet. {failure.message} It runs on, and will be"
        " taken over once that is mended. Until then its output waits in its pipe, and it does when that is"
        f" full; if it ends, that will be seen, but not how. {outlook}"
    )


def _last_word(paths: Paths, service_id: str) -> Truth | None:
    state = supervision.read_state(paths, service_id)
    if state.get("phase") == "running":
        # The service has just ended and its supervisor is about to say how.
        Process(*state["runmh"]).wait(_LAST_WORD_WITHIN)
        state = supervision.read_state(paths, service_id)
    match state.get("phase"):
        case "ended":
            ended = Ended(state.get("exit_code"), state.get("exit_signal"))
            if paths.stopping(service_id).exists():
                reason = f"It was being stopped when the worker died ({describe(ended)})."
                return Truth(ServiceState.STOPPED, None, None, *ended, reason=reason)
            return Truth(ServiceState.EXITED, None, None, *ended, reason=_how(state, ended))
        case "running" | "starting" | "restoring" if not Process(*state["runmh"]).alive():
            if not state.get("init"):
                return Truth(ServiceState.FAILED, reason="Its supervisor was killed before it had begun.")
            return Truth(
                ServiceState.EXITED, reason="It ended, and its supervisor with it: no exit status is known."
            )
        case "failed":
            return Truth(ServiceState.FAILED, reason=str(state.get("error", {}).get("message", "")))
    return None


def _how(state: dict[str, Any], ended: Ended) -> str:
    if ended == (None, None):
        return "It ended unseen after its supervisor had been killed: no exit status is known."
    if state.get("memory") and ended.exit_signal == signal.SIGKILL:
        return "It was killed by SIGKILL: it wanted more memory than its limit (mhctl service show)."
    if state.get("told"):
        return (
            f"It ended ({describe(ended)}) after its supervisor had been sent SIGTERM, as the end of its"
            " scope (systemctl stop) or of the host does it."
        )
    if state.get("whole"):
        return f"Its init was {describe(ended)}, and with it all of its processes."
    return f"It ended by itself ({describe(ended)})."


def identity(node: str) -> str:
    """Return the name under which this process claims jobs; it says which process that is, past PID reuse."""
    me = Process.of(os.getpid())
    return f"{node}:{me.pid}:{me.start}" if me else node


def worker_lives(worker: str) -> bool:
    """Tell whether the process that claimed a job under this name still runs."""
    _, _, numbers = worker.partition(":")
    pid, _, start = numbers.partition(":")
    return pid.isdigit() and start.isdigit() and Process(int(pid), int(start)).alive()


def settle_lost_jobs(paths: Paths, node: str, overdue: Callable[[str], bool] = lambda _job_id: False) -> int:
    """End the jobs whose worker died, by what lies on the disk; none is blindly run again.

    Args:
        paths: the node's folders.
        node: its name.
        overdue: whether a CRIU or a supervisor that still works for this job has had its time, and is killed.

    Returns:
        How many were ended.
    """
    running = Job.objects.filter(node__name=node, status=JobState.RUNNING).select_related("node", "service")
    ended = 0
    for job in running:
        if worker_lives(job.worker):
            continue
        try:
            with _left_alone(paths, job) as alone:
                if alone and (not job.service_ref or unfinished.settle(paths, job.service_ref)):
                    _settle(paths, job)
                    ended += 1
                elif overdue(job.pk):
                    criu.kill_holder(paths.job_lock(job.service_ref))
                    supervision.end_hung(paths, job.service_ref)
        except OSError as error:  # a full disk keeps it from being settled, but not the others
            log.warning("job %s is settled later: %s", job.pk, error, extra={"job": job.pk})
    return ended


@contextmanager
def _left_alone(paths: Paths, job: Job) -> Iterator[bool]:
    """Tell whether nothing that the job launched works on its service any more, and hold it for the block."""
    # Without a folder, as after a reboot, there is nobody who could.
    if not job.service_ref or not paths.runtime(job.service_ref).is_dir():
        yield True
        return
    # CRIU goes on to its end without the worker, and holds the lock as long as it works.
    with locks.held(paths.job_lock(job.service_ref)) as lock:
        yield (
            lock is not None
            and not supervision.is_at_work(paths, job.service_ref)
            and not (job.kind == JobKind.DUMP and _is_ending(paths, job.service_ref))
        )


def _is_ending(paths: Paths, service_id: str) -> bool:
    """Tell whether a service that seems to run was killed, as a dump does in the end."""
    running = supervision.running(paths, service_id)
    return running is not None and running.init.is_ending()


def end_services_without_trace(paths: Paths, node: str) -> None:
    """Mark services that their rows believe alive but of which the node knows nothing: it was restarted."""
    rows = Service.objects.filter(node__name=node, status__in=[ServiceState.RUNNING, *TRANSIENT])
    for service_id, changed_at in rows.values_list("pk", "changed_at"):
        if truth(paths, service_id) is None:
            operations.observe(
                service_id,
                pid=None,
                supervisor_pid=None,
                exit_code=None,
                exit_signal=None,
                state=ServiceState.EXITED,
                reason="It ended unseen: the node was restarted, or what is known of it was deleted.",
                as_of=changed_at,
            )


def _settle(paths: Paths, job: Job) -> None:
    image = job.kind == JobKind.DUMP and _settle_dump(paths, job)
    stuck = ""
    if job.kind == JobKind.RESTORE:
        try:
            putback.settle(paths, job.service_ref)
        except JobFailed as failure:
            stuck = f" {failure.message}"
    if job.kind == JobKind.IMPORT_IMAGE:
        _record_missing_images(paths, job.node)
    if job.kind == JobKind.DELETE_IMAGE and not paths.image(job.image_id).exists():
        manifest.remove(paths.image(job.image_id))
        images.forget(job.image_id)
    found = _truth_after_loss(paths, job, dumped=image) if job.service_ref else None
    said = f"at the step {job.step!r}" if job.step else "before its first step"
    outcome = "What is true now was read from the node."
    ended = job.kind == JobKind.RESTORE and found is None
    if ended and connections.went(paths, job.service_ref, job.image_id):
        stuck += " Its clients' connections are no longer held for the image: the next restore closes them."
    if image:
        outcome = "The image had been sealed and is good."
    elif job.kind == JobKind.DUMP and found and found.state is ServiceState.RUNNING:
        outcome = "The service runs on, and no image of it was kept."
    elif job.kind == JobKind.IMPORT_IMAGE:
        outcome = "An image that was whole is in the pool; of another, what was written is not written again."
    message = f"The worker died {said}. {outcome}{stuck}"
    operations.lose(job, message, found.state if found else None, **(found.extras() if found else {}))


def _settle_dump(paths: Paths, job: Job) -> bool:
    """Let a service go on whose dump was broken off, record its image, and tell whether there is one."""
    running = supervision.running(paths, job.service_ref)
    final = not job.options.get("leave_running") and is_sealed(paths, job.image_id)
    if not final or (running is not None and not running.has_been_killed()):
        # Before anything of the image goes, which may take a while: the service's clients wait.
        run = criu.run_id(paths.runtime(job.service_ref) / "criu" / "dump.log")
        if running is None:
            connections.release(run)
        else:
            mending.mend(running.init, run)
        if final:
            # CRIU heard no answer when that was sealed, and let the service go on. It was made for one that
            # has ended: what this one writes from now on need not show in the times of its files.
            manifest.remove(paths.image(job.image_id))
    if record_image(paths, job.image_id, job.node):
        return True
    manifest.remove(paths.partial_image(job.image_id))
    return False


def _truth_after_loss(paths: Paths, job: Job, *, dumped: bool) -> Truth | None:
    """Do what the worker would have done at its job's end, and return what is true of the service then.

    Returns:
        None for the state before the job.
    """
    service_id = job.service_ref
    found = truth(paths, service_id)
    if found and found.state is ServiceState.RUNNING:
        if job.kind in {JobKind.RESTORE, JobKind.START, JobKind.RESTART}:
            connections.service_runs(paths, service_id, job.image_id)
        return found
    if job.kind == JobKind.DUMP and dumped and not job.options.get("leave_running"):
        connections.service_left(paths, service_id, job.image_id)
        found = Truth(ServiceState.DUMPED)
    elif job.kind == JobKind.RESTORE:
        mending.remove_scratch(paths.runtime(service_id) / "criu" / "restore.log")
        found = None
    elif found is None and job.kind in _ENDING and has_process(ServiceState(job.service_state_before)):
        return Truth(ServiceState.STOPPED, reason="The worker died when it had just been stopped.")
    else:
        return found
    # What the supervisor said last is not what became of the service.
    paths.state(service_id).unlink(missing_ok=True)
    return found


def is_sealed(paths: Paths, image_id: str) -> bool:
    """Tell whether there is such an image on the disk; a dump that fails removes its own."""
    return (paths.image(image_id) / manifest.NAME).exists()


def record_image(paths: Paths, image_id: str, node: Node) -> bool:
    """Write the row of an image from its manifest; False if there is no sound manifest of it."""
    try:
        _record_image(paths, image_id, node)
    except JobFailed:
        return False
    return True


def _record_image(paths: Paths, image_id: str, node: Node) -> None:
    path = paths.image(image_id)
    facts = manifest.read(path)
    images.record(
        image_id=image_id,
        service_id=facts["service"],
        node=node,
        comm=str(facts.get("comm", "")),
        path=str(path),
        size_bytes=sum(int(entry["size"]) for entry in facts["files"].values()),
        pages_bytes=int(facts.get("pages_bytes", 0)),
        created_at=datetime.fromtimestamp(facts.get("created", 0), UTC),
        leave_running=bool(facts.get("leave_running")),
        criu_version=str(facts.get("criu", "")),
        kernel=str(facts.get("kernel", "")),
        argv=list(facts["spec"].get("argv", [])),
        statistics=manifest.figures(path),
        manifest={name: facts.get(name) for name in _SHOWN},
    )


def _images(paths: Paths, node: Node) -> tuple[set[str], set[str]]:
    """Return the ids of the images on the disk, and of those that have a row.

    Raises:
        OSError: the pool cannot be read, which does not mean that nothing is in it.
    """
    # The rows first: what is made meanwhile is then only seen on the disk, and not taken for gone.
    known = set(Image.objects.filter(node=node).values_list("pk", flat=True))
    names = filter(IS_ID.match, (folder.name for folder in paths.images.iterdir()))
    return {image_id for image_id in names if is_sealed(paths, image_id)}, known


def _record_missing_images(paths: Paths, node: Node) -> list[str]:
    """Make the rows of images that have none; returns a line an image."""
    on_disk, known = _images(paths, node)
    changes = []
    for image_id in sorted(on_disk - known):
        try:
            _record_image(paths, image_id, node)
            changes.append(f"image {image_id}: made its row from its manifest")
        except JobFailed as failure:
            changes.append(f"image {image_id}: no row was made. {failure.message}")
    return changes


def _unsound_images(paths: Paths, node: Node) -> list[str]:
    """Return a line for each image with a row whose manifest is damaged, or another image's."""
    on_disk, known = _images(paths, node)
    wrong = []
    for image_id in sorted(on_disk & known):
        try:
            manifest.read(paths.image(image_id))
        except JobFailed as failure:
            wrong.append(f"image {image_id}: {failure.message}")
    return wrong


def _record_service(paths: Paths, service_id: str, node: Node, state: ServiceState) -> str:
    """Make the row of a service that has none; returns the line that says so, or why that cannot be done."""
    try:
        made = operations.adopt(
            service_id,
            node=node,
            spec=specs.read(paths.spec(service_id)),
            state=state,
            restore_on_boot=paths.wanted_back(service_id).exists(),
        )
    except JobFailed as failure:
        return f"service {service_id}: no row was made. {failure.message}"
    images.adopt_images(made)
    found = truth(paths, service_id)
    if found is not None:
        operations.observe(service_id, state=found.state, **found.extras())
    return f"service {service_id}: made its row from its spec"


def _settle_restores(paths: Paths) -> dict[str, str]:
    """Judge the restores that were broken off, for the job that would do so may be lost with its row.

    Returns:
        By service, a line for each whose restore cannot be judged yet.
    """
    stuck = {}
    for folder in (paths.run_dir / "services").glob("[0-9a-f]*"):
        try:
            with locks.held(paths.job_lock(folder.name)) as alone:
                if alone is not None:
                    unfinished.settle(paths, folder.name)
        except OSError as error:
            stuck[folder.name] = (
                f"service {folder.name}: what became of it cannot be written, so nothing was changed."
                f" {in_words(error)}. Make room there, and rescan again."
            )
    return stuck


def rescan(paths: Paths, node: Node) -> list[str]:
    """Make rows of what lies on the disk without one, and drop rows of images that are not there.

    What is damaged is said and left as it is; it keeps nothing else from being mended.

    Returns:
        A line a change.

    Raises:
        OSError: the pool cannot be read; nothing was changed.
    """
    on_disk, known = _images(paths, node)
    stuck = _settle_restores(paths)
    changes = list(stuck.values())
    specs_of = (path.parent.name for path in (paths.state_dir / "services").glob("*/spec.json"))
    present = set(filter(IS_ID.match, specs_of))
    for service_id in sorted(present - stuck.keys()):
        if not Service.objects.filter(pk=service_id).exists():
            dumped = connections.present_image(paths, service_id) in on_disk
            state = ServiceState.DUMPED if dumped else ServiceState.EXITED
            changes.append(_record_service(paths, service_id, node, state))
    changes += _unsound_images(paths, node)
    changes += _record_missing_images(paths, node)
    for service_id in sorted(present):
        images.point(service_id, connections.present_image(paths, service_id))
    for image_id in sorted(known - on_disk):
        images.forget(image_id)
        changes.append(f"image {image_id}: dropped its row, it is not in the pool")
    return changes
