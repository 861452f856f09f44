"""From a clone, with systemd: what the tutorial and the pages about installing and upgrading say to type."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhctl import __version__
from tests.deb.clean import Clean
from tests.deb.machine import Machine
from tests.debian_root import run
from tests.pages import Page
from tests.stack import CHECKOUT, eventually

LATER = "9.9.9"
SOURCE = "/srv/source"
CLONE = "/opt/miehisto-src"
SHOWN = "9491c63874fac947cc46d437b028b189"
"""The service that the page has."""
ASK = ("redis-cli", "-p", "7070", "incr", "questions")

# The node of the tutorial, for as long as this script runs.
_LOOK = """
for _ in $(seq 600); do grep -q ^ready: /var/log/miehistod.log && break; sleep 0.1; done
sudo mhctl check || { cat /var/log/miehistod.log; exit 1; }
"""


def typed(page: str) -> list[list[str]]:
    """Return the lines of each block that is typed here."""
    blocks = Page(CHECKOUT / "docs" / page).run_by
    return [
        text.splitlines()
        for command, text in blocks
        if command == "make test-deb" and not text.startswith("apt ")
    ]


def commit(source: Path, subject: str) -> None:
    """Commit all that lies in a repository."""
    run("git", "-C", source, "add", "--all")
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@node.example")
    run("git", "-C", source, *who, "commit", "--quiet", "--message", subject)


def repository(source: Path) -> None:
    """Make a repository of what this checkout would commit."""
    source.mkdir()
    listed = run("git", "-C", CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, source / name, follow_symlinks=False)
    run("git", "init", "--quiet", "--initial-branch=main", source)
    commit(source, "This version")


def make_later(source: Path) -> None:
    """Give the repository a later version."""
    path = source / "mhctl/__init__.py"
    text = path.read_text(encoding="utf-8")
    assert __version__ in text
    path.write_text(text.replace(__version__, LATER, 1), encoding="utf-8")
    commit(source, "A later version")


@pytest.fixture
def machine(debian: Clean) -> Iterator[Machine]:
    """A Debian that can boot, and is not booted yet."""
    machine = Machine(debian.root)
    try:
        yield machine
    finally:
        machine.end()


def moves_to_servers_of_debian_s(machine: Machine, listed: str) -> None:
    """Do as the page about PostgreSQL and Redis says; services run on."""
    moving, queueing = typed("how-to/use-postgresql.md")
    machine.run("bash", "-lec", "\n".join(moving))
    assert eventually(lambda: machine.run("bash", "-lec", "mhctl service list")) == listed
    users = "select username from auth_user order by username"
    assert machine.run("su", "postgres", "-c", f"psql -Atc '{users}' miehisto") == "admin\nroot\n"
    assert "dump and restore ok" in machine.run("bash", "-lec", "\n".join(queueing))
    assert machine.run("systemctl", "is-active", "miehisto-worker") == "active\n"
    assert machine.fails("systemctl", "is-active", "miehisto-redis") == "inactive\n"


def test_a_clone_is_set_up_started_upgraded_and_drained(debian: Clean, machine: Machine) -> None:
    repository(debian.root / SOURCE[1:])
    words = ("apt-get", "-q", "-y", "install", "--no-install-recommends")
    debian.run(*words, "systemd-sysv", "dbus", "sudo")
    debian.run(*words, "git", "make", "curl")  # as the tutorial says
    debian.run(*words, "postgresql")  # as a how-to page says

    (setting_up, starting) = typed("tutorial.md")
    (installing, looking, draining) = typed("install.md")
    (upgrading,) = typed("how-to/upgrade.md")
    clone, again, *start = installing
    debian.run("bash", "-lec", clone.replace("…", SOURCE))
    said = debian.run("bash", "-lec", "\n".join([f"cd {CLONE}", *setting_up]))
    assert "Miehistö is set up" in said and "Units are in" in said
    said = debian.run("bash", "-lec", "\n".join([*starting, _LOOK]), alone=True)
    assert "dump and restore ok" in said
    said = debian.run("bash", "-lec", f"cd {CLONE}\n{again}")
    assert "Miehistö is set up" in said and "warning" not in said

    (debian.root / "usr/sbin/policy-rc.d").unlink()
    machine.boot()
    said = machine.run("bash", "-lec", "\n".join(start))
    assert "dump and restore ok" in said
    command = "mhctl service create -u nobody --restore-on-boot -- redis-server --port 7070 --save ''"
    machine.run("bash", "-lec", command)
    assert eventually(lambda: machine.run(*ASK)) == "1\n"
    listed = machine.run("bash", "-lec", "mhctl service list")
    service = listed.split()[4]
    said = machine.run("bash", "-lec", "\n".join(looking).replace(SHOWN, service))
    assert said.count(f"miehisto-{service}.scope") > 1 and "redis-server" in said

    make_later(debian.root / SOURCE[1:])
    machine.run("bash", "-lec", "\n".join([f"cd {CLONE}", *upgrading]))
    assert machine.run("bash", "-lec", "mhctl --version") == f"mhctl {LATER}\n"
    assert eventually(lambda: machine.run("bash", "-lec", "mhctl service list")) == listed
    assert machine.run(*ASK) == "2\n"

    moves_to_servers_of_debian_s(machine, listed)
    assert machine.run(*ASK) == "3\n"

    machine.run("bash", "-lec", "\n".join(draining))
    machine.shut_down("reboot")
    machine.boot()
    assert eventually(lambda: machine.run(*ASK), 120) == "4\n", "it has its memory"

    said = machine.run("bash", "-lec", f"make -C {CLONE} uninstall")
    assert "miehisto-worker.service" in said and "Services and images stay" in said
    assert machine.run(*ASK) == "5\n"
    assert machine.run("find", "/etc/systemd", "/usr/local", "-name", "miehisto*") == ""
