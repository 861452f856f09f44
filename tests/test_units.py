"""systemd's units and `make install`: sound, closed where that can be, and run with just their rights."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import install
from scripts.with_settings import settings_in
from tests.stack import CHECKOUT, Stack, eventually
from worker import orphans, policy

UNITS = sorted(path.name for path in install.UNITS.iterdir())
MOST_EXPOSED = {
    "miehisto-drain.service": 2.5,
    "miehisto-prepare.service": 3.3,
    "miehisto-redis.service": 2.3,
    "miehisto-site.service": 3.0,
    # Services are born in it and would get its sandbox, and CRIU needs nearly every right.
    "miehisto-worker.service": 10.0,
}
"""What `systemd-analyze security` may answer, of 10."""


def make(*words: str | Path) -> str:
    done = subprocess.run(["make", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def unit(name: str, section: str = "Service") -> configparser.SectionProxy:
    """Return a section of a unit; of a setting that is there twice the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(install.UNITS / name, encoding="utf-8")
    return parser[section]


def units_to_analyze(folder: Path) -> list[Path]:
    """Return the units with the commands of this very checkout."""
    paths = [folder / name for name in UNITS]
    for path in paths:
        path.write_text(install.unit_texts(CHECKOUT / ".venv/bin")[path.name], encoding="utf-8")
    return paths


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    words = ["systemd-analyze", "verify", "--man=no"]
    done = subprocess.run([*words, *units_to_analyze(tmp_path)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "miehisto" in line]
    assert (done.returncode, said) == (0, [])


def test_units_are_closed_as_far_as_they_can_be(tmp_path: Path) -> None:
    services = [path for path in units_to_analyze(tmp_path) if path.suffix == ".service"]
    assert {path.name for path in services} == set(MOST_EXPOSED)
    for path in services:
        words = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
        said = subprocess.run([*words, path], capture_output=True, text=True, check=True).stdout
        found = re.search(r"exposure level for \S+: ([0-9.]+)", said)
        assert found is not None, said
        assert float(found[1]) <= MOST_EXPOSED[path.name], said


def test_a_database_and_a_queue_on_this_host_end_after_the_parts() -> None:
    """What is started after is stopped before: a drain needs all of them."""
    theirs = {"postgresql.service", "redis-server.service", "valkey-server.service"}
    for name in ("miehisto-drain.service", "miehisto-site.service", "miehisto-worker.service"):
        text = (install.UNITS / name).read_text(encoding="utf-8")
        after = " ".join(re.findall(r"^After=(.*)$", text, re.M)).split()
        assert theirs <= set(after), name


def test_nothing_that_reads_or_writes_the_pool_runs_before_its_file_system_is_there() -> None:
    for name in ("miehisto-drain.service", "miehisto-prepare.service", "miehisto-worker.service"):
        assert unit(name, "Unit")["RequiresMountsFor"] == "/var/lib/miehisto/images", name


def test_a_part_that_cannot_start_is_tried_again_without_end() -> None:
    """As docs/install.md promises; a drain has nothing to start."""
    for name in set(MOST_EXPOSED) - {"miehisto-drain.service"}:
        assert (unit(name)["Restart"], unit(name)["RestartSec"]) == ("on-failure", "3s"), name
        assert unit(name, "Unit")["StartLimitIntervalSec"] == "0", name


def test_ending_the_worker_ends_no_service() -> None:
    worker = unit("miehisto-worker.service")
    assert worker["KillMode"] == "process"
    assert worker["OOMPolicy"] == "continue"
    sandbox = {"NoNewPrivileges", "PrivateTmp", "ProtectSystem", "CapabilityBoundingSet", "SystemCallFilter"}
    assert not sandbox & worker.keys(), "services would inherit it"


def test_parts_run_with_the_rights_that_their_units_give(folder: Path) -> None:
    """No systemd is needed for that: setpriv(1) takes the same capabilities away."""
    orphans.adopt()
    folder.chmod(0o755)
    node = Stack(folder)
    address = str(folder / "notify")
    running = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(address)
        heard.settimeout(60)
        try:
            for name in ("miehisto-prepare", "miehisto-redis", "miehisto-site"):
                rights = unit(f"{name}.service")
                kept = [f"+{word[4:].lower()}" for word in rights["CapabilityBoundingSet"].split()]
                assert rights["NoNewPrivileges"] == "yes"
                program, *options = rights["ExecStart"].split()
                assert program == "@BIN@/miehistod"
                command = [
                    *("setpriv", "--no-new-privs", f"--bounding-set=-all,{','.join(kept)}"),
                    *(sys.executable, "-m", "miehistod.main", *options),
                ]
                daemon = subprocess.Popen(
                    command,
                    cwd=CHECKOUT,
                    env=node.environment | {"NOTIFY_SOCKET": address},
                    stdin=subprocess.DEVNULL,
                )
                if rights["Type"] == "oneshot":
                    assert daemon.wait(120) == 0
                    continue
                running.append(daemon)
                assert rights["Type"] == "notify"
                assert heard.recv(100) == b"READY=1"
            assert node.api("GET", "services").body == []
        finally:
            for daemon in reversed(running):
                daemon.send_signal(signal.SIGTERM)
                assert daemon.wait(15) == 0
    orphans.reap()


def test_install_puts_everything_below_destdir_and_uninstall_takes_it_away(tmp_path: Path) -> None:
    words = (f"DESTDIR={tmp_path}", "PREFIX=/usr")
    make("install", *words)
    units = tmp_path / "usr/lib/systemd/system"
    assert sorted(path.name for path in units.iterdir()) == UNITS
    assert "ExecStart=/usr/bin/miehistod --only worker" in (units / "miehisto-worker.service").read_text()
    assert os.readlink(tmp_path / "usr/bin/mhctl") == str(CHECKOUT / ".venv/bin/mhctl")
    manage = tmp_path / "usr/bin/miehisto-manage"
    done = subprocess.run([manage, "version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("5."), "Django's own version, from any folder"
    settings = tmp_path / "etc/miehisto/miehisto.env"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert all(line.startswith("#") for line in settings.read_text().splitlines() if line)
    assert not (tmp_path / "etc/miehisto/policy.toml").exists(), "a policy is the operator's to set"

    settings.write_text("MIEHISTO_BIND=127.0.0.1:1\n")
    own = units / "miehisto-own.service"
    own.write_text("[Unit]\nDescription=the operator's\n")
    make("install", *words)
    make("uninstall", *words)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert left == {"etc/miehisto/miehisto.env", "usr/lib/systemd/system/miehisto-own.service"}
    settings.write_bytes(install.SETTINGS.read_bytes())
    make("uninstall", *words)
    assert not (tmp_path / "etc/miehisto").exists()


def test_a_unit_of_somebody_else_s_is_not_overwritten(tmp_path: Path) -> None:
    foreign = tmp_path / "usr/lib/systemd/system/miehisto-site.service"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("[Service]\n")
    words = ["make", "install", f"DESTDIR={tmp_path}", "PREFIX=/usr"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "not from `make install`" in done.stdout
    assert foreign.read_text() == "[Service]\n"


def test_the_example_of_a_policy_is_one() -> None:
    assert policy.read(install.POLICY) != policy.Policy()


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """Return the folder of commands of a fresh environment that has the wheel and nothing else."""
    wheels = CHECKOUT / "dist"
    for old in wheels.glob("miehisto_mhctl-*"):
        old.unlink()
    make("wheel-mhctl")
    (wheel,) = wheels.glob("miehisto_mhctl-*.whl")
    shutil.copy(wheel, tmp_path)
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    pip = [sys.executable, "-m", "pip", "--no-input", "--python", str(tmp_path / "venv/bin/python")]
    subprocess.run([*pip, "install", "--quiet", "--no-index", tmp_path / wheel.name], check=True)
    return tmp_path / "venv/bin"


def test_mhctl_alone_drives_a_node_from_a_laptop(laptop: Path, stack: Stack, tmp_path: Path) -> None:
    service = stack.create("sleep", "3600")
    environment = {
        "MIEHISTO_URL": f"http://127.0.0.1:{stack.port}",
        "MIEHISTO_TOKEN": stack.token(),
        "PATH": "/usr/bin",
    }

    def mhctl(*words: str) -> str:
        command = [str(laptop / "mhctl"), *words]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert mhctl("--version") == stack.mhctl("--version").out
    assert service in mhctl("service", "list")
    image = mhctl("service", "dump", service).strip().rpartition("/")[2]
    assert mhctl("service", "restore", "--from", image).strip() == image
    assert eventually(lambda: stack.show("service", service)["status"] == "running")


def test_settings_of_the_units_are_read_as_systemd_reads_them() -> None:
    text = "# a comment\n; another\n\nMIEHISTO_BIND=127.0.0.1:1\n DATABASE_URL = 'postgres://a@b/c?d=e'\nEMPTY=\n"
    assert settings_in(text) == {
        "MIEHISTO_BIND": "127.0.0.1:1",
        "DATABASE_URL": "postgres://a@b/c?d=e",
        "EMPTY": "",
    }
