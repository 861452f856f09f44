"""Services outlive what watches over them: a restart of miehistod, and the sudden death of its worker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Redis, connected, program, started
from tests.stack import Stack, eventually, living
from tests.test_dry_run import Node
from worker import orphans, process, spares
from worker.durable import write_json
from worker.errors import JobFailed


class ForegroundNode(Stack):
    """A node as in a terminal: a Ctrl-C there reaches all that has not made a session of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # What runs these tests in the background ignores SIGINT, and its children inherit that.
        self.command = ["env", "--default-signal=INT", "setsid", *self.command]

    def press_ctrl_c(self) -> None:
        """End miehistod."""
        assert self.daemon is not None
        os.killpg(self.daemon.pid, signal.SIGINT)
        assert self.daemon.wait(30) == 0, self.said()


@pytest.fixture(scope="module")
def second_node() -> Iterator[ForegroundNode]:
    """A node of its own beside the run's, so that it can be stopped and killed."""
    with living(ForegroundNode, "second-node") as made:
        yield made


def test_services_outlive_miehistod_and_its_worker(second_node: ForegroundNode, folder: Path) -> None:
    node = second_node
    server = Redis(folder)
    service = started(node, server)
    doomed = node.create("sleep", "3600")
    running = node.show("service", service)
    ends = node.show("service", doomed)["pid"]

    with connected(server.port) as client:
        assert client.ask("SELECT 5") == "+OK"

        # miehistod ends, and nothing happens to its services; what they do meanwhile is found out afterwards.
        node.press_ctrl_c()
        assert client.ask("SET told nobody") == "+OK"
        os.kill(ends, signal.SIGKILL)
        node.start()
        found = node.show("service", service)
        assert (found["status"], found["pid"], found["ppid"]) == ("running", running["pid"], running["ppid"])
        ended = eventually(lambda: (shown := node.show("service", doomed))["status"] == "exited" and shown)
        assert (ended["exit_code"], ended["exit_signal"]) == (None, signal.SIGKILL)

        # The worker is killed; another takes its place, and dumps and restores what the first had started.
        killed = node.part("worker")
        assert killed
        os.kill(killed, signal.SIGKILL)
        assert client.ask("GET told", lines=2) == "nobody"
        assert eventually(lambda: node.parts().get("worker", killed) != killed)
        node.restore(node.dump(service))
        assert client.ask("GET told", lines=2) == "nobody"
        assert node.show("service", service)["pid"] != running["pid"]


def test_services_outlive_a_miehistod_that_gives_up(second_node: Stack, folder: Path) -> None:
    """A part that dies again and again ends it: with exit code 1, and a last line that says which and how."""
    node = second_node
    assert node.daemon is not None
    daemon, killed = node.daemon, set[int]()
    server = Redis(folder)
    service = started(node, server)
    running, held = node.show("service", service), server.state()

    def gives_up() -> bool:
        found = node.parts().get("scheduler")
        if found and found not in killed:
            os.kill(found, signal.SIGKILL)
            killed.add(found)
        return daemon.poll() is not None

    assert eventually(gives_up, 120)
    assert daemon.returncode == 1
    assert re.fullmatch(
        r"miehistod: stopped everything: scheduler died \d+ times within 60 s, "
        r"the last time it was killed by SIGKILL, its last words: .+",
        node.said().splitlines()[-1],
    )
    assert server.state() == held
    node.start()
    found = node.show("service", service)
    assert (found["status"], found["pid"]) == ("running", running["pid"])


def kill_supervisor(node: Stack, service: str) -> dict[str, Any]:
    """Kill a service's runmh, and return the service as it is shown once another has taken over."""
    before = node.show("service", service)
    os.kill(before["ppid"], signal.SIGKILL)

    def look() -> dict[str, Any]:
        now = node.show("service", service)
        return now if now["ppid"] != before["ppid"] else {}

    after = eventually(look)
    assert (after["status"], after["pid"]) == ("running", before["pid"])
    assert "another one has taken over" in after["status_reason"]
    assert process.Process.of(after["ppid"])
    return after


def test_a_service_outlives_its_supervisor(second_node: Stack, folder: Path) -> None:
    """It is neither taken for dead nor started twice: another supervisor takes over what the first had."""
    node = second_node
    server = Redis(folder)
    service = started(node, server)
    with connected(server.port) as client:
        assert client.ask("SET told nobody") == "+OK"

        kill_supervisor(node, service)
        refused = node.mhctl("service", "start", service, check=False)
        assert (refused.code, "running" in refused.err) == (1, True)
        # It is dumped and restored as if it had been its own child.
        node.restore(node.dump(service))
        assert client.ask("GET told", lines=2) == "nobody"
        after = node.show("service", service)
        assert (after["status"], after["status_reason"]) == ("running", "")

        # One that was restored is taken over, too, and stopped.
        kill_supervisor(node, service)
        assert client.ask("GET told", lines=2) == "nobody"
    node.mhctl("service", "stop", service)
    stopped = node.show("service", service)
    assert (stopped["status"], stopped["exit_code"], stopped["pid"]) == ("stopped", 0, None)


def test_nothing_is_lost_of_what_a_service_says_while_its_supervisor_is_dead(
    second_node: Stack, folder: Path
) -> None:
    """It may say more than fits into its pipe, and how it ends is known as well."""
    node = second_node
    count = 40_000
    enough = folder / "enough"
    script = (
        f"import os, time\nfor n in range({count}): print(n, flush=True)\n"
        f"while not os.path.exists({str(enough)!r}): time.sleep(0.05)\nraise SystemExit(7)"
    )
    service = node.create(program("python3"), "-c", script)

    kill_supervisor(node, service)
    kill_supervisor(node, service)
    enough.touch()
    ended = eventually(lambda: (shown := node.show("service", service))["status"] == "exited" and shown)
    assert ended["exit_code"] == 7
    lines = node.mhctl("service", "logs", "-n", str(2 * count), service).out.splitlines()
    assert lines == [str(n) for n in range(count)]


def test_a_service_that_no_supervisor_can_take_over_yet_says_so(second_node: Stack) -> None:
    """It runs on and is not given up: its page names what is in the way until that is mended."""
    node = second_node
    service = node.create("sleep", "3600")
    before = node.show("service", service)
    errors = node.folder / f"run/services/{service}/runmh.err"
    errors.unlink()
    errors.mkdir()  # where a new supervisor would say what is wrong
    os.kill(before["ppid"], signal.SIGKILL)

    def shown(words: str) -> dict[str, Any]:
        now = node.show("service", service)
        return now if words in now["status_reason"] else {}

    alone = eventually(lambda: shown("none can take over yet"))
    assert str(errors) in alone["status_reason"]
    assert (alone["status"], alone["pid"], alone["ppid"]) == ("running", before["pid"], None)
    # Others are looked after as ever.
    kill_supervisor(node, node.create("sleep", "3600"))

    errors.rmdir()
    taken = eventually(lambda: shown("another one has taken over"))
    assert (taken["status"], taken["pid"]) == ("running", before["pid"])


def test_a_service_whose_output_is_lost_has_a_supervisor_all_the_same(second_node: Stack) -> None:
    """Where the pipe is not to be found that it prints to, it is still known when and how it ends."""
    node = second_node
    service = node.create("sleep", "3600")
    path = node.folder / f"run/services/{service}/state.json"
    write_json(path, {**json.loads(path.read_bytes()), "pipe": 1})
    taken = kill_supervisor(node, service)
    os.kill(taken["pid"], signal.SIGKILL)
    ended = eventually(lambda: (shown := node.show("service", service))["status"] == "exited" and shown)
    assert ended["exit_signal"] == signal.SIGKILL


def test_a_service_that_ends_with_its_supervisor_is_not_forgotten(second_node: Stack) -> None:
    node = second_node
    service = node.create("sleep", "3600")
    before = node.show("service", service)
    (init,) = process.children(before["ppid"])
    os.kill(before["ppid"], signal.SIGSTOP)  # it shall not say how its service ended
    assert eventually(lambda: process.status(before["ppid"])["State"].startswith("T"))
    os.kill(init, signal.SIGKILL)
    assert eventually(lambda: process.Process.of(init) is None)
    os.kill(before["ppid"], signal.SIGKILL)
    ended = eventually(lambda: (shown := node.show("service", service))["status"] == "exited" and shown)
    assert ended["status_reason"].startswith("It ended, and its supervisor with it")
    node.mhctl("service", "start", service)


def let_supervisors_die(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Let every supervisor that is started from now on be killed when it comes to a method of its own."""
    *python, code = spares.PROGRAM
    dies = f"Supervisor.{moment} = lambda *_, **__: os.kill(os.getpid(), 9)"
    code = code.replace("main()", f"import os; from worker.runmh.main import Supervisor; {dies}; main()")
    monkeypatch.setattr(spares, "PROGRAM", [*python, code])


@pytest.fixture
def sleeps() -> Iterator[str]:
    """So many seconds that no other test sleeps; no process of them is left."""
    orphans.adopt()
    length = f"3600.{os.getpid()}"
    yield length
    for pid in running_with(length):
        os.kill(pid, signal.SIGKILL)
    orphans.reap()


def test_a_supervisor_that_is_killed_while_it_starts_a_service_leaves_none_behind(
    folder: Path, sleeps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when it has made the service's init but not yet written of it: nobody could find it again."""
    node = Node(folder)
    let_supervisors_die(monkeypatch, "write_state")
    with pytest.raises(JobFailed) as failure:
        node.engine.start(uuid.uuid4().hex, {"argv": ["/bin/sleep", sleeps]})
    assert failure.value.code == "supervisor_died"
    assert running_with(sleeps) == []


def test_a_restore_whose_supervisors_are_killed_at_the_last_leaves_the_image_alone(
    folder: Path, sleeps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRIU is done, but nobody could be made to watch the service: it is ended, and what is left is said."""
    node = Node(folder)
    service, image = uuid.uuid4().hex, uuid.uuid4().hex
    node.engine.start(service, {"argv": ["/bin/sleep", sleeps]})
    node.engine.dump(service, image)
    with monkeypatch.context() as deadly:
        let_supervisors_die(deadly, "find_main")
        with pytest.raises(JobFailed) as failure:
            node.engine.restore(service, image)
    assert running_with(sleeps) == []
    assert failure.value.code == "supervisor_died"
    assert failure.value.message.endswith("No process, mount or firewall rule of it is left.")
    node.engine.restore(service, image)
    node.engine.stop(service, 0)


def running_with(word: str) -> list[int]:
    """Return the PIDs of the processes that have a word in their command lines."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in line.read_bytes().split(b"\0"):
                found.append(int(line.parent.name))
    return found


def test_the_end_of_an_init_is_told_from_that_of_its_service(second_node: Stack) -> None:
    """The kernel kills all of a PID namespace with its init."""
    node = second_node
    service = node.create("sleep", "3600")
    before = node.show("service", service)
    os.kill(process.children(before["ppid"])[0], signal.SIGKILL)
    ended = eventually(lambda: (shown := node.show("service", service))["status"] == "exited" and shown)
    assert ended["exit_signal"] == signal.SIGKILL
    assert ended["status_reason"] == "Its init was killed by SIGKILL, and with it all of its processes."


def test_a_stop_whose_worker_dies_is_still_a_stop(second_node: Stack) -> None:
    """Not an end that the service came to by itself, after which it would come back at the next boot."""
    node = second_node
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(3), sys.exit(0)))\n"
        "print('ready', flush=True)\nsignal.pause()"
    )
    service = node.create(program("python3"), "-c", script)
    assert eventually(lambda: "ready" in node.log(service))
    job = node.mhctl("service", "stop", "--grace", "60", "--no-wait", service).out.strip()
    assert eventually((node.folder / f"run/services/{service}/stopping").exists)
    worker = node.part("worker")
    assert worker
    os.kill(worker, signal.SIGKILL)

    shown = eventually(lambda: (now := node.show("service", service))["status"] == "stopped" and now, 20)
    assert shown and shown["exit_code"] == 0
    assert "was being stopped" in shown["status_reason"]
    assert node.show("job", job)["status"] == "lost"


def test_the_worker_may_watch_many_services(second_node: Stack) -> None:
    """Two descriptors each."""
    node = second_node
    worker = node.part("worker")
    assert worker
    soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    assert soft == hard
