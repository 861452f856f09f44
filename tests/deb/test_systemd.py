"""The package's units under a systemd that runs: services outlive the parts, and with the drain a reboot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deb.clean import Clean
from tests.deb.machine import CannotBoot, Machine
from tests.stack import eventually

ASK = ("redis-cli", "-p", "7070", "incr", "questions")
WORKER = "miehisto-worker.service"


@pytest.fixture
def machine(debian: Clean, package: Path) -> Iterator[Machine]:
    """A booted Debian with the package's file and, in apt's cache, all that it needs; it has no network."""
    (debian.root / package.name).write_bytes(package.read_bytes())
    debian.run("apt-get", "-q", "-y", "install", "--no-install-recommends", "systemd-sysv", "dbus")
    (debian.root / "usr/sbin/policy-rc.d").unlink()
    debian.run("apt-get", "-q", "-y", "install", "--download-only", f"/{package.name}")
    debian.bring_criu()
    machine = Machine(debian.root)
    try:
        machine.boot()
        yield machine
    except CannotBoot as reason:
        pytest.skip(f"this host boots no systemd in namespaces: {reason}")
    finally:
        machine.end()


def active(machine: Machine, unit: str) -> bool:
    return machine.run("systemctl", "show", "--property=ActiveState", unit) == "ActiveState=active\n"


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

    machine.run("systemctl", "restart", WORKER)
    assert machine.run(*ASK) == "2\n"
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", WORKER)
    assert machine.run(*ASK) == "3\n"
    machine.run("systemctl", "stop", "miehisto.target", "miehisto-site.service", WORKER)
    assert not active(machine, WORKER)
    assert machine.run(*ASK) == "4\n"
    machine.run("systemctl", "start", "miehisto.target")
    assert eventually(lambda: machine.run("mhctl", "service", "list")) == listed

    machine.run("systemctl", "enable", "--now", "miehisto-drain")
    machine.shut_down("reboot")
    machine.boot()
    assert "/var/lib/miehisto/images/" in machine.run("journalctl", "-o", "cat", "-u", "miehisto-drain")
    assert eventually(lambda: machine.run(*ASK), 120) == "5\n", "it has its memory"

    assert "nobody manages them" in machine.run("apt-get", "-q", "-y", "purge", "miehisto")
    assert machine.run(*ASK) == "6\n"
    assert machine.run("find", "/etc/systemd", "-name", "miehisto*") == ""
