"""How much a service may have, before and after a restore, and what it does not inherit from miehistod."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.policies import error_of_last_job, rules
from tests.servers import started
from tests.stack import CHECKOUT, Stack, eventually
from tests.test_privileges import Prisoner
from worker import cgroups, orphans, spares
from worker.process import Process

FORK = "[os.posix_spawn('/bin/sleep', ['sleep', '60'], {}) for _ in range(20)]"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    """A service's control groups end with it."""
    yield
    assert eventually(lambda: groups() == []), groups()


def groups() -> list[str]:
    places = [place for place in map(cgroups.home, ("memory", "tasks")) if place]
    return [str(path) for place in places for path in Path(place.folder).glob("miehisto-*")]


def needs(name: str) -> None:
    """Skip on a host that has no control group for a limit; what it says then is tested too."""
    if cgroups.home(name) is None:
        pytest.skip(f"this host has no control group for {name}")


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_service_has_no_more_tasks_than_its_limit(stack: Stack, folder: Path, user: str) -> None:
    needs("tasks")
    server = Prisoner(folder)
    service = started(stack, server, "-u", user, "--tasks", "10")
    for _ in range(2):
        assert server.ask(f"attempt(lambda: {FORK})") == "BlockingIOError"
        # Its init and itself are among them.
        assert server.ask("end_others()") == 8
        stack.restore(stack.dump(service))


def test_a_service_has_no_more_memory_than_its_limit(stack: Stack, folder: Path) -> None:
    needs("memory")
    server = Prisoner(folder)
    service = started(stack, server, "--memory", "64M")
    server.ask(f"kept.append('x' * (20 * {MIB}))")
    stack.restore(stack.dump(service))
    assert server.ask("len(kept[-1])") == 20 * MIB
    grown = server.ask(f"run(sys.executable, '-c', 'print(len(bytearray({100 * MIB})))')")
    assert grown == "", "a child that wants more is killed"
    assert server.ask("len(kept[-1])") == 20 * MIB
    place = cgroups.home("memory")
    assert place
    name = "memory.limit_in_bytes" if place.version == 1 else "memory.max"
    shown = Path(place.folder, f"miehisto-{service}", name)
    assert int(shown.read_text()) == 64 * MIB
    with contextlib.suppress(OSError):
        server.ask(f"kept.append('x' * (100 * {MIB}))")
    ended = eventually(lambda: (now := stack.show("service", service))["status"] == "exited" and now)
    assert ended["exit_signal"] == signal.SIGKILL
    assert "more memory than its limit" in ended["status_reason"]


def test_a_service_that_uses_all_its_memory_is_restored(stack: Stack, folder: Path) -> None:
    """CRIU works beside it in the same group, and needs some itself."""
    needs("memory")
    server = Prisoner(folder)
    service = started(stack, server, "--memory", "64M", "--tasks", "3")
    place = cgroups.home("memory")
    assert place
    group = Path(place.folder, f"miehisto-{service}")
    used = group / ("memory.usage_in_bytes" if place.version == 1 else "memory.current")
    while int(used.read_text()) < 61 * MIB:
        server.ask(f"kept.append('x' * {MIB // 2})")
    held = server.ask("len(kept)")
    for _ in range(2):
        stack.restore(stack.dump(service))
        assert server.ask("len(kept)") == held
        name = "memory.limit_in_bytes" if place.version == 1 else "memory.max"
        assert int((group / name).read_text()) == 64 * MIB
        assert server.ask(f"attempt(lambda: {FORK})") == "BlockingIOError"
        server.ask("end_others()")


def test_a_process_opens_no_more_files_than_its_limit(stack: Stack, folder: Path) -> None:
    server = Prisoner(folder)
    service = started(stack, server, "-u", "nobody", "--open-files", "40")
    for _ in range(2):
        many = "attempt(lambda: [os.dup(0) for _ in range(100)])"
        assert server.ask(many) == "OSError"
        server.ask("os.closerange(10, 100)")
        limits = server.ask("open('/proc/self/limits').read()").splitlines()
        assert next(row for row in limits if row.startswith("Max open files")).split()[3:5] == ["40", "40"]
        stack.restore(stack.dump(service))


def test_the_policys_limits_hold_for_who_asks_for_none(stack: Stack, folder: Path) -> None:
    needs("tasks")
    server = Prisoner(folder)
    with rules("tasks = 9", "open_files = 50"):
        service = started(stack, server)
        assert server.ask(f"attempt(lambda: {FORK})") == "BlockingIOError"
        answer = stack.mhctl("service", "create", "--tasks", "10", "--", "sleep", "9", check=False)
        assert "asks for 10, more than 9" in answer.err
    image = stack.dump(service)
    with rules("tasks = 5"):
        assert stack.mhctl("service", "restore", "--from", image, check=False).code == 1
        assert error_of_last_job(stack)["code"] == "policy_refused"
    stack.restore(image)


def test_bad_limits_are_refused(stack: Stack) -> None:
    for words in (("--memory", "12X"), ("--memory", "5"), ("--tasks", "1"), ("--open-files", "0")):
        answer = stack.mhctl("service", "create", *words, "--", "sleep", "9", check=False)
        assert answer.code == 2, answer
        assert "must be a" in answer.err


def test_a_host_without_control_groups_says_so() -> None:
    assert cgroups.home("memory", "22 1 0:20 / /proc rw - proc proc rw", "0::/") is None


def test_control_groups_of_version_2(folder: Path) -> None:
    """A host's tree of files as cgroups(7) describes it: which folder serves, and what is written into it."""
    unit = folder / "system.slice/miehistod.service"
    unit.mkdir(parents=True)
    mounts = f"30 23 0:26 / {folder} rw,nosuid shared:4 - cgroup2 cgroup2 rw"
    own = "0::/system.slice/miehistod.service"
    for place, given in ((folder, "cpu memory pids"), (unit, "")):
        (place / "cgroup.controllers").write_text("memory pids" if place == unit else "cpu io memory pids")
        (place / "cgroup.subtree_control").write_text(given)
    # The unit's own group has processes: what is below it may have no memory, and with pids no process.
    (unit / "cgroup.type").write_text("domain")
    (unit / "cgroup.procs").write_text("17")
    for name in ("memory", "tasks"):
        assert cgroups.home(name, mounts, own) == (str(folder), 2)
    assert (unit / "cgroup.subtree_control").read_text() == ""
    # Unless it was delegated, and its processes are in one below it.
    (unit / "cgroup.procs").write_text("")
    (unit / "cgroup.subtree_control").write_text("memory")
    assert cgroups.home("memory", mounts, own) == (str(unit), 2)

    group = folder / "group"
    group.mkdir()
    (group / "cgroup.controllers").touch()
    made = {"memory": str(group), "tasks": str(group)}
    cgroups.limit(made, {"memory": 5, "tasks": 7})
    cgroups.join(made, 9)
    found = {path.name: path.read_text() for path in group.iterdir()}
    assert found == {"cgroup.controllers": "", "memory.max": "5", "pids.max": "7", "cgroup.procs": "9"}


def test_a_container_s_top_group_is_freed_of_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 in a namespace, as an engine gives it to a container: its own group is the top, and full."""
    monkeypatch.setattr(cgroups, "_EMPTY_WITHIN", 0.05)  # nobody empties a file that is none of the kernel's
    others = folder / "init/cgroup.procs"
    for name, text in (("type", "domain"), ("controllers", "memory pids"), ("subtree_control", "")):
        (folder / f"cgroup.{name}").write_text(text)
    (folder / "cgroup.procs").write_text("17\n")
    mounts = f"30 23 0:26 / {folder} rw,nosuid - cgroup2 cgroup2 rw"
    for elsewhere in ("0::/system.slice/miehisto-worker.service", "4:memory:/"):
        cgroups.make_room(mounts, elsewhere)
    assert not others.exists()
    assert cgroups.home("memory", mounts, "0::/") is None
    cgroups.make_room(mounts, "0::/")
    assert others.read_text() == "17"
    (folder / "cgroup.procs").write_text("")
    assert cgroups.home("memory", mounts, "0::/init") == (str(folder), 2)
    others.unlink()
    (folder / "cgroup.procs").write_text("17\n")
    (folder / "cgroup.type").unlink()  # a host's own top group
    cgroups.make_room(mounts, "0::/")
    assert not others.exists()


def test_the_kernel_moves_a_group_s_processes(folder: Path) -> None:
    script = """
    set -e
    mount -t cgroup2 cgroup2 "$1"
    cd "$1"
    mkdir "$2"
    (echo 0 >"$2/cgroup.procs"; exec sleep 60) &
    until grep -q "^$!$" "$2/cgroup.procs"; do sleep 0.1; done
    (cd "$4"; "$3" -c "from worker import cgroups; cgroups._move_all('$1/$2', '$1/$2/init')")
    cat "$2/cgroup.procs"
    grep -c "^$!$" "$2/init/cgroup.procs"
    kill $!
    until rmdir "$2/init"; do sleep 0.1; done
    rmdir "$2"
    """
    if "cgroup2" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no control groups of version 2")
    words = [str(folder), f"miehisto-tests-{uuid.uuid4().hex}", sys.executable, str(CHECKOUT)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done


def test_what_a_supervisor_left_is_swept(stack: Stack) -> None:
    needs("tasks")
    service = uuid.uuid4().hex
    made = cgroups.make(service, {"tasks": 5})
    assert groups() == list(made.values())
    cgroups.sweep()
    assert groups() == []


def test_a_worker_that_starts_sweeps_no_service_from_under_its_supervisor(stack: Stack) -> None:
    """A supervisor outlives its worker, and may just have made groups that nobody is in yet."""
    needs("tasks")
    sweeps = "from worker import cgroups\nwhile True: cgroups.sweep()"
    with subprocess.Popen([sys.executable, "-c", sweeps], cwd=CHECKOUT) as sweeper:
        try:
            for _ in range(5):
                service = stack.create("/bin/sleep", "3600", options=("--tasks", "20"))
                assert groups(), "it has its limit"
                stack.restore(stack.dump(service))
                assert groups(), "it has it again"
                stack.mhctl("service", "delete", "--stop", service)
        finally:
            sweeper.kill()


def test_a_restore_whose_limit_is_refused_says_so(stack: Stack) -> None:
    """Of its group of the last run something is still there that has more than the limit."""
    place = cgroups.home("memory")
    swap = re.search(r"^SwapTotal: +0 kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if place is None or place.version != 1 or not swap:
        pytest.skip("the kernel refuses such a limit in control groups of version 1 alone, and without swap")
    service = stack.create("/bin/sleep", "3600", options=("--memory", "64M"))
    image = stack.dump(service)
    made = cgroups.make(service, {"memory": 0})
    holds = "x = bytearray(200 << 20)\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", f"input()\n{holds}"],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        try:
            cgroups.join(made, other.pid)
            assert other.stdin and other.stdout
            other.stdin.write("\n")
            other.stdin.flush()
            other.stdout.readline()
            refused = stack.mhctl("service", "restore", "--from", image, "--json", check=False)
        finally:
            other.kill()
    assert json.loads(refused.out)["error"]["code"] == "limit_refused", refused
    assert "limits cannot be set" in refused.err + refused.out
    cgroups.remove(made.values())
    stack.restore(image)
    stack.mhctl("service", "delete", "--stop", service)


def test_a_service_does_not_inherit_the_limits_of_who_started_miehistod(folder: Path) -> None:
    """A supervisor that was started with odd limits gives its service the ones that all have."""
    for name in ("state/services", "state/root", "run/services", "log"):
        (folder / name).mkdir(parents=True)
    service = uuid.uuid4().hex
    (folder / "state/services" / service).mkdir()
    (folder / "run/services" / service).mkdir()
    spec = {"argv": ["/bin/sleep", "600"]}
    (folder / "state/services" / service / "spec.json").write_text(json.dumps(spec))
    tini = subprocess.run(
        [sys.executable, "-c", "from miehisto_web import settings; print(settings.MIEHISTO_TINI)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    odd = ["prlimit", "--fsize=1000000:unlimited", "--cpu=1000:unlimited", "--nofile=300:900", "--"]
    order = ["start", service, *(f"--{name}-dir={folder / name}" for name in ("state", "run", "log"))]
    orphans.adopt()
    runmh = subprocess.Popen(
        ["nice", "-n", "7", "choom", "-n", "300", "--", *odd, *spares.PROGRAM, *order, f"--tini={tini}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert runmh.stdout
    with runmh.stdout as said:
        state = json.loads(said.readline())
    runmh.wait(10)
    main = state["main"][0]
    try:
        limits = {
            row[:26].strip(): row[26:].split()[:2]
            for row in Path(f"/proc/{main}/limits").read_text().splitlines()
        }
        assert limits["Max file size"] == ["unlimited", "unlimited"]
        assert limits["Max cpu time"] == ["unlimited", "unlimited"]
        assert limits["Max open files"][0] in {"900", "1024"}, "as many as it may, up to 1024"
        assert os.getpriority(os.PRIO_PROCESS, main) == 0
        # Only who has CAP_SYS_RESOURCE may go below what was once set.
        assert int(Path(f"/proc/{main}/oom_score_adj").read_text()) == 0
    finally:
        Process(*state["init"]).signal(signal.SIGKILL)
        Process(*state["runmh"]).wait(10)
        orphans.reap()
