"""One call of CRIU: its process, its protocol (pycriu's messages), its log and its figures.

Knows nothing of services, images of ours or jobs. A dump is sent to a `criu swrk` of this process; a restore
to one that runmh has started, for runmh must be the parent of what is restored.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pycriu.images
import pycriu.rpc_pb2 as rpc

from worker.errors import JobFailed, describe
from worker.process import Process, holders
from worker.runmh.launch import DEFAULT_PATH

log = logging.getLogger(__name__)

# It may run as the service's user, who shall not find our secrets in it.
ENVIRONMENT = {"PATH": DEFAULT_PATH}
# A deleted file that a service holds open is stored in the image up to this size (CRIU's default is 1 MiB).
GHOST_LIMIT = 256 * 1024 * 1024
_CAP_SYS_RESOURCE = 24
_RUN_ID = "CRIU run id = "
_RESTORED = re.compile(rb"^\(\d+\.\d+\) Restore finished successfully", re.MULTILINE)
"""At the beginning of a line: further on it may be the name of a file in the image."""
_LAST_WORDS = 64 << 10
_MOST_DECODED = 64 << 20
_TO_UNDO = 5.0
"""Seconds that a CRIU gets to undo what it did, once it was silent for too long."""
_LOOK_EVERY = 1.0
_AFTER_THE_END = 5.0
"""Seconds that CRIU may take to say something after its subject has ended, mostly by CRIU's own hand."""


class Statistics(NamedTuple):
    """CRIU's own figures of one dump; times in microseconds, pages of 4096 bytes."""

    freezing_time: int = 0
    frozen_time: int = 0
    memdump_time: int = 0
    memwrite_time: int = 0
    pages_scanned: int = 0
    pages_written: int = 0


class Account(NamedTuple):
    """The one user and group that every process of a tree has."""

    uid: int
    gid: int


def has_sys_resource() -> bool:
    """Tell whether this process has CAP_SYS_RESOURCE; without it CRIU cannot dump a tree of another user."""
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next(line.split()[1] for line in file if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_SYS_RESOURCE & 1)


def common_options() -> rpc.criu_opts:
    """Return what dump and restore share: options that must be the same at both ends."""
    return rpc.criu_opts(
        images_dir_fd=-1,
        log_level=4,
        tcp_established=True,
        file_locks=True,
        ext_unix_sk=True,
        shell_job=True,
        link_remap=True,
        manage_cgroups=True,
        manage_cgroups_mode=rpc.IGNORE,
        network_lock=rpc.NFTABLES,
        ghost_limit=GHOST_LIMIT,
    )


def apply_options(opts: rpc.criu_opts, options: Mapping[str, Any]) -> None:
    """Set what an operator chose for a dump (services/criu_options.py has the table)."""
    if options.get("tcp_close"):
        opts.tcp_established = False
        opts.tcp_close = True
    opts.tcp_skip_in_flight = bool(options.get("tcp_skip_in_flight"))
    if options.get("ghost_limit"):
        opts.ghost_limit = int(options["ghost_limit"])
    if options.get("force_irmap"):
        opts.force_irmap = True
        opts.irmap_scan_paths.extend(options["force_irmap"])
    if options.get("freeze_timeout"):
        opts.timeout = max(1, round(options["freeze_timeout"]))


def _command(binary: str, rpc_fd: int, namespace_fd: int, account: Account | None) -> list[str]:
    words = [binary, "swrk", str(rpc_fd)]
    if account is not None:
        # prlimit(2) wants the same ids or CAP_SYS_RESOURCE. So where that is missing CRIU runs as the
        # service's own user, with every other capability kept across exec.
        capabilities = "+all,-sys_resource"
        identity = [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
        kept = [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
        words = ["setpriv", *identity, *kept, "--", *words]
    if namespace_fd >= 0:
        words = ["nsenter", f"--mount=/proc/self/fd/{namespace_fd}", "--", *words]
    return words


class Call:
    """A conversation with one `criu swrk`."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._connection = connection
        self._process = process

    @classmethod
    def launch(
        cls, binary: str, *, namespace_fd: int = -1, account: Account | None = None, keep: int = -1
    ) -> Call:
        """Start a `criu swrk` in a session of its own, so that it ends its work even if this process dies.

        Args:
            binary: the CRIU binary.
            namespace_fd: a mount namespace to run in; -1 for the present one.
            account: run as this user, with all our capabilities, instead of root.
            keep: a descriptor that CRIU shall hold open as long as it works; -1 for none.

        Raises:
            JobFailed: the binary, setpriv or nsenter is missing.
        """
        require(binary)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = subprocess.Popen(
                    _command(binary, theirs.fileno(), namespace_fd, account),
                    start_new_session=True,
                    pass_fds=[theirs.fileno(), *(number for number in (namespace_fd, keep) if number >= 0)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=ENVIRONMENT,
                )
            except OSError as error:
                ours.close()
                raise _no_criu(binary, error) from None
        return cls(ours, process)

    def converse(
        self,
        request: rpc.criu_req,
        *,
        timeout: float,
        on_notify: Callable[[str, int], bool] | None = None,
        meanwhile: Callable[[str], None] | None = None,
        subject: Process | None = None,
    ) -> rpc.criu_resp:
        """Send a request to CRIU and return its answer.

        Args:
            request: one of pycriu's messages.
            timeout: seconds that CRIU may be silent.
            on_notify: called with the name of each stage that CRIU reports (only with `notify_scripts`), and
                with the PID of the init that it restores (at "setup-namespaces" and "post-restore"; else 0);
                its answer is CRIU's: False makes CRIU undo what it did.
            meanwhile: called with the stage's name once CRIU has its answer, and goes on.
            subject: the init of what is dumped. CRIU 4.2 waits for ever for one that was killed meanwhile.

        Raises:
            JobFailed: CRIU went away without an answer, or was silent for too long.
        """
        connection = self._connection
        connection.settimeout(timeout)
        stage = ""
        try:
            connection.send(request.SerializeToString())
            # After its last stage CRIU itself ends what is dumped, which a lot of memory draws out.
            while data := self._hear(timeout, subject, by_itself=stage == "post-dump"):
                answer = rpc.criu_resp()
                answer.ParseFromString(data)
                if answer.type != rpc.NOTIFY:
                    return answer
                stage = answer.notify.script
                agreed = on_notify(stage, answer.notify.pid) if on_notify else True
                connection.send(rpc.criu_req(type=rpc.NOTIFY, notify_success=agreed).SerializeToString())
                if meanwhile:
                    meanwhile(stage)
        except TimeoutError:
            if self._process is not None:
                self._make_undo(self._process)
            if subject is not None and subject.is_ending():
                raise JobFailed(
                    "service_ended",
                    "The service ended while CRIU worked on it.",
                    "Look at who has killed it (mhctl service logs, dmesg), and start it again.",
                ) from None
            raise JobFailed(
                "criu_timeout",
                f"CRIU did not answer within {timeout:g} seconds.",
                "Raise MIEHISTO_JOB_TIMEOUT if the service is large, else look for a task in state D.",
            ) from None
        except OSError as error:
            raise JobFailed(
                "criu_died", f"CRIU could not be talked to: {describe(error)}.", "Look at CRIU's log."
            ) from None
        raise JobFailed(
            "criu_died",
            "CRIU ended without an answer.",
            "Look at CRIU's log, and whether it was killed (dmesg).",
        )

    def _make_undo(self, process: subprocess.Popen[bytes]) -> None:
        """End a CRIU that was silent for too long, by force only if it doesn't undo what it did by itself.

        Its code may run inside the service, which would die with it. One that was stopped can go on, and be
        refused all that it asks for.
        """
        process.send_signal(signal.SIGCONT)
        refusal = rpc.criu_req(type=rpc.NOTIFY, notify_success=False).SerializeToString()
        deadline = time.monotonic() + _TO_UNDO
        with suppress(OSError):
            while (left := deadline - time.monotonic()) > 0:
                self._connection.settimeout(left)
                answer = rpc.criu_resp()
                data = self._connection.recv(1 << 20)
                answer.ParseFromString(data)
                if not data or answer.type != rpc.NOTIFY:
                    break
                self._connection.send(refusal)
        with suppress(ProcessLookupError):  # with the helpers that it may have forked
            os.killpg(process.pid, signal.SIGKILL)

    def _hear(self, timeout: float, subject: Process | None, *, by_itself: bool) -> bytes:
        """Return what CRIU says next, empty at its end.

        Args:
            by_itself: whether CRIU may be ending its subject, which then dies as long as it likes.

        Raises:
            TimeoutError: it says nothing for so long, or only so shortly once its subject has ended.
        """
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if subject is not None:
            descriptor = subject.open()
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
                timeout = _left_at_the_end(poll, subject, timeout, by_itself=by_itself)
                poll.unregister(descriptor)
                os.close(descriptor)
            if not subject.alive():
                timeout = min(timeout, _AFTER_THE_END)
        if not poll.poll(timeout * 1000):
            raise TimeoutError
        return self._connection.recv(1 << 20)

    def close(self) -> None:
        """Hang up, and wait for CRIU's end if it is a child of ours."""
        self._connection.close()
        if self._process is not None:
            self._process.wait()


def _left_at_the_end(poll: select.poll, subject: Process, timeout: float, *, by_itself: bool) -> float:
    """Wait for a word of CRIU's, or its subject's end, and return the seconds left for a word then."""
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(min(left, _LOOK_EVERY) * 1000):
            return left
        # Killed, it is not dead before CRIU, which traces its processes, has looked at each.
        if not by_itself and subject.is_ending():
            return min(left, _AFTER_THE_END)
    return 0.0


def kill_holder(lock: Path) -> bool:
    """Kill the CRIU that holds a job's lock long after its worker has died; False if there is none.

    Args:
        lock: the lock file, which it has inherited.
    """
    killed = False
    for process in holders(str(lock)):
        with suppress(OSError):
            if Path(f"/proc/{process.pid}/comm").read_bytes() == b"criu\n":
                killed |= process.signal(signal.SIGKILL)
    return killed


def error_lines(log: Path, limit: int = 20) -> list[str]:
    """Return the last `limit` lines of CRIU's log that tell of an error, oldest first; none without a log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            found = [line.rstrip() for line in file if "Error" in line]
    except OSError:
        return []
    # CRIU says this on every host that lacks CAP_SYS_RESOURCE and goes on; it would only mislead.
    return [line for line in found if "Can't setup RLIMIT_NOFILE for self" not in line][-limit:]


def run_id(log: Path) -> str:
    """Return the id that CRIU gave the run that wrote this log; empty if it was killed before, or not run."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            # It says one at once and another when it has its request; they stand before all else.
            head = [line.rpartition(_RUN_ID)[2].strip() for line in islice(file, 5) if _RUN_ID in line]
    except OSError:
        return ""
    return head[-1] if head else ""


def has_restored(log: Path) -> bool:
    """Tell whether the restore that wrote this log has let its processes run, and was not killed before."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS))
            return _RESTORED.search(file.read()) is not None
    except OSError:
        return False


def statistics(folder: Path) -> Statistics:
    """Return CRIU's figures from `folder`/stats-dump; zeroes if it wrote none."""
    found = entries_if_any(folder / "stats-dump")
    entry = found[0].get("dump", {}) if found else {}
    return Statistics(*(int(entry.get(name, 0)) for name in Statistics._fields))


def entries(image: Path) -> list[dict[str, Any]]:
    """Return the decoded entries of one of CRIU's image files; none if it is missing.

    Raises:
        Exception: of any kind, for pycriu and protobuf complain in many, when it cannot be decoded.
    """
    try:
        with image.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_DECODED:
                raise ValueError("it is too large to be decoded")
            found: list[dict[str, Any]] = pycriu.images.load(file)["entries"]
    except FileNotFoundError:
        return []
    return found


def entries_if_any(image: Path) -> list[dict[str, Any]]:
    """Return what `entries` does, or nothing when that fails: for notes about an image, never for a right.

    An imported image may hold anything under such a name, and must be deleted or explained all the same.
    """
    try:
        return entries(image)
    except Exception as error:
        log.warning("%s cannot be decoded: %r", image, error)
        return []


def external_for_dump(mounts: Sequence[tuple[str, str]]) -> list[str]:
    """Return the `external` options that tell CRIU not to look into these (target, source) mounts."""
    return [f"mnt[{target}]:{target}" for target, _ in mounts]


def external_for_restore(mounts: Sequence[tuple[str, str]]) -> list[str]:
    """Return the `external` options that give these mounts back."""
    return [f"mnt[{target}]:{source}" for target, source in mounts]


def version(binary: str) -> str:
    """Return the version of the CRIU at `binary`, such as ``4.2.1``.

    Raises:
        JobFailed: there is none, or it does not run.
    """
    try:
        shown = subprocess.run(
            [binary, "--version"], env=ENVIRONMENT, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise _no_criu(binary, error) from None
    return shown.stdout.split()[1] if shown.stdout else "unknown"


def require(binary: str) -> None:
    """Make sure that there is a program to run, for it may be another one that runs it and finds nothing.

    Raises:
        JobFailed: there is none.
    """
    if shutil.which(binary) is None:
        reason = errno.EACCES if os.path.exists(binary) else errno.ENOENT
        raise _no_criu(binary, OSError(reason, os.strerror(reason)))


def _no_criu(binary: str, error: Exception) -> JobFailed:
    return JobFailed(
        "no_criu",
        f"CRIU cannot be run: {binary or 'none was found'}: {getattr(error, 'strerror', None) or error}.",
        "Run `make setup`, or name a CRIU that works in MIEHISTO_CRIU.",
    )


@contextmanager
def folders(image: Path, work: Path) -> Iterator[tuple[int, int]]:
    """Open the folders that CRIU reads or writes; it finds them in /proc of the sender of its request."""
    image_fd = os.open(image, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        work_fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield image_fd, work_fd
        finally:
            os.close(work_fd)
    finally:
        os.close(image_fd)
