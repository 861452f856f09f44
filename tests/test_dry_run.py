"""The dry run's word held to the truth: what it predicts of a real process is what a real dump then does."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.servers import PROGRAMS, Redis, connected, started
from tests.stack import Stack, eventually
from worker import claims, commands, criu, locks, orphans, preflight, process
from worker.engine import Engine
from worker.errors import JobFailed
from worker.paths import Paths
from worker.policy import Policy
from worker.supervision import Running
from worker.tools import Tools

# What CRIU can dump. One service has them all.
FINE = [
    *("plain", "threads", "shared_memory", "zombie", "stopped", "chrooted", "mount_namespace", "own_mount"),
    *("tcp_listener", "tcp_connection", "tcp_half_closed", "udp", "raw", "packet", "netlink"),
    *("unix_pair", "unix_listener", "unix_not_accepted", "unix_datagram_outside", "rights_on_their_way"),
    *("event_descriptors", "memory_file", "process_descriptor", "inotify", "inotify_shm", "fanotify"),
    *("fanotify_fid", "locks", "deleted", "deleted_sparse", "deleted_mapping", "deleted_folder", "fifo"),
    *("terminal", "terminal_session", "terminal_hung_up", "device", "odd_device", "path_only", "system_v"),
]

# What it cannot, with the code that both the prediction and the failed dump have.
REFUSED = {
    "mptcp": "mptcp",
    "vsock": "unsupported_socket",
    "unix_stream_outside": "unix_peer_outside",
    "unix_client_outside": "unix_peer_outside",
    "descriptor_from_outside": "mount_unknown",
    "message_queue": "mount_unknown",
    "io_uring": "io_uring",
    "io_uring_mapped": "io_uring",
    "inotify_proc": "inotify_handle",
    "bpf_map": "unsupported_file",
    "bpf_program": "unsupported_file",
    "perf_event": "unsupported_file",
    "user_faults": "unsupported_file",
    "fuse_device": "unsupported_file",
    "uts_namespace": "nested_namespace",
    "user_namespace": "nested_namespace",
    "pid_namespace": "nested_namespace",
    "cgroup_namespace": "nested_namespace",
    "time_namespace": "nested_namespace",
    "ipc_namespace": "nested_namespace",
    "uninterruptible": "freeze_timeout",
}
# What is dumped, but cannot be restored any more; the code is that of the failed restore.
NEVER_RESTORED = {
    "network_namespace": "nested_namespace",
    "terminal_from_outside": "dangling_tty",
    "terminal_of_another": "dangling_tty",
    "lock_outside": "file_locked",
}
# What needs an option.
WITH_OPTIONS = {
    "tcp_not_accepted": ("tcp_in_flight", {"tcp_skip_in_flight": True}),
    "deleted_large": ("deleted_file_too_large", {"ghost_limit": 261 << 20}),
}


class Node:
    """An engine on folders of its own, and what is outside of its services."""

    def __init__(self, folder: Path) -> None:
        paths = Paths(folder / "state", folder / "run", folder / "log")
        for path in (paths.images, paths.run_dir / "services", paths.state_dir / "services", paths.log_dir):
            path.mkdir(parents=True)
        self.paths = paths
        self.engine = Engine(Tools(paths, settings.MIEHISTO_CRIU, settings.MIEHISTO_TINI, settle=0.02))

    @contextmanager
    def service(self, folder: Path, *names: str) -> Iterator[tuple[str, Running]]:
        """A service that has all these things, for the time of a `with`."""
        service = uuid.uuid4().hex
        command = ["/usr/bin/python3", str(PROGRAMS / "constructs.py"), str(folder), *names]
        # Some of the things are made only by who has capabilities that services mostly lack.
        spec = {"argv": command, "privileges": {"cap_add": ["ALL"], "new_privileges": True}}
        running = self.engine.start(service, spec)
        log = self.paths.log(service)
        try:
            assert eventually(lambda: "ready" in log.read_text().splitlines()), log.read_text()
            yield service, running
        finally:
            self.engine.stop(service, 0)
            for sent in folder.glob("**/*"):
                assert not sent.is_mount()

    def dump(self, service: str, **options: Any) -> str:
        """Dump the service, and return the image's id."""
        image = uuid.uuid4().hex
        self.engine.dump(service, image, leave_running=True, options={"freeze_timeout": 1, **options})
        return image


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    orphans.adopt()
    yield Node(tmp_path_factory.mktemp("dry-run"))
    orphans.reap()


@pytest.fixture
def outside(folder: Path) -> Iterator[Path]:
    """A folder with what other programs of the host offer: sockets, a terminal."""
    with ExitStack() as kept:
        master, slave = os.openpty()
        kept.callback(os.close, master)
        kept.callback(os.close, slave)
        (folder / "terminal").write_text(os.ttyname(slave))
        stream, datagram = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for each, name in ((stream, "stream"), (datagram, "datagram")):
            kept.enter_context(each)
            each.bind(str(folder / f"outside-{name}.sock"))
        stream.listen()

        def answer() -> None:
            while True:
                try:
                    client, _ = stream.accept()
                except OSError:
                    return
                kept.enter_context(client)
                asked = os.environ.get("SENT", "")
                if asked == "lock_outside":
                    kept.callback(os.close, socket.recv_fds(client, 1, 1)[1][0])
                    client.send(b"x")
                with Path("/etc/passwd").open() as file:
                    if asked.endswith("from_outside"):
                        sent = slave if asked.startswith("terminal") else file.fileno()
                        socket.send_fds(client, [b"x"], [sent])

        thread = threading.Thread(target=answer)
        thread.start()
        yield folder
        stream.shutdown(socket.SHUT_RDWR)
        thread.join()


def codes(found: dict[str, Any], *severities: str) -> set[str]:
    return {each["code"] for each in found["findings"] if each["severity"] in severities}


def test_what_can_be_dumped_is_not_warned_of(bare: Node, outside: Path) -> None:
    with bare.service(outside, *FINE) as (service, running):
        before = [
            Path(f"/proc/{pid}/status").read_text().split("State:")[1][:3]
            for pid in process.tree(running.init.pid)
        ]
        found = bare.engine.check_service(service, {})
        assert (found["able"], found["verdict"], found["options"]) == (True, "yes", {}), found["findings"]
        assert not codes(found, "refusal", "option", "warning")
        assert found["connections"]["connected"] == 4
        assert len(found["listening"]) == 4
        assert found["processes"] == len(before) - 1, "the zombie is no process"

        image = bare.dump(service)
        size = sum(path.stat().st_size for path in bare.paths.image(image).iterdir())
        assert 0.5 < found["estimate"]["image_bytes"] / size < 2


@pytest.mark.parametrize("name", [*REFUSED, *NEVER_RESTORED])
def test_what_cannot_be_dumped_is_said_before(
    bare: Node, outside: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SENT", name)
    client = socket.socket(socket.AF_UNIX)

    def connect() -> None:
        eventually((outside / "own.sock").exists)
        client.connect(str(outside / "own.sock"))

    caller = threading.Thread(target=connect)
    if name == "unix_client_outside":
        caller.start()
    with client, bare.service(outside, name) as (service, _):
        found = bare.engine.check_service(service, {})
        assert found["verdict"] == "no"
        assert codes(found, "refusal", "option", "warning") == {(REFUSED | NEVER_RESTORED)[name]}
        if name in REFUSED:
            with pytest.raises(JobFailed) as failure:
                bare.dump(service)
        else:
            image = bare.dump(service)
            bare.engine.stop(service, 0)
            with pytest.raises(JobFailed) as failure:
                bare.engine.restore(service, image)
        assert failure.value.code == (REFUSED | NEVER_RESTORED)[name], failure.value.lines


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_what_needs_an_option_is_dumped_with_it(bare: Node, outside: Path, name: str) -> None:
    code, options = WITH_OPTIONS[name]
    with bare.service(outside, name) as (service, _):
        found = bare.engine.check_service(service, {})
        assert (found["verdict"], found["able"], found["options"]) == ("options", False, options)
        with pytest.raises(JobFailed) as failure:
            bare.dump(service)
        assert failure.value.code == code
        assert bare.engine.check_service(service, found["options"])["able"]
        bare.dump(service, **found["options"])


def test_who_waits_for_a_lock_gets_it_before_the_restore(bare: Node, outside: Path) -> None:
    with bare.service(outside, "locks") as (service, _):
        waiting = subprocess.Popen(
            ["flock", outside / "flock", "sh", "-c", "echo got it; read wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert waiting.stdin and waiting.stdout
        try:
            assert eventually(
                lambda: "file_locked" in codes(bare.engine.check_service(service, {}), "warning")
            )
            found = bare.engine.check_service(service, {})
            assert found["able"]
            assert f"flock (PID {waiting.pid}), outside" in found["findings"][0]["message"]
            image = uuid.uuid4().hex
            bare.engine.dump(service, image)
            assert waiting.stdout.readline() == b"got it\n"
            hasty = Engine(bare.engine.tools._replace(timeout=2))
            with pytest.raises(JobFailed, match="did not answer"):
                hasty.restore(service, image)
        finally:
            waiting.communicate()
        bare.engine.restore(service, image)


def test_a_debugger_stands_in_the_way(bare: Node, outside: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with bare.service(outside, "plain") as (service, running):
        assert libc.ptrace(0x4206, running.init.pid, 0, 0) == 0, "PTRACE_SEIZE"
        try:
            found = bare.engine.check_service(service, {})
            assert codes(found, "refusal") == {"ptrace_denied"}
            assert f"PID {os.getpid()}" in found["findings"][0]["message"]
            with pytest.raises(JobFailed) as failure:
                bare.dump(service)
            assert failure.value.code == "ptrace_denied"
        finally:
            libc.ptrace(0x4207, running.init.pid, 0, 0)  # PTRACE_INTERRUPT, for a detach needs a stop
            os.waitpid(running.init.pid, 0x40000000)
            libc.ptrace(17, running.init.pid, 0, 0)


def test_several_users_are_dumped_with_a_capability(bare: Node, outside: Path) -> None:
    if not criu.has_sys_resource():
        pytest.skip("this host lacks CAP_SYS_RESOURCE, so a dump of several users cannot be tried here")
    with bare.service(outside, "another_user") as (service, _):
        assert bare.engine.check_service(service, {})["able"]
        bare.dump(service)


def test_several_users_are_refused_without_it(bare: Node, outside: Path) -> None:
    if criu.has_sys_resource():
        pytest.skip("this host has CAP_SYS_RESOURCE; tests/test_users.py takes it away from a node")
    with bare.service(outside, "another_user") as (service, _):
        assert codes(bare.engine.check_service(service, {}), "refusal") == {"needs_sys_resource"}
        with pytest.raises(JobFailed) as failure:
            bare.dump(service)
        assert failure.value.code == "needs_sys_resource"


def test_a_pool_without_room_is_seen(bare: Node, outside: Path) -> None:
    with bare.service(outside, "plain") as (service, _):
        for options in ("size=1m", "size=64m,nr_inodes=8"):
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "pool", str(bare.paths.images)], check=True
            )
            try:
                found = bare.engine.check_service(service, {})
                assert codes(found, "refusal") == {"pool_full"}, options
            finally:
                subprocess.run(["umount", str(bare.paths.images)], check=True)


def test_room_is_what_the_dump_has_by_the_policy_beside_others_and_with_its_data(
    bare: Node, outside: Path
) -> None:
    data = outside / "data"
    data.mkdir()
    with bare.service(outside, "plain") as (service, running):
        needed = preflight.check_room(bare.paths.images, running.init.pid)
        pool = preflight.size_of(bare.paths.images) + needed + (8 << 20)
        engine = Engine(bare.engine.tools._replace(policy=lambda: Policy(pool=pool)))

        def says(*carry: str) -> set[str]:
            """Return why it is refused, by the dry run and by the dump alike."""
            found = engine.check_service(service, {"carry": list(carry)})
            image = uuid.uuid4().hex
            try:
                engine.dump(service, image, leave_running=True, carry=carry)
            except JobFailed as failure:
                assert codes(found, "refusal") == {failure.code}
            else:
                assert found["able"]
                engine.delete_image(image)
            return codes(found, "refusal")

        assert not says()
        (data / "large").write_bytes(b"x" * (12 << 20))
        assert says(str(data)) == {"pool_full"}
        (data / "large").unlink()
        assert not says(str(data))
        another = bare.paths.job_lock(uuid.uuid4().hex)
        another.parent.mkdir()
        with (
            locks.held(another) as held,
            claims.claimed(bare.paths, another, "0" * 32, pool, lambda _: 12 << 20),
        ):
            assert held is not None
            assert says() == {"pool_full"}


def test_a_command_is_looked_for_as_its_user(folder: Path) -> None:
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)

    def code(**asked: str) -> str:
        return str(commands.check(**asked).get("code", "able"))

    assert commands.check(command="sh", cwd=str(folder)) == {"able": True, "path": "/usr/bin/sh"}
    assert commands.check(command="./program", cwd=str(folder)) == {"able": True, "path": str(program)}
    assert code(command=str(program), user="nobody") == "command_not_executable"
    assert code(command=str(folder)) == "command_not_executable"
    assert code(command="program") == "command_not_found"
    assert code(command="program", path=f"/bin:{folder}") == "able"
    assert code(command="sh", cwd="/nowhere") == "bad_directory"
    assert code(command="sh", user="nobody", cwd="/root") == "bad_directory"
    assert code(command="sh", user="no-such-user") == "no_such_user"
    assert code(command="sh", group="no-such-group") == "no_such_group"


def test_the_dry_run_of_a_service_as_an_operator_asks_for_it(stack: Stack, folder: Path) -> None:
    server = Redis(folder)
    service = started(stack, server, "--name", "cache")
    with connected(server.port):
        told = stack.mhctl("service", "check", "cache").out
        assert told.startswith("Yes:")
        assert f"127.0.0.1:{server.port}" in told
        stack.dump("cache", "--leave-running")

        # It is no job of the service's: it neither waits for one nor stands in the way of one.
        reply = stack.api("POST", f"services/{service}/check?wait=30", {"tcp_close": True})
        job = reply.body
        assert (reply.status, job["kind"], job["status"]) == (200, "check_service", "succeeded")
        assert {each["code"] for each in job["result"]["findings"]} == {"connections_closed"}
        assert job["result"]["connections"]["connected"] == 1
        assert job["result"]["estimate"]["frozen_seconds"] > 0

    # What was asked to be closed is closed at both ends.
    with connected(server.port) as client:
        assert client.ask("PING") == "+PONG"
        image = stack.dump("cache", "--tcp-close")
        stack.restore(image)
        with pytest.raises(ConnectionError):
            client.ask("PING")
    assert server.state()["word"] == "kept"
    stack.mhctl("service", "stop", "cache")
    refused = stack.api("POST", "services/cache/check", {})
    assert (refused.status, refused.body["error"]["code"]) == (409, "service_not_running")
    odd = stack.api("POST", "services/cache/dump", {"ghost_limit": -1})
    assert (odd.status, odd.body["error"]["details"]) == (422, {"field": "ghost_limit"})


def test_what_refuses_is_told_by_mhctl_and_by_manage(stack: Stack, outside: Path) -> None:
    command = ["/usr/bin/python3", str(PROGRAMS / "constructs.py"), str(outside), "io_uring"]
    service = stack.create(*command)
    answer = stack.mhctl("service", "check", service, check=False)
    assert answer.code == 1
    assert answer.out.startswith("No: Process ")
    assert "UV_USE_IO_URING" in answer.out
    assert "cannot be dumped now" in answer.err
    asked = {"args": ["/no/such/program"]}
    assert stack.api("POST", "check-command?wait=30", asked).body["result"]["code"] == "command_not_found"
