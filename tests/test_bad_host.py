"""What a host lacks, on a real node: Redis, CRIU, root's rights, room. Each is told, and harms no service.

One node has all of them in its own hands: its Redis is killed while its miehistod is stopped, its CRIU is a
link, its image pool a small file system in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from miehistod import account
from miehistod.launch import Launcher
from miehistod.settings import read
from tests.isolation import FOLDER
from tests.refusals import Witness, check_sentence, mhctl_refuses, nothing_changes
from tests.stack import CHECKOUT, Stack, eventually, living
from worker import process

POOL = "64m"
FILES = 10_000


class FragileNode(Stack):
    """A node whose Redis, CRIU and room can be taken away and given back."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.criu = folder / "criu"
        self.environment["MIEHISTO_CRIU"] = str(self.criu)
        pool = shlex.quote(f"{folder}/state/images")
        mount = f"mkdir -p {pool} && mount -t tmpfs -o size={POOL},nr_inodes={FILES} tmpfs {pool}"
        self.command = ["unshare", "--mount", "sh", "-c", f"{mount} && exec {shlex.join(self.command)}"]

    def give_criu(self) -> None:
        """Let MIEHISTO_CRIU lead to this host's CRIU."""
        with contextlib.suppress(FileExistsError):
            self.criu.symlink_to(_criu_of_this_host())

    def take_criu(self) -> None:
        """Let MIEHISTO_CRIU lead to nothing."""
        self.criu.unlink(missing_ok=True)

    def resize_pool(self, options: str) -> None:
        """Mount the pool with other options of tmpfs(5)."""
        assert self.daemon is not None
        enter = ["nsenter", f"--target={self.daemon.pid}", "--mount"]
        remount = [*enter, "mount", "-o", f"remount,{options}", f"{self.folder}/state/images"]
        # Who reads an image when it is deleted keeps its room for a moment, and a tmpfs does not shrink below
        # what it holds.
        assert eventually(lambda: subprocess.run(remount, check=False).returncode == 0), options

    @contextlib.contextmanager
    def without_redis(self) -> Iterator[None]:
        """Kill the node's Redis; miehistod, which would start it again at once, is stopped meanwhile."""
        assert self.daemon is not None
        redis = next(
            pid for pid in process.children(self.daemon.pid) if process.status(pid)["Name"] == "redis-server"
        )
        self.daemon.send_signal(signal.SIGSTOP)
        try:
            os.kill(redis, signal.SIGKILL)
            assert eventually(lambda: process.Process.of(redis) is None)
            yield
        finally:
            self.daemon.send_signal(signal.SIGCONT)


def _criu_of_this_host() -> str:
    shown = "from miehisto_web import settings; print(settings.MIEHISTO_CRIU)"
    return subprocess.run(
        [sys.executable, "-c", shown], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def fragile_node() -> Iterator[FragileNode]:
    """The node of this module; it starts without a CRIU."""
    with living(FragileNode, "fragile") as made:
        yield made


@pytest.fixture
def fragile(fragile_node: FragileNode) -> Iterator[FragileNode]:
    """That node with nothing on it, and with a CRIU and an empty pool."""
    fragile_node.give_criu()
    yield fragile_node
    fragile_node.give_criu()
    fragile_node.clear()
    fragile_node.resize_pool(f"size={POOL},nr_inodes={FILES}")


# --- no CRIU ----------------------------------------------------------------------------------------------


def test_no_criu(fragile: FragileNode) -> None:
    fragile.take_criu()
    witness = Witness(fragile)  # to start a service needs none
    with nothing_changes(fragile, jobs=1):
        refusal = mhctl_refuses(fragile, "service", "dump", witness.id, exit_code=1, code="no_criu")
        assert str(fragile.criu) in refusal.message
        assert "make setup" in refusal.remedy and "MIEHISTO_CRIU" in refusal.remedy
        assert witness.answers_as_before()
    fragile.give_criu()
    image = fragile.dump(witness.id)
    fragile.take_criu()
    with nothing_changes(fragile, jobs=1):
        words = ("service", "restore", "--from", image)
        refusal = mhctl_refuses(fragile, *words, exit_code=1, code="no_criu")
        assert str(fragile.criu) in refusal.message
        assert witness.is_silent()
    fragile.give_criu()
    fragile.restore(image)
    assert witness.answers_as_before()


def test_check_says_that_there_is_no_criu(fragile: FragileNode) -> None:
    fragile.take_criu()
    answer = fragile.mhctl("check", check=False)
    assert answer.code == 1
    first, remedy = answer.err.splitlines()
    assert first.startswith("mhctl: This host lacks CRIU")
    check_sentence(remedy.removeprefix("  remedy: "))
    told = json.loads(fragile.mhctl("check", "--json", check=False).out)["result"]
    assert told["able"] is False
    for found in told["checks"]:
        if not found["ok"]:
            check_sentence(found["remedy"])
    fragile.give_criu()
    fragile.resize_pool("size=256m")  # the node's small pool is too small for a check to be content
    fragile.mhctl("check")


# --- no Redis ---------------------------------------------------------------------------------------------


def test_redis_down(fragile: FragileNode) -> None:
    """Jobs stay queued, whoever asks is told so, and they are carried out when Redis is back."""
    witness = Witness(fragile)
    with fragile.without_redis():
        reply = fragile.api("POST", f"services/{witness.id}/dump", {"leave_running": True})
        assert (reply.status, reply.body["status"]) == (202, "queued")
        check_sentence(reply.body["warning"])
        assert "queue is down" in reply.body["warning"]
        asked = fragile.mhctl("service", "create", "--no-wait", "--", "sleep", "600")
        assert asked.err == f"mhctl: warning: {reply.body['warning']}\n"
        unwanted = fragile.mhctl("service", "create", "--no-wait", "--", "sleep", "600").out.strip()
        waiting = subprocess.Popen(
            [sys.executable, "-m", "mhctl.main", "service", "create", "--", "sleep", "600"],
            cwd=CHECKOUT,
            env=fragile.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert eventually(lambda: len(fragile.api("GET", "jobs?status=queued").body) == 4)
        job = fragile.show("job", asked.out.strip())
        assert (job["status"], job["warning"]) == ("queued", reply.body["warning"])
        service = fragile.show("service", job["service"])
        assert (service["status"], service["pid"]) == ("created", None)
        # All else goes on: looking, cancelling, the services themselves.
        assert fragile.mhctl("job", "cancel", unwanted).out.strip() == unwanted
        mhctl_refuses(fragile, "service", "dump", witness.id, exit_code=1, code="job_active")
        assert witness.answers_as_before()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert err == asked.err
    assert fragile.show("service", out.strip())["status"] == "running"
    for made in (reply.body["object_id"], asked.out.strip()):
        fragile.mhctl("job", "wait", made)
    assert fragile.show("service", job["service"])["status"] == "running"
    assert [image["service"] for image in fragile.api("GET", "images").body] == [witness.id]
    assert fragile.show("job", unwanted)["status"] == "cancelled"
    assert witness.answers_as_before()


# --- no room ----------------------------------------------------------------------------------------------


def test_a_pool_without_room_for_the_memory_is_seen_before_freezing(fragile: FragileNode) -> None:
    large = Witness(fragile, "memory=100")
    with nothing_changes(fragile, jobs=1):
        refusal = mhctl_refuses(fragile, "service", "dump", large.id, exit_code=1, code="pool_full")
        assert re.search(r"has 6\d MiB free; this dump needs about 1\d\d MiB", refusal.message)
        assert f"{fragile.folder}/state/images" in refusal.remedy
        steps = [event["step"] for event in fragile.show("job", refusal.job)["events"]]
        assert "freezing and writing memory" not in steps
        assert large.answers_as_before()
    fragile.resize_pool("size=256m")
    fragile.restore(fragile.dump(large.id))
    assert large.answers_as_before()


@pytest.mark.parametrize("option", [(), ("--leave-running",)])
def test_a_pool_without_room_for_a_deleted_file(fragile: FragileNode, option: tuple[str, ...]) -> None:
    """One that is still open goes into the image, too. What nobody can foresee is tried in tests/faults."""
    holder = Witness(fragile, f"deleted=80:{FOLDER}")
    with nothing_changes(fragile, jobs=1):
        words = ("service", "dump", holder.id, *option)
        refusal = mhctl_refuses(fragile, *words, exit_code=1, code="pool_full")
        assert "this dump needs about" in refusal.message
        assert fragile.show("job", refusal.job)["step"] == "looking before freezing"
        assert holder.answers_as_before()
    fragile.resize_pool("size=256m")
    fragile.restore(fragile.dump(holder.id))
    assert holder.answers_as_before()


@pytest.mark.parametrize("option", [(), ("--leave-running",)])
def test_a_pool_that_takes_no_more_files(fragile: FragileNode, option: tuple[str, ...]) -> None:
    """Room for each of CRIU's files, but for one file less than the image has: the manifest."""
    witness = Witness(fragile)
    image = fragile.dump(witness.id, "--leave-running")
    found = os.statvfs(fragile.state / "images")
    # CRIU's figures come after the sealing, and are given up for want of room.
    files = len({path.name for path in (fragile.state / "images" / image).iterdir()} - {"statistics.json"})
    fragile.resize_pool(f"nr_inodes={found.f_files - found.f_ffree + files}")  # a folder, and one too few
    with nothing_changes(fragile, jobs=1):
        words = ("service", "dump", witness.id, *option)
        refusal = mhctl_refuses(fragile, *words, exit_code=1, code="pool_full")
        assert re.search(r"can take only \d+ more files", refusal.message)
        assert fragile.show("job", refusal.job)["step"] == "looking before freezing"
        assert witness.answers_as_before()
    fragile.mhctl("image", "delete", image)  # as the remedy says
    fragile.resize_pool("nr_inodes=10000")
    fragile.restore(fragile.dump(witness.id))
    assert witness.answers_as_before()


# --- not root ---------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(fragile: FragileNode) -> Launcher:
    """Runs Python as a user who has no rights at all."""
    return Launcher(read(fragile.environment), account.find("nobody"))


def test_programs_that_need_root(fragile: FragileNode, nobody: Launcher) -> None:
    order = f"'start', '{'0' * 32}', '--state-dir=/', '--run-dir=/', '--log-dir=/', '--tini=/bin/true'"
    runmh = f"from worker.runmh.main import main; main([{order}])"
    with nothing_changes(fragile):
        for words in (("-m", "miehistod.main"), ("-c", runmh)):
            done = nobody.run_python_as_user(*words)
            assert (done.returncode, done.stdout) == (1, ""), done
            first, remedy = done.stderr.splitlines()
            check_sentence(first.partition(": ")[2].capitalize())
            assert "root" in first and "sudo" in remedy
            check_sentence(remedy.removeprefix("  remedy: "))


def test_check_host_says_that_it_is_not_run_by_root(fragile: FragileNode, nobody: Launcher) -> None:
    with nothing_changes(fragile):
        done = nobody.run_python_as_user("-m", "django", "check_host")
        assert done.returncode == 1, done.stderr
        assert re.search(r"MISSING\s+root: user id \d+\n\s+remedy: Run .* as root\.\n", done.stdout)


def test_mhctl_of_a_user_who_may_not_reach_the_daemon(fragile: FragileNode, nobody: Launcher) -> None:
    with nothing_changes(fragile):
        done = nobody.run_python_as_user("-m", "mhctl.main", "service", "list", "--json")
        assert done.returncode == 5
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "not_allowed" and "sudo" in error["remedy"]
        check_sentence(error["message"])
