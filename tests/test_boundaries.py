"""What stands between the users of a host: attacks tried for real, as the site's user, another, a service.

docs/threat-model.md names the tests that try each attack; that they are there is tested here, too.
"""

from __future__ import annotations

import ast
import os
import pty
import pwd
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client

from images.models import Image
from services import operations
from tests.rows import made_service, recorded_image, taken
from tests.servers import PROGRAMS
from tests.stack import CHECKOUT, Stack, eventually

PAGE = CHECKOUT / "docs/threat-model.md"

# What an attacker runs: each line is tried, and what worked is printed.
ATTACK = """
import os, signal, socket, sys
def tried(name, attack):
    try:
        attack()
    except (OSError, ValueError):
        return
    print(name)
def connect(path):
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
for line in sys.stdin.read().splitlines():
    verb, _, words = line.partition(" ")
    if verb == "read": tried(line, lambda: open(words, "rb").read(1))
    elif verb == "list": tried(line, lambda: os.listdir(words))
    elif verb == "make": tried(line, lambda: open(words + "/planted", "xb").close())
    elif verb == "link": tried(line, lambda: os.symlink("/etc/passwd", words + "/planted"))
    elif verb == "rename": tried(line, lambda: os.rename(words, words + ".gone"))
    elif verb == "connect": tried(line, lambda: connect(words))
    elif verb == "signal": tried(line, lambda: os.kill(int(words), 0))
    elif verb == "say": print(words)
"""


def attack(user: str, lines: list[str]) -> set[str]:
    """Try each line as a user with his groups; return those that worked."""
    account = pwd.getpwnam(user)
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", ATTACK],
        input="\n".join([*lines, "say done"]),
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=os.getgrouplist(user, account.pw_gid),
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    worked = set(done.stdout.splitlines())
    assert "done" in worked, done.stderr
    return worked - {"done"}


def processes(stack: Stack) -> dict[str, int]:
    """Return the PIDs of a node's worker, and of one service and its supervisor."""
    assert stack.daemon
    found = {"miehistod": stack.daemon.pid}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            mine = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"celery" in words and b"\0worker\0" in words and str(stack.folder).encode() in mine:
            found["worker"] = int(folder.name)
    service = stack.api("GET", "services").body[0]
    return found | {"service": service["pid"], "runmh": service["ppid"]}


def secrets_of(stack: Stack, image: str) -> list[str]:
    """Return attacks on what only root may see or change."""
    state, run, log = (stack.folder / part for part in ("state", "run", "log"))
    pids = processes(stack)
    assert set(pids) == {"miehistod", "worker", "service", "runmh"}
    folders = (
        state,
        state / "images",
        state / "images" / image,
        state / "services",
        run,
        run / "services",
        log,
    )
    return [
        *(f"make {folder}" for folder in folders),
        *(f"link {folder}" for folder in folders),
        *(f"list {state / name}" for name in ("images", f"images/{image}", "services")),
        f"list {run / 'services'}",
        f"rename {state / 'images'}",
        f"rename {run / 'services'}",
        f"read {state / 'images' / image / 'manifest.json'}",
        f"read {state / 'admin_password'}",
        f"read {run / 'token'}",
        *(f"signal {pid}" for pid in pids.values()),
        *(f"read /proc/{pid}/{name}" for pid in pids.values() for name in ("environ", "mem", "maps")),
    ]


@pytest.fixture
def victim(stack: Stack) -> str:
    """A service of root's that runs, with an image; the image's id."""
    service = stack.create("sleep", "600", options=("--name", "victim", "-e", "PASSWORD=quite-secret"))
    return stack.dump(service, "--leave-running")


def test_a_taken_over_site_reaches_neither_images_nor_processes(stack: Stack, victim: str) -> None:
    """Code that runs as the site's user: it has the database and the queue, and nothing else."""
    assert attack("miehisto", secrets_of(stack, victim)) == set()
    # What it can do is no secret: write rows and ring the queue. The policy is what holds then.
    reach = [
        f"read {stack.folder / 'state/database/db.sqlite3'}",
        f"connect {stack.folder / 'run/redis.sock'}",
        f"connect {stack.folder / 'run/miehistod.sock'}",
    ]
    assert attack("miehisto", reach) == set(reach)


def test_the_attacks_are_real(stack: Stack, victim: str) -> None:
    """Root, against whom nothing is defended, succeeds in what the others try."""
    attacks = [line for line in secrets_of(stack, victim) if line.split()[0] in {"read", "list", "signal"}]
    assert attack("root", attacks) >= {line for line in attacks if not line.endswith("/mem")}


def test_another_user_of_the_host_reaches_nothing(stack: Stack, victim: str) -> None:
    state, run, log = (stack.folder / part for part in ("state", "run", "log"))
    more = [
        f"connect {run / 'miehistod.sock'}",
        f"connect {run / 'redis.sock'}",
        f"list {state / 'database'}",
        f"read {state / 'database/db.sqlite3'}",
        f"read {state / 'database/secret_key'}",
        f"make {run / 'redis'}",
        f"list {log}",
    ]
    assert attack("nobody", [*secrets_of(stack, victim), *more]) == set()


def test_no_secret_is_in_a_command_line(stack: Stack, victim: str) -> None:
    """Every user sees the command lines of all processes."""
    secrets = [stack.token(), "quite-secret", (stack.folder / "state/admin_password").read_text().strip()]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        assert not [secret for secret in secrets if secret in words], path
    assert "quite-secret" not in stack.said() and stack.token() not in stack.said()


HOSTILE = r"\033[2J\033]0;owned\007\302\233\rready: forged\n"


def test_what_a_service_prints_steers_no_terminal(stack: Stack) -> None:
    service = stack.create("sh", "-c", f"printf '{HOSTILE}'; printf done; exec sleep 600")
    eventually(lambda: "done" in stack.log(service))
    said = on_a_terminal(stack, "service", "logs", service)
    assert "\\x1b[2J" in said and "done" in said
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", said)
    # In a pipe the bytes are as they were written.
    assert b"\x1b[2J" in stack_bytes(stack, "service", "logs", service)
    for words in (("service", "list"), ("service", "show", service), ("job", "list")):
        assert "\x1b[2J" not in on_a_terminal(stack, *words)


def stack_bytes(stack: Stack, *words: str) -> bytes:
    program = [sys.executable, "-c", "import sys; from mhctl.main import main; sys.exit(main())", *words]
    return subprocess.run(
        program, cwd=CHECKOUT, env=stack.environment, capture_output=True, check=True, timeout=60
    ).stdout


def on_a_terminal(stack: Stack, *words: str) -> str:
    """Return what mhctl writes on a terminal."""
    ours, its = pty.openpty()
    program = [sys.executable, "-c", "import sys; from mhctl.main import main; sys.exit(main())", *words]
    with subprocess.Popen(program, cwd=CHECKOUT, env=stack.environment, stdout=its, stdin=its) as process:
        os.close(its)
        said = b""
        while select.select([ours], [], [], 30)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            said += piece
        assert process.wait(30) == 0
    os.close(ours)
    return said.decode().replace("\r\n", "\n")


def test_a_service_reaches_no_other_process_and_no_other_file(stack: Stack, victim: str) -> None:
    """It looks for whom to signal and what to read, from inside, as a user of its own."""
    program = PROGRAMS / "reaching_out.py"
    pids = processes(stack)
    targets = [f"/proc/{pid}/environ" for pid in pids.values()]
    targets += [str(stack.folder / part) for part in ("run/token", "state/images", "state/services", "log")]
    targets += [str(stack.folder / "state/database/db.sqlite3")]
    # /usr/bin's: a service's user may be kept from entering the checkout.
    service = stack.create("/usr/bin/python3", str(program), *targets, options=("-u", "nobody"))
    eventually(lambda: "done" in stack.log(service))
    lines = stack.log(service).splitlines()
    assert lines == ["processes: 2", "done"], "tini and itself; nothing was read or signalled"


@pytest.mark.django_db(transaction=True)
def test_what_operators_type_is_no_html() -> None:
    """Whatever a command, a name of an image's program or an error holds is text on every page."""
    script = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    service = made_service("web", argv=["/bin/echo", script])
    operations.fail(
        taken(service.jobs.get()), code="x", message=script, remedy=script, lines=[script], service_state=None
    )
    image = recorded_image(service)
    Image.objects.filter(pk=image.pk).update(comm=script[:60], argv=[script], damage=[script])
    boss = Client()
    boss.force_login(User.objects.create_superuser("boss"))
    pages = [
        "/",
        "/services/",
        f"/services/{service.pk}/",
        f"/services/{service.pk}/dump/",
        "/jobs/",
        "/audit/",
    ]
    pages += [f"/jobs/{service.jobs.get().pk}/", "/images/", f"/images/{image.pk}/", "/admin/services/job/"]
    for page in pages:
        answer = boss.get(page)
        assert answer.status_code == 200, page
        assert b"<script>alert" not in answer.content and b"<img src=x" not in answer.content, page


def named_tests() -> list[tuple[str, str]]:
    """Return (file, test) of each test that the threat model names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8"))


def test_every_defence_that_is_named_has_its_test() -> None:
    missing = []
    for file, name in named_tests():
        path = CHECKOUT / file
        tree = ast.parse(path.read_text(encoding="utf-8") if path.exists() else "")
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")
    assert missing == []
    text = PAGE.read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if re.match(r"\| (?!Attack)[^|]+\|[^|]+\|[^|]+\|$", row)]
    assert len(rows) > 30
    assert [row for row in rows if "`tests/" not in row] == [], "a defence without a test is a hope"
