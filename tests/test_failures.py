"""CRIU's own words, and what the worker makes of them. Needs no CRIU."""

# ruff: noqa: E501 (lines of a log are quoted whole)

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from services.criu_options import OPTIONS
from worker import remedies
from worker.failures import TABLE, Row, When, explain

# When, code, and a line as the log holds it. Each row of the table is met by at least one.
_CASES = """\
dump    criu_inside             Error (compel/src/lib/infect.c:261): The criu itself is within dumped tree.
dump    criu_too_old            Error (criu/vdso.c:628): vdso: Unexpected rt vDSO area bounds
dump    criu_too_old            Error (criu/cpu.c:501): cpu: fpu: max xsave frame exceed xsave_struct (2696 2440)
dump    criu_too_old            Error (criu/sockets.c:568): sockets: Can't get 1:16 opt: Operation not supported
dump    criu_too_old            Error (criu/sockets.c:568): sockets: Can't get 1:34 opt: Operation not supported
restore criu_too_old            Error (criu/mount-v2.c:905): mnt-v2: Failed to make mount 1301 slave: Invalid argument
dump    kernel_too_old          Error (criu/cr-dump.c:1087): 812 has rseq but kernel lacks get_rseq_conf feature
dump    freeze_timeout          Error (criu/cr-dump.c:1784): Timeout reached. Try to interrupt: 0
dump    freeze_timeout          Error (criu/seize.c:566): Unable to freeze cgroup /sys/fs/cgroup/freezer/x
dump    needs_sys_resource      Error (criu/cr-dump.c:307): Can't get rlimit 0: Operation not permitted
dump    traced                  Error (criu/proc_parse.c:624): PID 812 has uprobes vma. Consider using --allow-uprobes.
dump    ptrace_denied           Error (compel/src/lib/infect.c:100): Unable to interrupt task: 812 (Operation not permitted)
dump    ptrace_denied           Error (compel/src/lib/infect.c:417): Unable to detach from 812: No such process
dump    ptrace_denied           Error (compel/src/lib/infect.c:363): Unseizable non-zombie 812 found, state S, err -1/10
restore ptrace_denied           Error (criu/cr-restore.c:2009): Can't attach to init: Operation not permitted
dump    io_uring                Error (criu/proc_parse.c:502): Unknown shit 600 (anon_inode:[io_uring])
dump    io_uring                Error (criu/files-ext.c:94): Can't dump file 9 of that type [600] (anon anon_inode:[io_uring])
dump    io_uring                pie: 812: Error (criu/pie/parasite.c:588): send_fds failed (-22)
dump    mptcp                   Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket ea15
dump    unsupported_protocol    Error (criu/sk-inet.c:137): inet: Unsupported proto 132 for socket ea15
dump    unsupported_socket      Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 40)
restore nested_namespace        Error (criu/pstree.c:969): Can't restore sub-task in NS (cflags 40000000)
restore dangling_tty            Error (criu/tty.c:1010): tty: Don't have tty to inherit session from, aborting
dump    nested_namespace        Error (criu/namespaces.c:1013): Can't dump nested uts namespace for 812
dump    unix_peer_outside       Error (criu/sk-unix.c:856): unix: Can't dump half of stream unix connection. name: (null); peer name: /run/x
dump    unix_peer_outside       Error (criu/sk-unix.c:874): unix: External socket is used. Consider using --ext-unix-sk option.
dump    unix_peer_outside       Error (criu/sk-unix.c:881): unix: Can't dump name-less external socket.
dump    inotify_handle          Error (criu/fsnotify.c:272): fsnotify: \tCan't dump that handle
dump    deleted_file_too_large  Error (criu/files-reg.c:1031): Can't dump ghost file /srv/gone.bin of 3002368 size, increase limit
dump    options_missing         Error (criu/files-reg.c:1122): Can't create link remap for /srv/l1. Use link-remap option.
dump    link_remap_failed       Error (criu/files-reg.c:1170): Can't link remap to srv/link_remap.4: Operation not permitted
dump    options_missing         Error (criu/file-lock.c:110): Some file locks are hold by dumping tasks! You can try --file-locks to dump them.
dump    tcp_in_flight           Error (criu/sk-inet.c:186): inet: In-flight connection (l) for 1d1b
dump    options_missing         Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.
restore options_missing         Error (criu/sk-inet.c:868): inet: Connected TCP socket in image
restore options_missing         Error (criu/sk-unix.c:2119): unix: External socket found in image. Consider using the --ext-unix-sk option to allow restoring it.
restore options_missing         Error (criu/image.c:92): Need to set the --tcp-close options.
dump    dangling_tty            Error (criu/tty.c:2376): tty: Found dangling tty with sid 1 pgid 9 (pts) on peer fd 0.
dump    dangling_tty            Error (criu/pstree.c:118): The root process 9 is not a session leader. Consider using --shell-job option
dump    mount_unknown           Error (criu/files-reg.c:1838): Can't lookup mount=26 for fd=0 path=/dev/null
dump    file_overmounted        Error (criu/files-reg.c:1850): Open files on overmounted mounts are not supported yet; mount=9 fd=3 path=/mnt/x
dump    session_outside         Error (criu/cr-dump.c:1401): A session leader of 812(1) is outside of its pid namespace
dump    mount_sharing           Error (criu/mount.c:1120): mnt: Mount 412 ./sys/fs/cgroup (master_id: 9 shared_id: 0) has unreachable sharing. Try --enable-external-masters.
dump    ipc_outside             Error (criu/cr-dump.c:420): Task 812 with SysVIPC shmem map @7f1c44d6d000 doesn't live in IPC ns
dump    pool_full               Error (criu/bfd.c:359): bfd: Error flushing image: No space left on device
restore image_damaged           Error (criu/protobuf.c:72): Unexpected EOF on (empty-image)
restore image_damaged           Error (criu/image.c:887): Unexpected EOF
restore image_damaged           Error (criu/image.c:868): Img trimmed 12/44
restore image_damaged           Error (criu/image.c:554): Head magic doesn't match for core-1.img
restore image_damaged           Error (criu/image.c:564): Magic doesn't match for files.img
restore image_damaged           Error (criu/protobuf.c:93): Read 28 bytes while 107 expected from /pool/files.img: No such file or directory
restore image_damaged           pie: 90: Error (criu/pie/restorer.c:1907): Can't read pages data (-9)
restore image_version           Error (criu/image.c:86): Not supported images version 3
restore file_changed            Error (criu/files-reg.c:2175): File srv/data.txt has bad size 9 (expect 5)
restore file_kind_changed       Error (criu/files-reg.c:2294): File srv/data has bad mode 0100644 (expect 040755)
restore file_mode_changed       Error (criu/files-reg.c:2294): File srv/data has bad mode 040700 (expect 040755)
restore file_mode_changed       Error (criu/files-reg.c:2294): File srv/data.txt has bad mode 0100600 (expect 0100644)
restore program_changed         Error (criu/files-reg.c:2146): File usr/bin/redis-server has bad build-ID
restore link_remap_used         Error (criu/files-reg.c:2258): Can't link srv/link_remap.17 -> srv/l1: No such file or directory
restore file_missing            Error (criu/files-reg.c:2353): Can't open file srv/data.txt on restore: No such file or directory
restore file_not_opened         Error (criu/files-reg.c:2353): Can't open file srv/data.txt on restore: Permission denied
restore file_locked             Error (criu/file-lock.c:618): Can not set posix lock!
restore pid_taken               Error (criu/cr-restore.c:1237): Can't fork for 2858: File exists
restore pid_taken               Error (criu/cr-restore.c:1790): Pid 2860 do not match expected 2858
restore pid_taken               Error (criu/pie/restorer.c:616): Thread pid mismatch 2860/2858
restore session_taken           Error (criu/pstree.c:437): Current sid 40 intersects with pid (40) in images
restore session_taken           Error (criu/pstree.c:455): Current gid 40 intersects with pgid of (40) in images
restore too_many_processes      Error (criu/cr-restore.c:1237): Can't fork for 2858: Resource temporarily unavailable
restore port_in_use             Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 15): Address already in use
restore port_in_use             Error (soccr/soccr.c:529): Can't bind inet socket back: Address already in use
restore address_missing         Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 15): Cannot assign requested address
restore connection_lost         Error (soccr/soccr.c:556): Can't connect inet socket back: Network is unreachable
restore unix_socket_taken       Error (criu/sk-unix.c:1510): unix: Can't bind id 0x9 ino 71 addr /run/x.sock: Address already in use
restore restore_concurrent      Error (criu/files.c:1850): Can't bind transport socket /crtools-fd-1-0: Address already in use
restore lsm_mismatch            Error (criu/lsm.c:421): mismatched lsm types and lsm profile specified
restore lsm_mismatch            pie: 1: Error (criu/pie/restorer.c:204): can't write lsm profile -2
restore cpu_mismatch            Error (criu/arch/x86/cpu.c:391): cpu: FPU feature required by image is not supported on host (fpu:1 fxsr:1 osxsave:1 xsaves:0)
restore cpu_mismatch            Error (criu/arch/x86/cpu.c:407): cpu: CPU xsave size mismatch (2696/832)
restore cgroup_missing          Error (criu/cgroup.c:1278): cg: Can't move into systemd//a.service/cgroup.procs (-1/-1): No such file or directory
restore inotify_limit           Error (criu/fsnotify.c:520): fsnotify: Can't add watch for 0x9 with 0x1: No space left on device
restore disk_full               Error (criu/files-reg.c:300): Can't transfer data to ghost file from image: No space left on device
restore out_of_memory           Error (criu/cr-restore.c:1237): Can't fork for 2858: Cannot allocate memory
restore network_lock_left       line 7: CHAIN_USER_DEL failed (Device or resource busy): chain CRIU
restore network_lock_left       Error: Could not process rule: File exists
dump    network_lock_failed     Error (criu/netfilter.c:105): Iptables configuration failed
dump    network_lock_failed     Error (criu/net.c:3106): net: Locking network failed using nftables
dump    unsupported_file        Error (criu/files-ext.c:94): Can't dump file 4 of that type [20600] (chr 10:237)
dump    unsupported_mapping     Error (criu/proc_parse.c:689): Can't handle non-regular mapping on 812's map 7f1c44d6d000
restore restore_crashed         Error (criu/cr-restore.c:1269): 90 killed by signal 11: Segmentation fault
restore criu_unusable           Error (criu/crtools.c:320): Could not initialize kernel features detection.
"""


def case(line: str) -> tuple[When, str, str]:
    when, code, said = line.split(maxsplit=2)
    return ("dump" if when == "dump" else "restore"), code, said


CASES = [case(line) for line in _CASES.splitlines()]


def logged(line: str) -> str:
    """Put CRIU's time before a line, as its log does with what it says itself."""
    return f"(00.012345)   2827: {line}" if line.startswith("Error (") else line


@pytest.mark.parametrize(("when", "code", "line"), CASES)
def test_a_line_of_criu_is_explained(when: When, code: str, line: str) -> None:
    explanation = explain(when, [logged(line)])

    assert explanation is not None
    assert explanation.code == code
    assert explanation.line == logged(line)
    for words in (explanation.cause, explanation.remedy):
        assert words.endswith(".")
        assert not set("{}") & set(words)
        assert "None" not in words


def test_every_row_is_met_by_a_case() -> None:
    def met(when: When, line: str) -> Row:
        return next(row for row in TABLE if row.when in (None, when) and row.pattern.search(line))

    assert [
        row.pattern.pattern for row in TABLE if row not in {met(when, line) for when, _, line in CASES}
    ] == []


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.code)
def test_a_row_names_only_what_its_pattern_finds(row: Row) -> None:
    named = {
        field
        for text in (row.cause, row.remedy)
        for _, field, _, _ in string.Formatter().parse(text)
        if field
    }

    assert named <= set(row.pattern.groupindex)
    assert row.code.isidentifier()
    assert row.code == row.code.lower()


def test_what_the_message_names_comes_from_the_line() -> None:
    size = explain("restore", ["Error (criu/files-reg.c:2175): File srv/a {b}.txt has bad size 9 (expect 5)"])
    mode = explain(
        "restore", ["Error (criu/files-reg.c:2294): File srv/c has bad mode 0100600 (expect 0104755)"]
    )

    assert size is not None
    assert "/srv/a {b}.txt" in size.cause
    assert "9 bytes now and had 5 then" in size.cause
    assert mode is not None
    assert "chmod 4755 /srv/c" in mode.remedy


@pytest.mark.parametrize(
    ("when", "line"),
    [
        ("dump", "(00.041376) Error (criu/cr-dump.c:1975): Dumping FAILED."),
        ("restore", "(00.026483) Error (criu/cr-restore.c:2331): Restoring FAILED."),
        # Every host without CAP_SYS_RESOURCE says this, and goes on.
        (
            "dump",
            "(00.02) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted",
        ),
        # A second restore from one image finds the lock already gone, and works.
        ("restore", "Error: Could not process rule: No such file or directory"),
        # Not an error: 4.2.1 warns so and goes on.
        ("dump", "(00.01) Warn  (criu/cpu.c:501): cpu: fpu: max xsave frame exceed xsave_struct (2696 2440)"),
        # A row of the other direction.
        ("dump", "(00.02) Error (criu/cr-restore.c:1237): Can't fork for 2858: File exists"),
    ],
)
def test_what_is_not_known_is_not_explained(when: When, line: str) -> None:
    assert explain(when, [line]) is None
    assert explain(when, []) is None


@pytest.mark.parametrize(
    ("when", "code", "lines"),
    [
        # Logs of CRIU 4.2.1, shortened: the cause first, then what came of it.
        (
            "restore",
            "port_in_use",
            [
                "(00.026452)   2827: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 15): Address already in use",
                "(00.026461)   2827: Error (criu/files.c:1221): Unable to open fd=3 id=0xf",
                "line 6: CHAIN_USER_DEL failed (Device or resource busy): chain CRIU",
                "(00.026483) Error (criu/cr-restore.c:2331): Restoring FAILED.",
            ],
        ),
        (
            "dump",
            "io_uring",
            [
                "pie: 2730: Error (criu/pie/parasite.c:588): send_fds failed (-22)",
                "(00.035947) Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket",
                "(00.035959) Error (criu/cr-dump.c:1545): Dump files (pid: 2730) failed with -1",
            ],
        ),
        # The timeout is why the task could not be seized (eclipse-openj9/openj9 #21152).
        (
            "dump",
            "freeze_timeout",
            [
                "(10.004230) Error (compel/src/lib/infect.c:263): Unseizable non-zombie 19 found, state D, err -1/4",
                "(10.004231) Error (compel/src/lib/infect.c:417): Unable to detach from 19: No such process",
            ],
        ),
        (
            "restore",
            "image_damaged",
            [
                "(00.02)     90: Error (criu/protobuf.c:93): Read 12 bytes while 14 expected from /pool/pagemap-90.img: x",
                "(00.03) Error (criu/cr-restore.c:1269): 90 killed by signal 11: Segmentation fault",
            ],
        ),
        # The cause wins even when it was logged later.
        (
            "dump",
            "pool_full",
            [
                "(00.02) Error (criu/files-ext.c:94): Can't dump file 4 of that type [600] (anon x)",
                "(00.03) Error (criu/util.c:90): Can't write 4096 bytes: No space left on device",
            ],
        ),
    ],
)
def test_the_cause_wins_over_what_came_of_it(when: When, code: str, lines: list[str]) -> None:
    explanation = explain(when, lines)

    assert explanation is not None
    assert explanation.code == code


def test_of_two_lines_for_one_row_the_first_is_quoted() -> None:
    lines = [
        f"Error (criu/files-reg.c:2353): Can't open file {name} on restore: No such file" for name in "ab"
    ]
    explanation = explain("restore", lines)

    assert explanation is not None
    assert explanation.line == lines[0]


# What can be pressed after a failure, and with which options.
@pytest.mark.parametrize(
    ("when", "line", "options"),
    [
        (
            "dump",
            "Error (criu/sk-inet.c:186): inet: In-flight connection (l) for 1d1b",
            {"tcp_skip_in_flight": True},
        ),
        (
            "restore",
            "Error (soccr/soccr.c:556): Can't connect inet socket back: Network is unreachable",
            {"tcp_close": True},
        ),
        ("dump", "Error (criu/cr-dump.c:1784): Timeout reached. Try to interrupt: 0", {"freeze_timeout": 60}),
        (
            "dump",
            "Error (criu/files-reg.c:1031): Can't dump ghost file /srv/gone.bin of 3002368 size, increase limit",
            {"ghost_limit": 3 << 20},
        ),
    ],
)
def test_a_remedy_that_is_an_option_can_be_pressed(when: When, line: str, options: dict[str, object]) -> None:
    explanation = explain(when, [line])
    assert explanation
    offered = remedies.actions(explanation.code, explanation.words)
    assert options in [each["options"] for each in offered if each["action"] == "retry"]
    assert set(options) <= set(OPTIONS)
    # A sentence names the option, too, for who has no button.
    assert f"option {next(iter(options))}" in explanation.remedy


def test_every_code_that_offers_something_can_occur() -> None:
    said = "\n".join(path.read_text() for path in sorted(Path(remedies.__file__).parent.rglob("*.py")))
    known = set(re.findall(r'"([a-z_]+)"', said.replace(Path(remedies.__file__).read_text(), "")))
    assert set(remedies.ACTIONS) <= known
    assert {each["action"] for row in remedies.ACTIONS.values() for each in row} == {
        *("retry", "start", "verify", "check", "check_host", "prune", "images", "dump"),
    }
    assert remedies.actions("no such code") == []
    assert [each["action"] for each in remedies.actions("restore_failed", restoring=True)] == ["start"]
