"""After a boot: restores the services that shall come back, each from its newest image that is sound.

So it does with one that was dumped because no supervisor could take it over (replacing.py asks for that).
With tasks.py, agent.py, reading.py and reconcile.py a module of the worker that touches rows.
"""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any

from images import operations as images
from images.models import Image
from services import booting
from services.models import Job, Service
from services.problems import Problem
from services.states import JobKind, JobState, ServiceState
from worker import connections, supervision
from worker.durable import sync_folder, write_json
from worker.errors import describe
from worker.paths import Paths
from worker.pauses import Pauses
from worker.process import Process, parent, status
from worker.runmh.launch import Account, Refused

log = logging.getLogger(__name__)

_DAMAGED = {"image_damaged", "image_misplaced", "image_missing", "image_of_another", "manifest_too_new"}
"""Failures of a restore after which an older image is tried; after any other it would fail as well."""
_LOST_AT_MOST = 3
"""Restores of one image whose workers may die."""
_ANEW = "The node was started anew"
_REPLACED = "Its supervisor was killed and none could take over, so it was dumped"


class Boot:
    """What a boot has left to be done on one node.

    A boot is a kernel's, but also a container's (another process is PID 1, or RUN_DIR/started, a tmpfs of its
    own, is empty again) and a loss of RUN_DIR, which holds what is true until the next boot. What is left to
    be done is kept in STATE_DIR, so that it outlives a worker, and a power cut in the midst of it.

    Args:
        paths: the node's folders.
        node: its name.
        pause: seconds after which a restore that follows no boot is tried again; the next one is longer.
    """

    def __init__(self, paths: Paths, node: str, pause: float) -> None:
        self._paths = paths
        self._node = node
        self._known = False
        self._boot = ""
        self._pending: dict[str, list[str]] = {}  # service → the jobs that were asked for
        self._replaced: set[str] = set()  # those of them that follow no boot
        self._pauses = Pauses(pause)
        marks = paths.state_dir.glob(f"services/*/{paths.wanted_back('0' * 32).name}")
        self._marked = {mark.parent.name for mark in marks}

    def look(self) -> None:
        """Find out, once, whether this is a new boot; to be called before rows are settled."""
        if self._known:
            return
        self._boot = _boot_of(self._paths.run_dir / "started")
        kept = _read(self._file)
        self._pending = kept.get("pending", {})
        self._replaced = self._pending.keys() & kept.get("replaced", [])
        if kept.get("boot") != self._boot:
            _forget_processes(self._paths)
            wanted = booting.wanted_back(self._node)
            # What the boot before had tried is tried again.
            self._pending = {service_id: [] for service_id in sorted({*self._pending, *wanted})}
            self._replaced.clear()
            self._keep_if_possible()
            if self._pending:
                log.warning("a new boot: %d services shall come back", len(self._pending))
        self._known = True

    def sweep(self) -> None:
        """Go on with what is left to be done; to be called after rows are settled."""
        self._mark_wanted()
        for service_id in list(self._pending):
            if self._bring_back(service_id):
                del self._pending[service_id]
                self._replaced.discard(service_id)
                self._pauses.forget(service_id)
                self._keep_if_possible()

    def expect(self, service_id: str) -> None:
        """Bring a service back once it is dumped, which is about to be asked for; one that runs on does.

        Raises:
            OSError: that cannot be kept, so it must not be dumped.
        """
        self._pending[service_id] = []
        self._replaced.add(service_id)
        try:
            self._keep()
        except OSError:
            del self._pending[service_id]
            self._replaced.discard(service_id)
            raise

    def _mark_wanted(self) -> None:
        """Keep on the disk which services shall come back, for a rescan after the database was lost."""
        services = Service.objects.filter(node__name=self._node)
        wanted = set(services.filter(restore_on_boot=True).values_list("pk", flat=True))
        # One that was deleted and has come back from an image has lost its mark with its folder.
        self._marked = {name for name in self._marked if self._paths.wanted_back(name).exists()}
        for service_id in wanted - self._marked:
            mark = self._paths.wanted_back(service_id)
            try:
                mark.touch(mode=0o600)
                sync_folder(mark.parent)
                self._marked.add(service_id)
            except FileNotFoundError:
                continue  # it was never started
            except OSError as error:
                log.warning("a rescan would not know which services shall come back: %s", describe(error))
                break
        # A service without a row may only have lost it.
        for (service_id,) in services.filter(pk__in=self._marked - wanted).values_list("pk"):
            self._paths.wanted_back(service_id).unlink(missing_ok=True)
            self._marked.discard(service_id)

    @property
    def _file(self) -> Path:
        return self._paths.state_dir / "boot.json"

    def _keep_if_possible(self) -> None:
        """Keep what is left to be done, or go on without: a worker that dies then begins the boot anew."""
        try:
            self._keep()
        except OSError as error:
            log.warning("what shall come back after this boot cannot be written: %s", describe(error))

    def _keep(self) -> None:
        kept = {"boot": self._boot, "pending": self._pending, "replaced": sorted(self._replaced)}
        write_json(self._file, kept)

    def _bring_back(self, service_id: str) -> bool:
        """Ask for the next restore of a service; True once nothing is left to be asked for."""
        # First, for a job that ends in between would be seen neither at work nor as done.
        active = Job.objects.active().filter(service=service_id).first()
        if active is not None:
            self._note(active)
            return False  # what was asked for goes first
        service = Service.objects.filter(pk=service_id).first()
        if service is None or not service.restore_on_boot or service.state is ServiceState.STOPPED:
            return True
        asked = self._pending[service_id]
        tries = sorted(Job.objects.filter(pk__in=asked), key=lambda job: asked.index(job.pk))
        runs = supervision.running(self._paths, service_id) is not None
        if runs or any(job.status == JobState.SUCCEEDED for job in tries):
            return True
        if service_id in self._replaced:
            if service.state is not ServiceState.DUMPED or self._is_put_away(service_id):
                return True  # it has ended otherwise, or by another's wish
            if self._pauses.last(service_id):
                return False
        return self._try_next(service, tries)

    def _note(self, job: Job) -> None:
        """Count a restore as asked for that was, though the database went away before it said so."""
        asked = self._pending[job.service_ref]
        if job.kind == JobKind.RESTORE and job.source == "agent" and job.pk not in asked:
            asked.append(job.pk)
            self._keep_if_possible()

    def _is_put_away(self, service_id: str) -> bool:
        """Tell whether somebody else's dump came before the one that was to be brought back."""
        present = connections.present_image(self._paths, service_id)
        dumps = Job.objects.filter(kind=JobKind.DUMP, image_id=present)
        return dumps.exclude(source="agent").exists()

    def _try_next(self, service: Service, tries: list[Job]) -> bool:
        lost = [job.image_id for job in tries if job.status == JobState.LOST]
        tried = {job.image_id for job in tries if job.status != JobState.LOST}
        tried |= {image_id for image_id in lost if lost.count(image_id) >= _LOST_AT_MOST}
        last = tries[-1] if tries else None
        if last is not None and last.image_id in tried and last.error_code not in _DAMAGED:
            return self._give_up(service, last.error_message or f"The restore was {last.status}.")
        candidates = [image for image in self._images(service) if image.pk not in tried]
        if not candidates:
            self._none_left(service, last)
            return True
        return self._ask(service, candidates[0], last if tried else None)

    def _images(self, service: Service) -> list[Image]:
        """Return a service's images, what it is at present first, then the newest first.

        None that came from elsewhere: those are an admin's to restore.
        """
        found = Image.objects.filter(node__name=self._node, service_ref=service.pk).order_by("-created_at")
        present = connections.present_image(self._paths, service.pk)
        return sorted(
            (image for image in found if image.origin is None), key=lambda image: image.pk != present
        )

    def _ask(self, service: Service, image: Image, failed: Job | None) -> bool:
        """Ask for a restore; True if that is refused for good."""
        alive = _survivor(self._paths, service)
        if alive is not None:
            booting.give_up(
                service.pk,
                f"RUN_DIR was emptied while it ran: it may still run, as process {alive.pid}."
                " End that, then restore it.",
            )
            return True
        cause = self._cause(service)
        why = f"{cause}: restored from its newest image, of {image.created_at:%Y-%m-%d %H:%M:%S} UTC."
        if failed is not None:
            why = (
                f"{cause}: restored from an older image, of {image.created_at:%Y-%m-%d %H:%M:%S} UTC,"
                f" for a newer one could not be. {failed.error_message}"
            )
        try:
            job = images.bring_back(image, why)
        except Problem as problem:
            if problem.code in {"job_active", "image_in_use"}:
                return False
            return self._give_up(service, problem.message)
        self._pending[service.pk].append(job.pk)
        self._keep_if_possible()
        log.warning("service %s: %s", service.pk, why)
        return False

    def _cause(self, service: Service) -> str:
        return _REPLACED if service.pk in self._replaced else _ANEW

    def _give_up(self, service: Service, said: str) -> bool:
        """Say why a service is not restored; False if that is tried again."""
        state = None if service.state is ServiceState.DUMPED else ServiceState.FAILED
        reason = f"{self._cause(service)}, and it could not be restored. {said}"
        if service.pk not in self._replaced:
            booting.give_up(service.pk, reason, state)
            return True
        # What was in the way of its supervisor may be in the way of this, and pass. Said first: where the
        # database is away, all of this is done once more.
        booting.give_up(service.pk, f"{reason} That is tried again.", state)
        self._pauses.begin(service.pk)
        self._pending[service.pk] = []
        self._keep_if_possible()
        return False

    def _none_left(self, service: Service, last: Job | None) -> None:
        cause = self._cause(service)
        if last is None:
            booting.give_up(service.pk, f"{cause}, and there is no image to restore it from.")
        else:
            booting.give_up(
                service.pk,
                f"{cause}, and none of its images is sound. {last.error_message}",
                ServiceState.FAILED,
            )


def _boot_of(folder: Path) -> str:
    """Return what names the present boot, past a RUN_DIR that was emptied; `folder` lies in it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    token = folder / "boot"
    try:
        mark = token.read_text(encoding="ascii")
    except FileNotFoundError:
        mark = uuid.uuid4().hex
        token.write_text(mark, encoding="ascii")
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    first = Process.of(1)
    return f"{kernel}:{first.start if first else 0}:{mark}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("pending"), dict) else {}


def _forget_processes(paths: Paths) -> None:
    """Drop what supervisors of an earlier boot wrote: where RUN_DIR outlives a boot it names other processes.

    Where they live it is no boot of theirs: RUN_DIR was emptied, or this is the first start of this version.
    """
    for folder in (paths.run_dir / "services").glob("[0-9a-f]*"):
        state = supervision.read_state(paths, folder.name)
        named = [Process(*state[name]) for name in ("runmh", "init") if state.get(name)]
        if not any(process.alive() for process in named):
            (folder / "state.json").unlink(missing_ok=True)


def _uid(service: Service) -> int | None:
    try:
        return Account(service.user, "").uid
    except Refused:
        return None  # there is no such user, so nothing runs as him


def _survivor(paths: Paths, service: Service) -> Process | None:
    """Return a supervisor or an init of the service that lives, though nothing is known of it."""
    init = b"\0".join([b"tini", b"--", *(word.encode() for word in service.argv), b""])
    known = supervision.living(paths)
    if service.pk in known:
        return None
    owner = _uid(service)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            # Anybody may call a process like one of ours, and make its folder here look like root's.
            uid = int(status(int(folder.name)).get("Uid", "-1").split()[0])
            if uid == 0 and words.startswith(b"runmh ") and service.pk.encode() in words:
                return Process.of(int(folder.name))
            if words == init and uid == owner:
                above = parent(int(folder.name))
                if not Path(f"/proc/{above}/cmdline").read_bytes().startswith(b"runmh "):
                    return Process.of(int(folder.name))
        except OSError:
            continue
    return None
