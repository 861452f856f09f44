"""Why a dump or a restore failed: reads CRIU's own lines, gives an operator a cause and a remedy.

Knows CRIU's messages (of 4.2.1, and older forms where they differ) and nothing of services, images or jobs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

When = Literal["dump", "restore"]


class Explanation(NamedTuple):
    """What one line of CRIU's log means."""

    code: str
    cause: str
    remedy: str
    line: str
    words: dict[str, str | None] = {}  # noqa: RUF012 - never changed


class Row(NamedTuple):
    """One known failure; cause and remedy may name groups of the pattern, as in str.format."""

    when: When | None
    pattern: re.Pattern[str]
    code: str
    cause: str
    remedy: str


def explain(when: When, lines: Sequence[str]) -> Explanation | None:
    """Explain a failure of CRIU.

    Args:
        when: what CRIU was doing.
        lines: lines of its log, oldest first; those that tell of no error are passed over.

    Returns:
        The explanation by the first row of the table that fits any line, so that a cause wins over what
        came of it, whichever was logged first; None if no row fits.
    """
    telling = [line for line in lines if _TELLING.search(line)]
    for row in TABLE:
        if row.when not in (None, when):
            continue
        for line in telling:
            if match := row.pattern.search(line):
                words = match.groupdict()
                return Explanation(
                    row.code, row.cause.format(**words), row.remedy.format(**words), line, words
                )
    return None


# iptables-restore writes into CRIU's log itself, without CRIU's word for an error.
_TELLING = re.compile(r"Error|CHAIN_\w+ failed")


def _row(when: When | None, pattern: str, code: str, cause: str, remedy: str) -> Row:
    return Row(when, re.compile(pattern), code, cause, remedy)


_REPORT = "This is a fault of Miehistö, not of the service: report it together with CRIU's log."
_NEWER_CRIU = "Install a newer CRIU (make setup), then check the node (mhctl check)."
_VERIFY = (
    "Verify the image (mhctl image verify). If it is damaged, fetch a good copy or restore an older image."
)

# A table, and so longer than a module should be.
# The order matters: the first row that fits is the answer. "#n" is an issue of checkpoint-restore/criu;
# "seen" means that CRIU 4.2.1 was made to say it on Linux 6.18.
TABLE: tuple[Row, ...] = (
    # --- what breaks everything that comes after it
    _row(
        None,
        r"criu itself is within dumped tree",  # #2080
        "criu_inside",
        "CRIU was started by the very service that it should dump.",
        "Ask for the dump from outside the service.",
    ),
    _row(
        None,
        r"Unexpected rt vDSO area bounds",  # #2532
        "criu_too_old",
        "This CRIU is too old for this kernel: Linux 6.13 or newer needs CRIU 4.1.",
        _NEWER_CRIU,
    ),
    _row(
        None,
        r"max xsave frame exceed xsave_struct",  # #2835; only a warning since 3.19
        "criu_too_old",
        "This CRIU is too old for this CPU, which has more registers than it can store.",
        _NEWER_CRIU,
    ),
    _row(
        "dump",
        r"Can't get 1:(?:16|34) opt",  # #2718
        "criu_too_old",
        "This CRIU is too old for this kernel: on Linux 6.16 or newer, sockets need CRIU 4.2.",
        _NEWER_CRIU,
    ),
    _row(
        "restore",
        r"Failed to make mount \d+ slave: Invalid argument",  # #2694
        "criu_too_old",
        "This CRIU is too old for this kernel, which has changed how mounts are shared.",
        _NEWER_CRIU,
    ),
    _row(
        "dump",
        r"has rseq but kernel lacks get_rseq_conf",  # #2070
        "kernel_too_old",
        "The service uses rseq (every recent glibc does), which this kernel cannot show to CRIU.",
        "Run Linux 5.13 or newer.",
    ),
    # --- freezing
    _row(
        "dump",
        r"Timeout reached\. Try to interrupt|Unable to freeze cgroup|Unseizable non-zombie \d+ .*state D",
        "freeze_timeout",  # #423
        "A process of the service did not freeze in time; as a rule it waits for a disk.",
        "Find the process in state D (ps -eo pid,stat,wchan,args), mend what it waits for, then dump again;"
        " or give it more time (option freeze_timeout).",
    ),
    _row(
        None,
        r"Can(?:'t|not) get rlimit \d+: Operation not permitted",
        "needs_sys_resource",
        "CRIU lacks CAP_SYS_RESOURCE, without which it cannot dump processes of another user.",
        "Give the worker CAP_SYS_RESOURCE, or let every process of the service run as one user.",
    ),
    _row(
        "dump",
        r"PID (?P<pid>\d+) has uprobes vma",
        "traced",
        "Process {pid} carries probes of a tracing tool (perf, bpftrace or the like).",
        "Stop the tracing tool, then dump again.",
    ),
    # 4.2.1 only warns that it may not interrupt a task, and calls an error what follows: "Unable to detach".
    # Seen with a tracer attached, and the same with a task that had ended.
    _row(
        "dump",
        r"Unable to interrupt task:? (?P<pid>\d+).*not permitted",
        "ptrace_denied",
        "CRIU may not stop process {pid}: a debugger holds it, ptrace is restricted, or it has ended.",
        "Detach strace or gdb; else see kernel.yama.ptrace_scope, and whether the worker has CAP_SYS_PTRACE.",
    ),
    _row(
        "dump",
        r"(?:Unseizable non-zombie|Unable to detach from) (?P<pid>\d+)",
        "ptrace_denied",
        "CRIU could not stop process {pid}: a debugger holds it, ptrace is restricted, or it has ended.",
        "Detach strace or gdb; else see kernel.yama.ptrace_scope, and whether the worker has CAP_SYS_PTRACE.",
    ),
    _row(
        "restore",
        r"Can(?:'t|not) attach to (?:init|\d+): Operation not permitted",
        "ptrace_denied",
        "CRIU may not trace the processes that it has just made.",
        "See kernel.yama.ptrace_scope, and whether the worker has CAP_SYS_PTRACE.",
    ),
    # --- what the service uses and CRIU cannot store
    # A ring that is mapped shows its name. If it is not, a recent kernel refuses (EINVAL) to send its
    # descriptor over a socket, as CRIU's parasite does. Both seen; #2131, #2673.
    _row(
        "dump",
        r"anon_inode:\[io_uring\]|send_fds failed \(-22\)",
        "io_uring",
        "The service uses io_uring, which CRIU cannot dump.",
        "Switch it off in the application (Node.js: UV_USE_IO_URING=0 in its environment), then restart it.",
    ),
    _row(
        "dump",
        r"Unsupported proto 262|disable MPTCP",  # #2655; seen
        "mptcp",
        "The service uses multipath TCP, as Go 1.24 and newer do by default; CRIU cannot dump it.",
        "Set GODEBUG=multipathtcp=0 in the service's environment, then restart it.",
    ),
    _row(
        "dump",
        r"inet: Unsupported proto (?P<protocol>\d+)",
        "unsupported_protocol",
        "The service has a socket of IP protocol {protocol}, which CRIU cannot dump.",
        "Switch that protocol off in the application, then restart it.",
    ),
    _row(
        "dump",
        r"Unknown socket collected \(family (?P<family>\d+)\)",  # seen with a vsock
        "unsupported_socket",
        "The service has a socket of a kind that CRIU cannot dump (address family {family}).",
        "Let the application not use it, then restart it.",
    ),
    _row(
        "restore",
        r"Can't restore sub-task in NS",  # seen with a network namespace of a child
        "nested_namespace",
        "A process of the service had made a namespace of its own, which CRIU cannot make again.",
        "Switch the application's sandbox off, start it anew and dump it again.",
    ),
    _row(
        "dump",
        r"Can't dump nested (?P<kind>\w+) namespace for (?P<pid>\d+)",
        "nested_namespace",
        "Process {pid} has made a namespace of its own ({kind}), as sandboxes and container engines do.",
        "Switch the application's sandbox off.",
    ),
    _row(
        "dump",
        r"Can't dump half of stream unix connection|Can't dump name-less external socket"  # #1788
        r"|External socket is used"  # #772; seen with a datagram socket and with half of a socketpair
        r"|Unix socket \d+ (?:with unreachable|without) peer",
        "unix_peer_outside",
        "The service has a unix socket whose other end belongs to a process outside of it.",
        "Close that connection before the dump, or let both processes be one service.",
    ),
    _row(
        "dump",
        r"Can't dump that handle",  # #2854
        "inotify_handle",
        "The service watches a file (inotify) that CRIU cannot find again, as on overlayfs.",
        "Let the application watch files on another file system, switch its watching off, or name the"
        " folders in which CRIU shall search for them (option force_irmap).",
    ),
    _row(
        "dump",
        r"Can't dump ghost file /?(?P<file>.+) of (?P<size>\d+) size",  # #491; seen
        "deleted_file_too_large",
        "The service holds a deleted file open, /{file}; with {size} bytes it is too large for an image.",
        "Let the service close it (reopening its logs or restarting does), or raise the limit (option"
        " ghost_limit), then dump again.",
    ),
    _row(
        "dump",
        r"Can't create link remap for /?(?P<file>.+)\. Use",  # seen
        "options_missing",
        "The service holds /{file} open, a name that was deleted while the file lives on under another name.",
        "CRIU must be called with link-remap. " + _REPORT,
    ),
    _row(
        "dump",
        r"Can't link remap to /?(?P<file>.+): (?P<reason>.+)",
        "link_remap_failed",
        "CRIU could not make a helper link, /{file}, to a deleted file that the service has open: {reason}.",
        "Let the worker write to that folder, on a file system with hard links; or let the service close it.",
    ),
    _row(
        "dump",
        r"Some file locks are hold by dumping tasks",  # #2018; seen
        "options_missing",
        "The service holds file locks, and CRIU was not told to keep them.",
        "CRIU must be called with file-locks. " + _REPORT,
    ),
    _row(
        "dump",
        r"In-flight connection \(l\)|In-flight connections can be ignored",
        "tcp_in_flight",
        "A client was just connecting to the service.",
        "Dump again; if it is always so busy, leave such connections out (option tcp_skip_in_flight).",
    ),
    _row(
        None,
        r"Connected TCP socket, consider using|Connected TCP socket in image",  # #2535, #286; the first seen
        "options_missing",
        "The service has open TCP connections, and CRIU was not told to keep them.",
        "CRIU must be called with tcp-established. " + _REPORT,
    ),
    _row(
        "restore",
        r"Need to set the --tcp-close options|External socket found in image|Dumped with --allow-uprobes",
        "options_missing",
        "CRIU was not given an option that the image was dumped with.",
        "Restore with the options that the image was dumped with. If Miehistö made this image, report it.",
    ),
    # --- what the supervisor should have prevented
    _row(
        None,
        r"Found dangling tty|is not a session leader\. Consider|Don't have tty to inherit session from",
        "dangling_tty",
        "A terminal is attached to the service.",
        "Stop the service and start it through Miehistö, which gives it no terminal.",
    ),
    _row(
        "dump",
        r"Can't lookup mount=\d+ for fd=(?P<fd>\d+)",  # #595
        "mount_unknown",
        "Descriptor {fd} of the service is a file that was opened outside the service's mounts.",
        _REPORT,
    ),
    _row(
        "dump",
        r"Open files on overmounted mounts are not supported.*path=/?(?P<file>.+)",
        "file_overmounted",
        "The service holds /{file} open, but something has been mounted over it since.",
        "Unmount what lies over it, or restart the service.",
    ),
    _row(
        "dump",
        r"session leader of .*is outside of its pid namespace",  # #232
        "session_outside",
        "The service belongs to a session that began outside its PID namespace.",
        _REPORT,
    ),
    _row(
        None,
        r"has unreachable sharing",
        "mount_sharing",
        "A mount of the host has leaked into the service.",
        "Stop the service and start it again. " + _REPORT,
    ),
    _row(
        "dump",
        r"SysVIPC shmem map .* doesn't live in IPC ns",
        "ipc_outside",
        "The service uses System V shared memory of the host.",
        _REPORT,
    ),
    # --- the image
    _row(
        "dump",
        r"No space left on device|Disk quota exceeded",
        "pool_full",
        "The image pool ran full while CRIU was writing.",
        "Delete images that are no longer needed (mhctl image list shows their sizes), or enlarge the pool.",
    ),
    # A missing or cut file makes CRIU say one of these; each was seen so, but for "Img trimmed".
    _row(
        "restore",
        r"Unexpected EOF|Img trimmed|[Mm]agic doesn't match|Read \d+ bytes while \d+ expected from"
        r"|Reached EOF unexpectedly while reading page|Can't read pages data|Image corrupt",
        "image_damaged",
        "The image is damaged or incomplete.",
        _VERIFY,
    ),
    _row(
        "restore",
        r"Not supported images version|Too old image|Images corrupted or too old criu",
        "image_version",
        "This CRIU cannot read images of the version that dumped this one.",
        "Restore with the CRIU version that the image names (mhctl image show).",
    ),
    # --- files that are not as they were
    _row(
        "restore",
        r"File /?(?P<file>.+) has bad size (?P<size>\d+) \(expect (?P<expected>\d+)\)",
        "file_changed",  # #1258, #948, #68; seen
        "/{file} has changed since the dump: it has {size} bytes now and had {expected} then.",
        "Put the file back as it was when the service was dumped, then restore again.",
    ),
    # The mode tells of the kind first: 0100644 is a file, 040755 a folder (inode(7)).
    _row(
        "restore",
        r"File /?(?P<file>.+) has bad mode 0(?P<kind>\d+)\d{4} \(expect 0(?!(?P=kind)\d{4}\))",
        "file_kind_changed",  # seen
        "/{file} is of another kind than at the dump, as when a file stands where a folder was.",
        "Put back what was there when the service was dumped, then restore again.",
    ),
    _row(
        "restore",
        r"File /?(?P<file>.+) has bad mode \d*?(?P<mode>\d{3,4}) \(expect \d*?(?P<expected>\d{3,4})\)",
        "file_mode_changed",  # #650; seen
        "/{file} has other permissions than at the dump: {mode} now, {expected} then.",
        "Give it its permissions again (chmod {expected} /{file}), then restore again.",
    ),
    _row(
        "restore",
        r"File /?(?P<file>.+) has bad build-ID",  # #1972
        "program_changed",
        "/{file}, a program or library that the service runs, was replaced since the dump.",
        "Install the version of the dump again (was a package upgraded?), or start the service anew.",
    ),
    _row(
        "restore",
        r"Can't link /?(?P<link>.*link_remap\.\d+) -> /?(?P<file>.+): No such file",
        "link_remap_used",  # seen at a second restore
        "/{link}, CRIU's link to the deleted file /{file}, is gone; the first restore used it up.",
        "If the file still has another name, hard-link it to /{link}; else restore another image.",
    ),
    _row(
        "restore",
        r"Can't open file /?(?P<file>.+) on restore: No such file",  # #1854; seen
        "file_missing",
        "/{file}, which the service had open, is not on this host.",
        "Copy it back to where it was, then restore again.",
    ),
    _row(
        "restore",
        r"Can't open file /?(?P<file>.+) on restore: (?P<reason>.+)",
        "file_not_opened",
        "/{file}, which the service had open, cannot be opened: {reason}.",
        "Make it as it was at the dump: owner, permissions, file system mounted writable or not.",
    ),
    _row(
        "restore",
        r"Can not set (?:flock|posix lock|ofd lock)!",
        "file_locked",
        "A file lock that the service held is held by another process now.",
        "Find the holder (lslocks) and stop it, then restore again.",
    ),
    # --- PIDs and sessions
    _row(
        "restore",
        r"Can't fork for (?P<pid>\d+): File exists",  # #2692; seen
        "pid_taken",
        "PID {pid}, which the service had, is taken by another process, perhaps by a zombie.",
        "Find it (ps -fp {pid}), wait for its end or stop it (a zombie: its parent), then restore again.",
    ),
    _row(
        "restore",
        r"Pid \d+ do not match expected (?P<pid>\d+)|Thread pid mismatch"  # #807
        r"|Conflict with a dead task with the same PID|Unable to create a thread: -17",
        "pid_taken",
        "Another process took a PID of the service while it was being restored.",
        "Restore again. If it keeps happening, restore while less is being started on this host.",
    ),
    _row(
        "restore",
        r"Current [sg]id (?P<pid>\d+) intersects with",  # #1716
        "session_taken",
        "CRIU itself runs in session or group {pid}, a number that the service needs.",
        "Restore again; the next CRIU gets another number.",
    ),
    _row(
        "restore",
        r"Can't fork for \d+: Resource temporarily unavailable",
        "too_many_processes",
        "This host, or the worker's control group, has as many processes as it may have.",
        "See pids.max of the worker's control group and ulimit -u; stop what is not needed.",
    ),
    # --- network
    _row(
        "restore",
        r"Can't bind inet socket.*Address already in use",  # #2153; seen
        "port_in_use",
        "A port that the service listened on is held by another process.",
        "Stop the process that holds it (ss -lntup), then restore again.",
    ),
    _row(
        "restore",
        r"Can't bind inet socket.*Cannot assign requested address",  # #312
        "address_missing",
        "An IP address that the service was bound to is not on this host.",
        "Add the address (ip address add), then restore again.",
    ),
    _row(
        "restore",
        r"Can't connect inet socket back: (?P<reason>.+)",  # #457
        "connection_lost",
        "A TCP connection of the service cannot be taken up again: {reason}.",
        "Bring its address and route back; or drop the open connections (option tcp_close).",
    ),
    _row(
        "restore",
        r"unix: Can't bind id .* addr (?P<file>.+): Address already in use",
        "unix_socket_taken",
        "The unix socket {file} of the service exists already.",
        "Stop the process that listens on it, remove the file, then restore again.",
    ),
    _row(
        "restore",
        r"Can't bind transport socket",  # #1720
        "restore_concurrent",
        "Another restore is under way in the same network namespace.",
        "Wait for its end, then restore again.",
    ),
    # --- the host
    _row(
        "restore",
        r"can't write lsm profile|mismatched lsm types|(?:apparmor|selinux) LSM specified but",  # #1267
        "lsm_mismatch",
        "The AppArmor or SELinux profile that the service ran under is not the same on this host.",
        "Load that profile here (aa-status, sestatus), or restore on a host that has it.",
    ),
    _row(
        "restore",
        r"FPU feature required by image|CPU xsave (?:max )?size mismatch|CPU xfeatures has unsupported bits"
        r"|CPU (?:instruction )?capabilities do not match|FPU xsave area present, but host cpu",
        "cpu_mismatch",
        "This host's CPU lacks features of the CPU that the service was dumped on.",
        "Restore on a host with the same kind of CPU, or a newer one of that kind.",
    ),
    _row(
        "restore",
        r"Can't move .*into .*(?:cgroup\.procs|tasks)",
        "cgroup_missing",
        "The control group that the service was in does not exist here, or takes no process.",
        "Make it again. " + _REPORT,
    ),
    _row(
        "restore",
        r"fsnotify: Can't (?:add watch|create inotify).*(?:No space left on device|Too many open files)",
        "inotify_limit",
        "The service's user has used up the file watches (inotify) that this host allows.",
        "Raise fs.inotify.max_user_watches and fs.inotify.max_user_instances (sysctl), then restore again.",
    ),
    _row(
        "restore",
        r"No space left on device|Disk quota exceeded",
        "disk_full",
        "A file system that the restored service needs is full.",
        "Make room (df -h), then restore again.",
    ),
    _row(
        None,
        r"Cannot allocate memory",
        "out_of_memory",
        "There was not enough memory.",
        "See free -m and the worker's memory.max; stop what is not needed, then try again.",
    ),
    # --- what says least, last
    # CRIU unlocks after a failure too, so this may be what came of another one.
    # "No such file or directory" of nft is no failure: a second restore of an image says so, and works. Seen.
    _row(
        "restore",
        r"CHAIN_\w+ failed|Could not process rule: (?:File exists|Device or resource busy)",  # #1435, #2828
        "network_lock_left",
        "Firewall rules of CRIU are left from an earlier restore that failed; they cut the service off.",
        "Remove them (nft list tables shows CRIU-…; with iptables the chain CRIU), then restore again.",
    ),
    _row(
        None,
        r"Iptables configuration failed|Locking (?:network|connection) failed",
        "network_lock_failed",  # the first seen, without iptables
        "CRIU could not lock the service's network connections by firewall rules.",
        "Install nftables; see that the worker has CAP_NET_ADMIN and the kernel nf_tables.",
    ),
    _row(
        "dump",
        r"Can't dump file (?P<fd>\d+) of that type \[\d+\] \((?P<file>.+)\)",  # #1873; seen
        "unsupported_file",
        "Descriptor {fd} of the service is of a kind that CRIU cannot dump: {file}.",
        "See what it is (ls -l /proc/PID/fd/{fd}), and let the application not use it.",
    ),
    _row(
        "dump",
        r"Can't handle non-regular mapping on (?P<pid>\d+)'s map",
        "unsupported_mapping",
        "Process {pid} has memory of a device mapped, such as a graphics card.",
        "Let the application not use that device.",
    ),
    # Old CRIU does so against a new glibc (#1935), and 4.2.1 when files of the image are missing (seen).
    _row(
        "restore",
        r"killed by signal 11",
        "restore_crashed",
        "A process crashed while it was being restored: files of the image are missing, or CRIU is too old.",
        _VERIFY + " If it is whole, install a newer CRIU (make setup).",
    ),
    _row(
        None,
        r"Could not initialize kernel features detection",
        "criu_unusable",
        "CRIU does not work on this host.",
        "Check the node (mhctl check): it says what is missing.",
    ),
)
