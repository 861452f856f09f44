"""What someone gets who types `docker compose up`."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhctl import __version__
from tests.compose.engine import Engine
from tests.debian_root import run
from tests.pages import Page
from tests.stack import CHECKOUT, eventually, free_port

PAGE = Page(CHECKOUT / "docs/compose.md")
STARTED, UPGRADED, BACKED_UP, RESTORED = (
    text for command, text in PAGE.run_by if command == "make test-compose"
)
PRIVATE = (".env", "db.sqlite3", "var/notes", "backup/pool.tar")
"""What may lie in a checkout, and belongs into no image."""
CANARY = "# not for an image"
IGNORED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "test-artifacts")


class Compose:
    """The project of docker-compose.yml, from a copy of this checkout."""

    said = ""
    """What the commands of the page printed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.folder = engine.state / "checkout"
        self.port = free_port()
        shutil.copytree(CHECKOUT, self.folder, ignore=IGNORED, symlinks=True)
        for name in PRIVATE:
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(CANARY)
        self.config = engine.state / "etc-miehisto"
        self.config.mkdir()
        engine.environment["MIEHISTO_CONFIG_DIR"] = str(self.config)
        engine.environment["MIEHISTO_PUBLISH"] = f"127.0.0.1:{self.port}"

    def __call__(self, *words: str, timeout: float = 600) -> str:
        """Run `docker compose` with these words."""
        return self.engine.docker("compose", "--project-directory", str(self.folder), *words, timeout=timeout)

    def type(self, commands: str) -> str:
        """Type commands of a page in the checkout's folder, where `docker` is the engine's client."""
        programs = self.engine.state / "bin"
        if not programs.exists():
            programs.mkdir()
            (programs / "docker").symlink_to(self.engine.kept / "root/usr/bin/docker")
        environment = {**self.engine.environment, "PATH": f"{programs}:{os.environ['PATH']}"}
        return run("bash", "-ec", f'cd "$0"\n{commands}', self.folder, timeout=600, **environment)

    def mhctl(self, *words: str) -> str:
        """Run mhctl in the worker's container."""
        return self("exec", "-T", "worker", "mhctl", *words, timeout=120).strip()

    def python(self, part: str, program: str) -> str:
        """Run a Python program as root in a part's container."""
        return self("exec", "-T", part, ".venv/bin/python", "-c", program, timeout=60).strip()


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The stack, built and healthy."""
    engine = Engine(tmp_path_factory.mktemp("engine"))
    try:
        engine.start()
        made = Compose(engine)
        try:
            made.said = made.type(STARTED)
            yield made
        except AssertionError:
            sys.stderr.write(made("logs", "--no-color", "--tail", "50"))
            raise
        finally:
            made("down", "--volumes", "--remove-orphans")
    finally:
        engine.stop()


def page(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_dashboard_is_published_on_this_host_alone(compose: Compose) -> None:
    status, text = page(compose.port, "/login/")
    assert status == 200
    assert "Miehistö" in text
    assert compose("port", "site", "14444").strip() == f"127.0.0.1:{compose.port}"


def test_the_commands_of_the_page_print_the_check_and_the_password(compose: Compose) -> None:
    assert "dump and restore ok" in compose.said
    password = compose("exec", "-T", "worker", "cat", "/var/lib/miehisto/admin_password").strip()
    assert compose.said.rstrip().endswith(password) and len(password) > 10


def test_this_host_passes_its_check(compose: Compose) -> None:
    checks = json.loads(compose.mhctl("check", "--json"))["result"]
    assert checks["able"] is True


COUNTER = (
    "import http.server as h\n"
    "class Count(h.BaseHTTPRequestHandler):\n"
    "    seen = 0\n"
    "    def do_GET(self):\n"
    "        Count.seen += 1\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(b'%d' % Count.seen)\n"
    "h.HTTPServer(('127.0.0.1', 8080), Count).serve_forever()\n"
)
ASK = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080', timeout=5).read().decode())"


def count(compose: Compose) -> str:
    """Return what the counter says, once it listens."""
    return eventually(lambda: compose.python("worker", ASK), 60)


def test_a_service_is_dumped_the_stack_restarted_and_the_service_restored(compose: Compose) -> None:
    service = compose.mhctl("service", "create", "--name", "counter", "python3", "-c", COUNTER)
    assert [count(compose), count(compose)] == ["1", "2"]
    image = Path(compose.mhctl("service", "dump", "counter")).name
    compose("down")
    compose("up", "--detach", "--wait", "--wait-timeout", "120")
    shown = json.loads(compose.mhctl("service", "show", service, "--json"))
    assert shown["status"] == "dumped"
    assert compose.mhctl("service", "restore", "--from", image) == image
    assert count(compose) == "3"
    compose.mhctl("service", "delete", "--stop", "counter")


def test_a_restart_of_the_worker_s_container_counts_as_a_boot(compose: Compose) -> None:
    """It ends the services in it, though the host, the queue and the site have gone on."""
    words = ("--name", "back", "--restore-on-boot", "python3", "-c", COUNTER)
    compose.mhctl("service", "create", *words)
    assert [count(compose), count(compose)] == ["1", "2"]
    compose.mhctl("service", "dump", "back", "--leave-running")
    assert count(compose) == "3", "which is lost"
    compose("restart", "worker")
    assert count(compose) == "3"
    compose.mhctl("service", "delete", "--stop", "back")


def test_a_service_has_limits_within_the_worker_s_container(compose: Compose) -> None:
    words = ("--name", "small", "--memory", "64M", "--tasks", "20", "sleep", "1000")
    service = compose.mhctl("service", "create", *words)
    container = compose("ps", "--quiet", "worker").strip()

    def limited() -> bool:
        pid = json.loads(compose.mhctl("service", "show", "small", "--json"))["pid"]
        groups = compose("exec", "-T", "worker", "cat", f"/proc/{pid}/cgroup").splitlines()
        outside = (Path("/proc") / str(pid) / "cgroup").read_text()
        in_its_own = [line for line in groups if line.endswith(f"/miehisto-{service}")]
        return bool(in_its_own) and outside.count(f"{container}/miehisto-{service}") == len(in_its_own)

    assert limited()
    image = Path(compose.mhctl("service", "dump", "small")).name
    compose.mhctl("service", "restore", "--from", image)
    assert limited()
    compose.mhctl("service", "delete", "--stop", "small")


@pytest.mark.parametrize(("age", "verdict"), [("now", "healthy"), ("2 minutes ago", "unhealthy")])
def test_a_worker_without_a_heartbeat_is_unhealthy(compose: Compose, age: str, verdict: str) -> None:
    container = compose("ps", "--quiet", "worker").strip()
    shown = compose.engine.docker("inspect", "--format", "{{json .Config.Healthcheck.Test}}", container)
    kind, check = json.loads(shown)
    assert kind == "CMD-SHELL"
    program = (
        "mount -t tmpfs none /run/miehisto\n"
        'touch -d "$2" /run/miehisto/worker.ready\n'
        'if sh -c "$1"; then echo healthy; else echo unhealthy; fi\n'
    )
    words = ("unshare", "-m", "sh", "-ec", program, "sh", check, age)
    assert compose("exec", "-T", "worker", *words).strip() == verdict


def test_root_s_policy_on_the_host_holds_in_the_worker(compose: Compose) -> None:
    policy = compose.config / "policy.toml"
    policy.write_text("root = false\n")
    create = "mhctl service create --name roots sleep 1000 2>&1 || mhctl service delete roots"
    said = compose("exec", "-T", "worker", "sh", "-c", create)
    policy.unlink()
    assert "(rule 'root' in /etc/miehisto/policy.toml)" in said


def test_the_site_has_neither_images_nor_rights(compose: Compose) -> None:
    files = ("find", "/var/lib/miehisto/images", "/var/lib/miehisto/services", "-type", "f")
    assert compose("exec", "-T", "worker", *files) != ""
    assert compose("exec", "-T", "site", *files) == ""
    status = compose("exec", "-T", "site", "grep", "CapBnd", "/proc/self/status")
    bounding = int(status.split()[1], 16)
    sys_admin, sys_ptrace, net_admin = 21, 19, 12
    assert not bounding & (1 << sys_admin | 1 << sys_ptrace | 1 << net_admin)


def test_no_secret_stands_in_an_environment_that_the_engine_shows(compose: Compose) -> None:
    password = (compose.folder / "secrets/database_password").read_text().strip()
    for part in ("site", "worker", "redis", "postgres"):
        container = compose("ps", "--quiet", part).strip()
        assert password not in compose.engine.docker("inspect", container)
    told = compose("exec", "-T", "redis", "sh", "-c", "env; ls /run/secrets || true")
    assert "PATH=" in told and "database" not in told.lower()


def test_nothing_private_of_the_checkout_is_in_the_image(compose: Compose) -> None:
    password = (compose.folder / "secrets/database_password").read_text().strip()
    look = 'grep -rlF -e "$1" -e "$2" /opt/miehisto/app || echo nothing'
    assert compose("exec", "-T", "worker", "sh", "-c", look, "sh", password, CANARY).strip() == "nothing"


def layers(compose: Compose) -> list[str]:
    """Return the layers of the image, Debian's first."""
    shown = compose.engine.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", "miehisto")
    found: list[str] = json.loads(shown)
    return found


def test_an_upgrade_has_the_programs_that_services_need_again(compose: Compose) -> None:
    compose.mhctl("service", "create", "--name", "kept", "python3", "-c", COUNTER)
    assert [count(compose), count(compose)] == ["1", "2"]
    compose.mhctl("service", "dump", "kept")
    before = layers(compose)
    path = compose.folder / "mhctl/__init__.py"
    path.write_text(path.read_text(encoding="utf-8").replace(__version__, "9.9.9", 1), encoding="utf-8")
    compose.type(UPGRADED)
    assert compose.mhctl("--version") == "mhctl 9.9.9"
    after = layers(compose)
    assert after[:2] == before[:2] and after[2:] != before[2:]
    compose.mhctl("service", "restore", "kept")
    assert count(compose) == "3"
    compose.mhctl("service", "delete", "--stop", "kept")


def test_a_backup_comes_to_life_in_a_new_stack(compose: Compose) -> None:
    service = compose.mhctl("service", "create", "--name", "kept", "python3", "-c", COUNTER)
    assert [count(compose), count(compose)] == ["1", "2"]
    image = Path(compose.mhctl("service", "dump", "kept")).name
    compose.type(BACKED_UP)
    compose("down", "--volumes")
    compose.engine.docker("image", "rm", "--force", "miehisto")
    (compose.folder / "secrets/database_password").write_text("another")
    assert compose.type(RESTORED).endswith("rows and disk agree\n")
    assert json.loads(compose.mhctl("service", "show", "kept", "--json"))["object_id"] == service
    assert compose.mhctl("service", "restore", "kept") == image
    assert count(compose) == "3"
    compose.mhctl("service", "delete", "--stop", "kept")
