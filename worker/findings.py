"""What a look at a running service may find, in the words of an operator. Knows not how it is found.

A code that a failed dump also has (worker/failures.py) means the same thing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Severity = Literal["refusal", "option", "warning", "note"]


class Finding(NamedTuple):
    """One thing that matters for a dump.

    Attributes:
        code: a word that programs can compare.
        severity: refusal (no dump, or none that could be restored), option (it needs `options`),
            warning (it works, but read this), note (what will happen).
        message: one sentence.
        remedy: what to do about it; empty for a note.
        pid: the process, in the host's PID namespace; 0 for the whole service.
        options: options of a dump that this asks for.
    """

    code: str
    severity: Severity
    message: str
    remedy: str = ""
    pid: int = 0
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return self._asdict()


_UNSUPPORTED_KIND = "Let the application not use it, then restart the service."


def io_uring(pid: int) -> Finding:
    return Finding(
        "io_uring",
        "refusal",
        f"Process {pid} uses io_uring, which CRIU cannot dump.",
        "Switch it off in the application (Node.js: UV_USE_IO_URING=0 in its environment), then restart it.",
        pid,
    )


def traced(pid: int) -> Finding:
    return Finding(
        "traced",
        "refusal",
        f"Process {pid} carries probes of a tracing tool (perf, bpftrace or the like).",
        "Stop the tracing tool, then dump.",
        pid,
    )


def debugged(pid: int, tracer: str) -> Finding:
    return Finding(
        "ptrace_denied",
        "refusal",
        f"Process {pid} is held by a debugger: {tracer}.",
        "Detach it (strace and gdb do so when they end), then dump.",
        pid,
    )


def uninterruptible(pid: int, name: str) -> Finding:
    return Finding(
        "freeze_timeout",
        "refusal",
        f"Process {pid} ({name}) is in state D: it waits in the kernel and cannot be frozen meanwhile.",
        "See what it waits for (ps -o pid,stat,wchan,args), mend that, then check again.",
        pid,
    )


def nested_namespace(pid: int, kind: str) -> Finding:
    return Finding(
        "nested_namespace",
        "refusal",
        f"Process {pid} has made a namespace of its own ({kind}), as sandboxes and container engines do.",
        "Switch the application's sandbox off.",
        pid,
    )


def unsupported_file(pid: int, descriptor: int, what: str) -> Finding:
    return Finding(
        "unsupported_file",
        "refusal",
        f"Descriptor {descriptor} of process {pid} is of a kind that CRIU cannot dump: {what}.",
        _UNSUPPORTED_KIND,
        pid,
    )


def unsupported_mapping(pid: int, what: str) -> Finding:
    return Finding(
        "unsupported_mapping",
        "refusal",
        f"Process {pid} has memory of a device mapped: {what}.",
        "Let the application not use that device.",
        pid,
    )


def mount_unknown(pid: int, descriptor: int, path: str) -> Finding:
    return Finding(
        "mount_unknown",
        "refusal",
        f"Descriptor {descriptor} of process {pid}, {path}, was opened outside the service's mounts.",
        "Let the application close it: as a rule another program has sent it over a unix socket.",
        pid,
    )


def dangling_terminal(pid: int, descriptor: int, path: str) -> Finding:
    return Finding(
        "dangling_tty",
        "refusal",
        f"Descriptor {descriptor} of process {pid}, {path}, is a terminal that another program holds, too.",
        "Let the application close it, or restart the service: Miehistö gives it no terminal.",
        pid,
    )


def file_overmounted(pid: int, path: str) -> Finding:
    return Finding(
        "file_overmounted",
        "refusal",
        f"Process {pid} holds {path} open, but something has been mounted over it since.",
        "Unmount what lies over it, or restart the service.",
        pid,
    )


def watched_file(pid: int, descriptor: int, kind: str, place: str, searched: Sequence[str]) -> Finding:
    """Return what is to be said of a file that CRIU cannot find by its handle.

    Args:
        kind: of the file system that it is on.
        place: a folder in which it would find it; "" if none is known.
        searched: where it was to search, and is not.
    """
    what = f"Descriptor {descriptor} of process {pid} watches a file of {kind} that CRIU cannot find again"
    if place:
        return Finding(
            "inotify_handle",
            "option",
            f"{what} by itself; in {place} it can.",
            "Let it search there (option force_irmap).",
            pid,
            {"force_irmap": [place]},
        )
    return Finding(
        "inotify_handle",
        "refusal",
        f"{what}, also not in {', '.join(searched)}." if searched else f"{what}.",
        "Let the application watch another file system, or name the folders of what it watches"
        " (option force_irmap).",
        pid,
    )


def lock_shared(pid: int, path: str, other: str) -> Finding:
    return Finding(
        "file_locked",
        "refusal",
        f"Process {pid} shares its lock on {path} with {other}, which is outside of the service; no restore"
        " can take the lock as long as that holds it.",
        "Let that process close the file, or let both be one service.",
        pid,
    )


def lock_awaited(pid: int, path: str, other: str) -> Finding:
    return Finding(
        "file_locked",
        "warning",
        f"{other}, outside of the service, waits for the lock that process {pid} has on {path}, and gets it"
        " when the service ends; a restore can't take it before that lets it go.",
        "End that process before the restore, or leave the service running (option leave_running).",
        pid,
    )


def deleted_too_large(pid: int, path: str, octets: int, limit: int) -> Finding:
    return Finding(
        "deleted_file_too_large",
        "option",
        f"Process {pid} holds the deleted file {path} open; its {octets} bytes are more than the"
        f" {limit} that an image takes of such a file.",
        "Let the service close it (reopening its logs does), or raise the limit (option ghost_limit).",
        pid,
        {"ghost_limit": (octets >> 20) + 1 << 20},
    )


def link_remap(pid: int, path: str) -> Finding:
    return Finding(
        "link_remap",
        "warning",
        f"Process {pid} holds {path} open, a name that was deleted while the file has another one.",
        "Its image can be restored once only, and not at all if the service is left running.",
        pid,
    )


def tcp_in_flight(count: int, port: int) -> Finding:
    return Finding(
        "tcp_in_flight",
        "option",
        f"Port {port} has {count} connection{'s' * (count != 1)} that the service has not accepted yet.",
        "Wait a moment and check again, or let them be dropped (option tcp_skip_in_flight).",
        options={"tcp_skip_in_flight": True},
    )


def mptcp(pid: int) -> Finding:
    return Finding(
        "mptcp",
        "refusal",
        f"Process {pid} uses multipath TCP, as Go 1.24 and newer do by default; CRIU cannot dump it.",
        "Set GODEBUG=multipathtcp=0 in the service's environment, then restart it.",
        pid,
    )


def unsupported_socket(pid: int, descriptor: int, kind: str) -> Finding:
    return Finding(
        "unsupported_socket",
        "refusal",
        f"Descriptor {descriptor} of process {pid} is a socket of a kind that CRIU cannot dump: {kind}.",
        _UNSUPPORTED_KIND,
        pid,
    )


def unix_peer_outside(pid: int, name: str) -> Finding:
    return Finding(
        "unix_peer_outside",
        "refusal",
        f"Process {pid} has a unix socket{f' ({name})' if name else ''} whose other end belongs to a process"
        " outside of the service.",
        "Close that connection before the dump, or let both processes be one service.",
        pid,
    )


def unix_waiting(pid: int, name: str) -> Finding:
    return Finding(
        "unix_in_flight",
        "note",
        f"A client that process {pid} has not accepted yet on {name} is left out of the image.",
        pid=pid,
    )


def unix_datagrams_outside(pid: int, name: str) -> Finding:
    return Finding(
        "unix_datagram_peer",
        "note",
        f"Process {pid} sends to the unix socket {name}, which must be there again at the restore.",
        pid=pid,
    )


def connections(count: int, close: bool) -> Finding:
    what = f"{count} open TCP connection{'s' * (count != 1)}"
    if close:
        return Finding("connections_closed", "note", f"The dump drops {what} of the image: they are closed.")
    return Finding(
        "connections_held",
        "note",
        f"The image keeps {what}: clients wait, and go on when it is restored here in time.",
    )


def refused(code: str, message: str, remedy: str) -> Finding:
    """Return what the preflight of a dump would say."""
    return Finding(code, "refusal", message, remedy)
