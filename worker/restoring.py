"""One restore, from an image to a running service. Knows nothing of jobs.

CRIU runs as a child of a new runmh, which becomes the parent of what is restored; its request and its answer
go through this process, which has pycriu's messages loaded already.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pycriu.rpc_pb2 as rpc

from worker import (
    carry_index,
    carry_rights,
    connections,
    criu,
    eyes,
    files,
    manifest,
    mending,
    putback,
    supervision,
    unfinished,
    warm,
)
from worker.errors import JobFailed
from worker.explaining import explained
from worker.process import Process
from worker.runmh.main import LOG_FD
from worker.supervision import Running
from worker.tools import Tools


def restore(
    tools: Tools,
    service_id: str,
    image_id: str,
    facts: dict[str, Any],
    lock: int,
    *,
    accept_changed_files: bool = False,
    tcp_close: bool = False,
) -> Running:
    """Restore a service from a sound image.

    Args:
        facts: the image's manifest.
        lock: the descriptor of the lock that CRIU holds as long as it works.
        accept_changed_files: restore also where files on the disk are not what the memory believes.
        tcp_close: drop the image's connections, as if it had been dumped so.

    Raises:
        JobFailed: nothing of it runs, and the image is as good as before.
    """
    criu.require(tools.criu)
    if tcp_close:
        facts = {**facts, "options": {"tcp_close": True}}
    with putback.PutBack(tools.paths, service_id, image_id) as data:
        return _restore(tools, service_id, image_id, facts, lock, data, accept_changed_files)


def _restore(
    tools: Tools,
    service_id: str,
    image_id: str,
    facts: dict[str, Any],
    lock: int,
    data: putback.PutBack,
    accept_changed_files: bool,
) -> Running:
    image = tools.paths.image(image_id)
    work = tools.work_folder(service_id)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    call = criu.Call(ours)
    places = [str(tools.paths.empty_root), *(source for _, source in facts["mounts"])]
    probe = tools.warm.probe if warm.serves(places) else -1
    with theirs:
        # runmh starts, and its CRIU waits for the request, while the image is verified.
        supervisor = supervision.begin(
            tools.paths,
            "restore",
            service_id,
            tools.tini,
            descriptors={
                "rpc-fd": theirs.fileno(),
                "lock-fd": lock,
                **({"probe-fd": probe} if probe >= 0 else {}),
            },
            options={
                "image": image_id,
                "mounts": json.dumps(facts["mounts"]),
                "limits": json.dumps(facts["spec"].get("limits", {})),
                "criu": tools.criu,
            },
            title=tools.title,
        )
    try:
        tools.step("verifying image")
        faults = manifest.faults(image, facts)
        if faults:
            raise manifest.damaged(image, faults)
        tools.step("comparing files")
        carried = carry_index.read(image, facts)
        if carried:
            carry_rights.check(carried, facts["spec"])
        names = [root["path"] for root in carried]
        changes = _changes(image, facts, names)
        files.refuse(changes, accepted=accept_changed_files)
        moved = [root for root in carried if not putback.is_unchanged(root, facts)]
        if moved:
            tools.step("putting data back")
            faults = manifest.changed(image, facts, [carry_index.PACK])
            if faults:
                raise manifest.damaged(image, faults)
            data.begin(moved, facts["mounts"])
        closed = _are_closed(tools, service_id, image_id, facts)
        told = closed and connections.are_in(image)
        tools.step("restoring, with its connections closed" if told else "restoring")
        with files.waived(image, changes, work / "waived") as read_from:
            restored = _converse(
                tools, call, supervisor, service_id, image_id, facts, work, read_from, data, closed
            )
    except BaseException as error:
        refusal = _give_up(tools, call, supervisor, service_id, work)
        left = _what_is_left(tools, service_id, image_id)
        if refusal and isinstance(error, JobFailed):
            _tell(refusal, left)
            raise refusal from None
        _tell(error, left)
        raise
    call.close()
    try:
        return _watched(tools, service_id, supervisor, restored)
    except BaseException as error:
        # What nobody watches must not run, nor write any more when its data is brought back.
        ended = restored is None or not restored.signal(signal.SIGKILL) or restored.wait(tools.timeout)
        alive = " What was restored was killed, but has not ended yet (ps shows it in state D)."
        _tell(error, _what_is_left(tools, service_id, image_id) if ended else alive)
        raise


def _give_up(
    tools: Tools, call: criu.Call, supervisor: supervision.Supervisor, service_id: str, work: Path
) -> JobFailed | None:
    """End all that a restore has begun.

    Returns:
        Why the supervisor let CRIU restore nothing, if it did; CRIU would only say that it was killed.
    """
    call.close()
    supervision.give_up(tools.paths, service_id)
    error: dict[str, str] = {}
    with contextlib.suppress(JobFailed):  # it died, and what is raised already says more
        error = supervisor.settle(tools.timeout).get("error", {})
    unfinished.end(tools.paths, service_id, tools.timeout)
    mending.remove_scratch(work / "restore.log")
    if error.get("code", "restore_failed") == "restore_failed":
        return None
    return JobFailed(error["code"], error["message"], error.get("remedy", ""))


def _tell(error: BaseException, more: str) -> None:
    """Add a sentence to what an operator will read."""
    if isinstance(error, JobFailed):
        error.message += more


def _are_closed(tools: Tools, service_id: str, image_id: str, facts: Mapping[str, Any]) -> bool:
    """Tell whether connections in an image are not to be taken up: they would only hang at both ends."""
    options = facts.get("options")
    asked = isinstance(options, dict) and options.get("tcp_close") is True
    return asked or connections.are_stale(tools.paths, service_id, image_id)


def _watched(
    tools: Tools, service_id: str, supervisor: supervision.Supervisor, restored: Process | None
) -> Running:
    """Return the service as its supervisor says that it runs, or another, if that was killed at the last."""
    try:
        return supervisor.running(tools.timeout)
    except JobFailed:
        if restored is None:
            raise
        return supervision.take_over_restored(tools.paths, service_id, restored, tools.timeout)


class _Answers:
    """What CRIU is answered at its stages, and what is done meanwhile.

    Attributes:
        refused: why nothing could be written any more before the service was to run.
    """

    def __init__(
        self,
        tools: Tools,
        supervisor: supervision.Supervisor,
        service_id: str,
        image_id: str,
        verdict: Future[list[str]],
        data: putback.PutBack,
    ) -> None:
        self._tools = tools
        self._supervisor = supervisor
        self._service_id = service_id
        self._image_id = image_id
        self._verdict = verdict
        self._data = data
        self._init: Process | None = None
        self._is_noted = False
        self.refused: OSError | None = None

    def to(self, stage: str, pid: int) -> bool:
        """Answer; nothing runs before CRIU has heard so at its stage "post-restore"."""
        if pid and self._init is None:
            self._init = Process.of(pid)
        # The first process is about to be forked, and so to be born where CRIU is.
        if stage == "pre-restore":
            return self._supervisor.placed(self._tools.timeout)
        if stage != "post-restore":
            return True
        if not self._verdict.done():
            self._tools.step("verifying the memory")
        # What nobody would watch does not begin to run, either: its connections are still held, and stay so.
        if self._verdict.result() or not supervision.is_watched(self._tools.paths, self._service_id):
            return False
        try:
            self._note()
            self._data.about_to_run()
        except OSError as error:
            self.refused = error
            return False
        connections.about_to_go(self._tools.paths, self._service_id, self._image_id)
        return True

    def given_to(self, stage: str) -> None:
        """Use the time that CRIU takes now: what is written then costs the restore none."""
        if stage == "post-setup-namespaces":
            with contextlib.suppress(OSError):  # it is tried again
                self._note()

    def _note(self) -> None:
        if self._init is not None and not self._is_noted:
            unfinished.note(self._tools.paths, self._service_id, self._init)
            self._is_noted = True


def _converse(
    tools: Tools,
    call: criu.Call,
    supervisor: supervision.Supervisor,
    service_id: str,
    image_id: str,
    facts: dict[str, Any],
    work: Path,
    read_from: Path,
    data: putback.PutBack,
    closed: bool,
) -> Process | None:
    """Send CRIU the request, let nothing run before all of the image is verified, and return its init."""
    image = tools.paths.image(image_id)
    log = work / "restore.log"
    # CRIU copies the memory without looking at it, and waits for the verdict before anything runs.
    verdict: Future[list[str]] = Future()
    large = [name for name in manifest.large_files(facts) if name != carry_index.PACK or not data.is_in_place]
    reader = threading.Thread(target=_judge, args=(verdict, image, facts, large), name="verify")
    reader.start()
    answers = _Answers(tools, supervisor, service_id, image_id, verdict, data)

    try:
        with criu.folders(read_from, work) as (image_fd, work_fd):
            request = rpc.criu_req(type=rpc.RESTORE, opts=criu.common_options())
            opts = request.opts
            opts.images_dir_fd = image_fd
            opts.work_dir_fd = work_fd
            opts.log_file = log.name
            opts.root = str(tools.paths.empty_root)
            opts.rst_sibling = True
            opts.external.extend(criu.external_for_restore(facts["mounts"]))
            if closed:
                opts.tcp_established = False
                opts.tcp_close = True
            opts.inherit_fd.add(key=f"pipe:[{facts['pipe']}]", fd=LOG_FD)
            # Also where there is nothing to verify: without a worker that answers, nothing is restored.
            opts.notify_scripts = True
            answer = call.converse(
                request, timeout=tools.timeout, on_notify=answers.to, meanwhile=answers.given_to
            )
    except JobFailed as failure:
        raise explained("restore", image, log, failure) from None
    finally:
        reader.join()
    if verdict.result():
        raise manifest.damaged(image, verdict.result())
    if answers.refused is not None:
        raise answers.refused
    if not answer.success:
        raise explained("restore", image, log)
    return Process.of(answer.restore.pid)


def _changes(image: Path, facts: Mapping[str, Any], restored: Sequence[str]) -> list[files.Change]:
    """Return what of the disk is not as the image's memory believes.

    What a stranger's image names is looked at as its service could: the answer tells names, sizes and times.
    """
    record = files.read(image)
    as_it = eyes.of(carry_rights.account_of(facts["spec"])) if facts.get("origin") else nullcontext()
    with as_it:
        return files.changes(record, facts["mounts"], restored)


def _what_is_left(tools: Tools, service_id: str, image_id: str) -> str:
    """Return a sentence to add, once all that was restored has ended; no rule is left of what has begun."""
    if connections.went(tools.paths, service_id, image_id):
        return (
            " No process, mount or firewall rule of it is left; its clients' connections are no longer held"
            " for the image, and the next restore closes them."
        )
    if not connections.are_awaited(tools.paths, service_id, image_id):
        return " No process, mount or firewall rule of it is left."
    held = "still" if connections.are_held(tools.paths, service_id) else "no longer"
    return f" No process or mount of it is left; its clients' connections are {held} held for the image."


def _judge(verdict: Future[list[str]], image: Path, facts: dict[str, Any], names: list[str]) -> None:
    try:
        verdict.set_result(manifest.changed(image, facts, names))
    except Exception as error:
        verdict.set_exception(error)
