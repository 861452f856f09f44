"""The package's units under a systemd that runs: services outlive the parts, and with the drain a reboot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deb.clean import Clean
from tests.deb.machine import Machine
from tests.stack import eventually

ASK = ("redis-cli", "-p", "7070", "incr", "questions")
WORKER = "miehisto-worker.service"


@pytest.fixture
def machine(stocked: Clean) -> Iterator[Machine]:
    """The Debian with the package's file, booted; it has no network."""
    machine = Machine(stocked.root)
    try:
        machine.boot()
        yield machine
    finally:
        machine.end()


def active(machine: Machine, unit: str) -> bool:
    return machine.run("systemctl", "show", "--property=ActiveState", unit) == "ActiveState=active\n"


def about(machine: Machine, unit: str, name: str) -> str:
    """Return what systemd says of a unit."""
    return machine.run("systemctl", "show", f"--property={name}", "--value", unit).strip()


def shown(machine: Machine, service: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run("mhctl", "--json", "service", "show", service))
    return found


def scope_of(machine: Machine, service: str) -> str:
    return f"miehisto-{shown(machine, service)['object_id']}.scope"


def everyone(machine: Machine, service: str) -> set[int]:
    """Return the PIDs of a service's own process, of its init and of its supervisor."""
    found = shown(machine, service)
    init = machine.run("cat", f"/proc/{found['pid']}/stat").rpartition(")")[2].split()[1]
    return {found["pid"], found["ppid"], int(init)}


def living_in(machine: Machine, unit: str) -> set[int]:
    """Return the PIDs of a unit's processes, as the kernel lists them."""
    folder = f"/sys/fs/cgroup/miehisto.slice/{unit}"
    assert about(machine, unit, "ControlGroup") == f"/miehisto.slice/{unit}"
    return set(map(int, machine.run("cat", f"{folder}/cgroup.procs").split()))


def is_gone(machine: Machine, unit: str) -> bool:
    return about(machine, unit, "LoadState") == "not-found"


def test_services_outlive_the_units_and_a_reboot(machine: Machine, package: Path) -> None:
    said = machine.run("apt-get", "-q", "-y", "install", f"/{package.name}")
    assert "miehisto-setup" in said, "the operator is told what is left to be done"
    assert not active(machine, WORKER)
    assert "remedy: Run `miehisto-setup`" in machine.fails("miehistod", "--only", "worker")
    assert "miehisto.target is started" in machine.run("miehisto-setup")
    assert active(machine, WORKER) and active(machine, "miehisto-site.service")

    words = ("--name", "counter", "--restore-on-boot", "--", "redis-server", "--port", "7070", "--save", "")
    machine.run("mhctl", "service", "create", "-u", "nobody", *words)
    assert eventually(lambda: machine.run(*ASK)) == "1\n"
    listed = machine.run("mhctl", "service", "list")
    assert "redis-server --port 7070" in listed
    scope = scope_of(machine, "counter")
    assert living_in(machine, scope) >= everyone(machine, "counter")
    assert about(machine, scope, "Description") == "Miehistö's service counter"
    run = about(machine, scope, "InvocationID")

    machine.run("systemctl", "restart", WORKER)
    assert machine.run(*ASK) == "2\n"
    told = machine.run("journalctl", "-o", "cat", "-u", WORKER)
    assert "left-over" not in told and "remains running" not in told
    machine.run("systemctl", "kill", WORKER)
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", WORKER)
    assert machine.run(*ASK) == "3\n"
    machine.run("systemctl", "stop", "miehisto.target", "miehisto-site.service", WORKER)
    assert eventually(lambda: not active(machine, WORKER))
    assert machine.run(*ASK) == "4\n"
    assert eventually(lambda: about(machine, WORKER, "ControlGroup") == ""), "it has left nothing there"
    machine.run("systemctl", "start", "miehisto.target")
    assert eventually(lambda: machine.run("mhctl", "service", "list")) == listed
    assert about(machine, scope, "InvocationID") == run
    assert living_in(machine, scope) >= everyone(machine, "counter")
    assert "left-over" not in machine.run("journalctl", "-o", "cat", "-u", WORKER)

    machine.run("mhctl", "service", "dump", "--leave-running", "counter")
    assert machine.run(*ASK) == "5\n"
    machine.shut_down("reboot")
    machine.boot()
    # It was ended by the shutdown, which is no wish of its operator's.
    assert eventually(lambda: machine.run(*ASK), 120) == "5\n", "it has the memory of its image"

    machine.run("systemctl", "enable", "--now", "miehisto-drain")
    machine.shut_down("reboot")
    machine.boot()
    assert "/var/lib/miehisto/images/" in machine.run("journalctl", "-o", "cat", "-u", "miehisto-drain")
    assert eventually(lambda: machine.run(*ASK), 120) == "6\n", "it has its memory"
    assert living_in(machine, scope) >= everyone(machine, "counter")
    assert about(machine, scope, "InvocationID") != run

    assert "nobody manages them" in machine.run("apt-get", "-q", "-y", "purge", "miehisto")
    assert machine.run(*ASK) == "7\n"
    assert machine.run("find", "/etc/systemd", "-name", "miehisto*") == ""


def prepared(machine: Machine, package: Path) -> None:
    machine.run("apt-get", "-q", "-y", "install", f"/{package.name}")
    machine.run("miehisto-setup")


def test_each_run_of_a_service_has_a_scope_that_ends_with_it(machine: Machine, package: Path) -> None:
    prepared(machine, package)
    words = ("--name", "counter", "--", "redis-server", "--port", "7070", "--save", "")
    machine.run("mhctl", "service", "create", *words)
    scope = scope_of(machine, "counter")
    assert eventually(lambda: machine.run(*ASK)) == "1\n"
    runs = {about(machine, scope, "InvocationID")}
    image = machine.run("mhctl", "service", "dump", "counter").strip().rpartition("/")[2]
    assert eventually(lambda: is_gone(machine, scope))
    for count in range(2, 5):
        machine.run("mhctl", "service", "restore", "--from", image)
        assert machine.run(*ASK) == "2\n"
        runs.add(about(machine, scope, "InvocationID"))
        assert len(runs) == count and living_in(machine, scope) >= everyone(machine, "counter")
        machine.run("mhctl", "service", "stop", "counter")
    machine.run("mhctl", "service", "start", "counter")
    machine.run("mhctl", "service", "restart", "counter")
    assert living_in(machine, scope) >= everyone(machine, "counter")

    killed = shown(machine, "counter")["ppid"]
    machine.run("sh", "-c", f"kill -KILL {killed}")
    assert eventually(lambda: shown(machine, "counter")["ppid"] not in {None, killed})
    assert living_in(machine, scope) >= everyone(machine, "counter"), "another supervisor follows it"

    machine.run("systemctl", "stop", scope)
    ended = eventually(lambda: (now := shown(machine, "counter"))["status"] == "exited" and now)
    assert "its supervisor had been sent SIGTERM" in ended["status_reason"], ended
    assert is_gone(machine, scope)
    machine.run("mhctl", "service", "create", "--name", "short", "--", "sleep", "3")
    scope = scope_of(machine, "short")
    assert eventually(lambda: shown(machine, "short")["status"] == "exited")
    assert eventually(lambda: is_gone(machine, scope))
    assert machine.run("systemctl", "--quiet", "list-units", "--all", "miehisto-*.scope") == ""


def test_a_systemd_that_makes_no_scope_keeps_no_service_down(machine: Machine, package: Path) -> None:
    prepared(machine, package)
    machine.run("systemctl", "mask", "--runtime", "miehisto.slice")
    for name in ("first", "second"):
        machine.run("mhctl", "service", "create", "--name", name, "--", "sleep", "3600")
        assert is_gone(machine, scope_of(machine, name))
    said = machine.run("journalctl", "-o", "cat", "-u", WORKER)
    assert "systemd makes no scopes" in said and "miehisto.slice is masked" in said, said
    machine.run("systemctl", "restart", WORKER)
    assert "sleep 3600" in machine.run("mhctl", "service", "list"), "they live on in the worker's group"
    machine.run("systemctl", "unmask", "--runtime", "miehisto.slice")
    with machine.hung():
        machine.run("mhctl", "service", "create", "--name", "third", "--", "sleep", "3601")
        image = machine.run("mhctl", "service", "dump", "third").strip().rpartition("/")[2]
        machine.run("mhctl", "service", "restore", "--from", image)
    assert "sleep 3601" in machine.run("mhctl", "service", "list")
    machine.run("mhctl", "service", "restart", "first")
    scope = scope_of(machine, "first")
    assert living_in(machine, scope) >= everyone(machine, "first")
