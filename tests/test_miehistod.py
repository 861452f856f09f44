"""miehistod's own work with real processes: dropping rights, preparing folders, locks and settings.

The whole daemon with the real site is tested end to end elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from miehistod import account, folders, parts, readiness, sockets
from miehistod.account import Account
from miehistod.errors import CannotRun
from miehistod.launch import CHECKOUT, Launcher
from miehistod.settings import Settings, read
from miehistod.supervisor import Supervisor
from tests.supervising import supervised
from worker import process


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that the site's user may enter (pytest's own are closed to him)."""
    with tempfile.TemporaryDirectory(prefix="miehistod-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def settings(open_dir: Path) -> Settings:
    return read(
        {
            "MIEHISTO_STATE_DIR": f"{open_dir}/state",
            "MIEHISTO_RUN_DIR": f"{open_dir}/run",
            "MIEHISTO_LOG_DIR": f"{open_dir}/log",
            "MIEHISTO_BIND": "127.0.0.1:0",
            "MIEHISTO_NODE": "test",
        }
    )


@pytest.fixture
def site_user() -> Account:
    return account.find("miehisto")


@pytest.fixture
def launcher(settings: Settings, site_user: Account) -> Launcher:
    folders.make_folders(settings, site_user)
    made = Launcher(settings, site_user)
    made.make_places()
    return made


# --- starting a part --------------------------------------------------------------------------------------


def test_a_part_ends_when_miehistod_is_killed(launcher: Launcher) -> None:
    """The "miehistod" here is a process that starts a part as Launcher does, and is killed with -9."""
    program = (
        "import subprocess, sys, time\n"
        "from miehistod.launch import Launcher\n"
        "from miehistod import account, settings\n"
        "launcher = Launcher(settings.read(), account.find('miehisto'))\n"
        "for as_user in (True, False):\n"
        "    part = subprocess.Popen(launcher.wrap(['sleep', '300'], as_user=as_user))\n"
        "    print(part.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env=launcher.environment(as_user=False),
    ) as daemon:
        assert daemon.stdout is not None
        pids = [int(daemon.stdout.readline()) for _ in range(2)]
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not all(_runs_sleep(pid) for pid in pids):
            time.sleep(0.02)
        assert all(_runs_sleep(pid) for pid in pids)
        daemon.kill()
    while time.monotonic() < deadline and any(process.Process.of(pid) for pid in pids):
        time.sleep(0.02)
    assert not any(process.Process.of(pid) for pid in pids)


def _runs_sleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")


def test_the_sites_user_has_no_rights_left(launcher: Launcher, site_user: Account) -> None:
    done = launcher.run_python_as_user("-c", "import os; print(os.getresuid(), os.getgroups(), os.umask(0))")
    assert done.stdout == f"{(site_user.uid,) * 3} {list(site_user.groups)} 18\n"
    status = launcher.run_python_as_user("-c", "print(open('/proc/self/status').read())").stdout
    assert "CapEff:\t0000000000000000" in status
    assert "CapPrm:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_a_checkout_in_a_closed_folder_is_shown_to_the_sites_user(
    open_dir: Path, settings: Settings, site_user: Account
) -> None:
    checkout = open_dir / "closed" / "checkout"
    for name in ("miehisto_web", ".git"):
        (checkout / name).mkdir(parents=True)
    (checkout / "miehisto_web" / "__init__.py").write_text("WORD = 'seen'\n")
    (checkout / "link").symlink_to("miehisto_web")
    (open_dir / "closed").chmod(0o700)
    checkout.chmod(0o700)  # the folder above and the checkout itself
    folders.make_folders(settings, site_user)
    launcher = Launcher(settings, site_user, checkout=checkout)
    launcher.make_places()
    program = (
        "import miehisto_web, os\n"
        "print(miehisto_web.WORD, sorted(os.listdir('.')), os.statvfs('miehisto_web').f_flag & os.ST_RDONLY)"
    )
    done = launcher.run_python_as_user("-c", program)
    assert done.stdout == "seen ['link', 'miehisto_web'] 1\n", done.stderr
    assert list((settings.run_dir / "app").iterdir()) == []  # here nothing is mounted
    (checkout / "miehisto_web" / "__init__.py").chmod(0o600)
    with pytest.raises(CannotRun, match=r"cannot run the site from .*Permission denied"):
        launcher.make_places()


def test_listening_sockets_arrive_as_systemd_passes_them(launcher: Launcher, settings: Settings) -> None:
    program = (
        "import os, socket\n"
        "assert os.environ['LISTEN_PID'] == str(os.getpid())\n"
        "for fd in range(3, 3 + int(os.environ['LISTEN_FDS'])):\n"
        "    print(socket.socket(fileno=fd).getsockname())\n"
    )
    with sockets.listen_tcp(settings) as tcp, sockets.listen_unix(settings, launcher.account) as unix:
        fds = (unix.fileno(), tcp.fileno())  # not in the order of their numbers
        argv = launcher.wrap([sys.executable, "-c", program], as_user=False, listen=fds)
        done = subprocess.run(argv, pass_fds=fds, capture_output=True, text=True, check=True)
        assert done.stdout == f"{settings.run_dir}/miehistod.sock\n{tcp.getsockname()}\n"
        path = settings.run_dir / "miehistod.sock"
        assert (path.stat().st_uid, path.stat().st_gid) == (0, launcher.account.gid)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_the_private_redis_answers_at_its_path_and_is_told_no_password(
    launcher: Launcher, settings: Settings, site_user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.state_dir / "password").write_text("geheim")
    monkeypatch.setenv("DATABASE_PASSWORD_FILE", str(settings.state_dir / "password"))
    monkeypatch.setenv("DATABASE_URL", "postgres://miehisto:geheim@node.example/miehisto")
    spec = parts.redis_part(launcher)
    # Redis writes its title over what /proc/PID/environ shows.
    assert "geheim" in str(launcher.environment(as_user=True)) and "geheim" not in str(spec)

    async def work(supervisor: Supervisor) -> None:
        part = supervisor.start(spec)
        while not await readiness.redis_answers(settings):
            await asyncio.sleep(0.02)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(settings.run_dir / "redis.sock"))
            client.sendall(b"PING\r\n")
            assert client.recv(100) == b"+PONG\r\n"
        assert Path(f"/proc/{part.pid}").stat().st_uid == site_user.uid

    supervised(work)
    assert [path.name for path in settings.redis_dir.iterdir()] == []


# --- folders, lock, settings ------------------------------------------------------------------------------


def test_folders_have_their_owners_and_modes(settings: Settings, site_user: Account) -> None:
    for _ in range(2):
        folders.make_folders(settings, site_user)
        folders.make_secret_key(settings, site_user)
    his = (site_user.uid, site_user.gid)
    expected = {
        settings.state_dir: (0, 0, 0o755),
        settings.state_dir / "images": (0, 0, 0o700),
        settings.state_dir / "services": (0, 0, 0o700),
        settings.database_dir: (*his, 0o700),
        settings.database_dir / "secret_key": (*his, 0o600),
        settings.run_dir: (0, 0, 0o755),
        settings.run_dir / "services": (0, 0, 0o700),
        settings.log_dir: (0, site_user.gid, 0o750),
    }
    for path, wanted in expected.items():
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == wanted, path


def test_only_plain_files_of_its_own_are_given_to_the_sites_user(
    settings: Settings, site_user: Account
) -> None:
    folders.make_folders(settings, site_user)
    (settings.database_dir / "db.sqlite3").write_text("")
    secret = settings.state_dir / "images" / "secret"
    secret.write_text("")
    (settings.database_dir / "hard").hardlink_to(secret)
    (settings.database_dir / "soft").symlink_to(secret)
    folders.make_folders(settings, site_user)
    assert (settings.database_dir / "db.sqlite3").stat().st_uid == site_user.uid
    assert secret.stat().st_uid == 0


def test_folders_that_the_sites_user_cannot_reach_are_named(
    open_dir: Path, settings: Settings, site_user: Account
) -> None:
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(CannotRun, match=r"User miehisto cannot enter .*/closed/state/database"):
        folders.make_folders(replace(settings, state_dir=closed / "state"), site_user)


def main(settings: Settings, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run miehistod on the folders of a test, to its end."""
    env = {
        "MIEHISTO_STATE_DIR": str(settings.state_dir),
        "MIEHISTO_RUN_DIR": str(settings.run_dir),
        "MIEHISTO_LOG_DIR": str(settings.log_dir),
    }
    return subprocess.run(
        [sys.executable, "-m", "miehistod.main", *words],
        env={**os.environ, **env, **more},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("shared", ["run_dir", "state_dir"])
def test_a_second_miehistod_is_told_who_holds_the_folder(settings: Settings, shared: str) -> None:
    folder = getattr(settings, shared)
    with folders.take_locks(folder):
        done = main(settings)
    assert done.returncode == 1
    assert f"miehistod is running already: process {os.getpid()} holds {folder}/miehistod.lock" in done.stderr


def test_parts_of_their_own_exclude_themselves_and_a_whole_miehistod(settings: Settings) -> None:
    with folders.take_locks(settings.run_dir, frozenset(["worker"])):
        with folders.take_locks(settings.run_dir, frozenset(["site", "redis"])):
            again = main(settings, "--only", "scheduler,worker")
        whole = main(settings)
    assert f"process {os.getpid()} holds {settings.run_dir}/miehistod-worker.lock" in again.stderr
    assert f"holds {settings.run_dir}/miehistod.lock" in whole.stderr


@pytest.mark.parametrize("words", [["--only"], ["--only", ""], ["--only", "site,web"], ["--all"]])
def test_a_part_that_does_not_exist_is_bad_usage(settings: Settings, words: list[str]) -> None:
    done = main(settings, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: miehistod")


def test_parts_of_their_own_do_not_touch_the_database(settings: Settings) -> None:
    done = main(settings, "--only", "scheduler")
    assert done.returncode == 1
    assert "run `miehistod --prepare`, where units run it `miehisto-manage --run " in done.stderr


def test_a_database_of_a_newer_miehisto_is_refused(settings: Settings) -> None:
    main(settings, "--prepare")
    with contextlib.closing(sqlite3.connect(settings.database_dir / "db.sqlite3")) as database, database:
        database.execute(
            "INSERT INTO django_migrations (app, name, applied) "
            "VALUES ('services', '9999_later', '2030-01-01')"
        )
    done = main(settings, "--only", "scheduler")
    assert done.returncode == 1
    assert "It belongs to a newer Miehistö, with services.9999_later." in done.stderr


def test_to_prepare_leaves_a_running_nodes_token_alone(settings: Settings) -> None:
    done = main(settings, "--prepare")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (settings.database_dir / "db.sqlite3").exists()
    assert not (settings.run_dir / "token").exists()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MIEHISTO_START_SETTLE", "soon", 'Environment variable "MIEHISTO_START_SETTLE" invalid'),
        ("DATABASE_URL", "mysql://host/name", "DATABASE_URL: cannot use the scheme 'mysql'"),
        ("DATABASE_URL", "postgres://user:secret@127.0.0.1:1/name", "Connection refused"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_without_a_traceback(
    settings: Settings, name: str, value: str, sentence: str
) -> None:
    done = main(settings, "--prepare", **{name: value})
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "docs/reference/settings.md" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_it_says_that_it_must_be_root(launcher: Launcher) -> None:
    done = launcher.run_python_as_user("-m", "miehistod.main")
    assert done.returncode == 1
    assert done.stderr.startswith("miehistod: miehistod must run as root")


def test_a_taken_address_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "PATIENCE", 0.0)
    with sockets.listen_tcp(settings) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CannotRun, match=f"cannot listen on {bind}: Address already in use\\."):
            sockets.listen_tcp(replace(settings, bind=bind))


@pytest.mark.parametrize("bind", ["14444", "localhost:", "localhost:x", ":80", "localhost:70000"])
def test_a_bad_bind_address_is_refused(bind: str) -> None:
    with pytest.raises(CannotRun, match="cannot listen on"):
        read({"MIEHISTO_BIND": bind})


def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(CannotRun, match=r"cannot listen on nowhere\.invalid:80: \w"):
        sockets.listen_tcp(read({"MIEHISTO_BIND": "nowhere.invalid:80"}))


@pytest.mark.parametrize("node", ["a,b", "*", "a b", ".example.org", "x" * 256, "100%h"])
def test_a_node_has_a_name_that_queues_and_hosts_can_have(node: str) -> None:
    with pytest.raises(CannotRun, match="The node cannot be named"):
        read({"MIEHISTO_NODE": node})
    assert read({"MIEHISTO_NODE": "db-1.example.org"}).node == "db-1.example.org"


def test_names_and_defaults_are_the_sites(settings: Settings) -> None:
    """miehistod reads a few settings without Django; both must read the same."""
    program = (
        "import django; django.setup(); from django.conf import settings as s\n"
        "print(s.MIEHISTO_STATE_DIR, s.MIEHISTO_RUN_DIR, s.MIEHISTO_LOG_DIR)\n"
        "print(s.MIEHISTO_BIND, s.MIEHISTO_NODE, s.MIEHISTO_USER, s.CELERY_BROKER_URL)"
    )
    given = {
        "MIEHISTO_STATE_DIR": str(settings.state_dir),
        "MIEHISTO_RUN_DIR": str(settings.run_dir),
        "MIEHISTO_LOG_DIR": str(settings.log_dir),
        "MIEHISTO_BIND": "127.0.0.1:1",
        "MIEHISTO_NODE": "north",
        "MIEHISTO_USER": "nobody",
        "CELERY_BROKER_URL": "redis://elsewhere/1",
    }
    for environ in ({}, given):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"DJANGO_SETTINGS_MODULE": "miehisto_web.settings", "PATH": os.environ["PATH"], **environ},
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        )
        own = read(environ)
        broker = own.broker_url or own.own_broker_url
        assert done.stdout.split() == [
            *(str(folder) for folder in (own.state_dir, own.run_dir, own.log_dir)),
            *(own.bind, own.node, own.user, broker),
        ]
    assert read({"CELERY_BROKER_URL": read({}).own_broker_url}).broker_url == ""
