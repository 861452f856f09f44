"""The rows in PostgreSQL instead of SQLite: the same node, the same job."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import sorting
from tests.isolation import FOLDER
from tests.stack import CHECKOUT, Stack, eventually, free_port, get_page


class Database:
    """An empty database in a cluster of its own.

    Attributes:
        url: its address.
    """

    def __init__(self, words: list[str], url: str) -> None:
        self._words = words
        self.url = url
        self.start()

    def start(self) -> None:
        """Start its server, which is ready a moment later."""
        nothing = subprocess.DEVNULL
        self._server = subprocess.Popen(self._words, stdin=nothing, stdout=nothing, stderr=nothing)

    def stop(self) -> None:
        """End it at once, with the connections that there are."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(30)

    def restart(self) -> None:
        """End it at once and start it again."""
        self.stop()
        self.start()

    def cut(self) -> None:
        """End each connection to it, as a restart or a firewall would."""
        with psycopg.connect(self.url, autocommit=True) as one:
            one.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
            )


@pytest.fixture
def database() -> Iterator[Database]:
    """A database for one test."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))[-1]
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        folder.chmod(0o777)
        # As a distribution makes it: its texts are sorted as people do in that language.
        locale = ["--encoding=UTF8", "--locale-provider=icu", "--icu-locale=en-US"]
        initdb = [
            f"{programs}/initdb",
            "-D",
            f"{folder}/data",
            "-A",
            "trust",
            "-N",
            "-U",
            "miehisto",
            *locale,
        ]
        subprocess.run([*as_postgres, *initdb], check=True, capture_output=True)
        where = ["-D", f"{folder}/data", "-k", str(folder), "-c", "listen_addresses="]
        url = f"postgres://miehisto@/miehisto?host={folder}"
        server = Database([*as_postgres, f"{programs}/postgres", *where], url)
        try:
            create = [f"{programs}/createdb", "-h", str(folder), "-U", "miehisto", "miehisto"]
            eventually(lambda: subprocess.run(create, check=False, capture_output=True).returncode == 0, 30)
            yield server
        finally:
            server.stop()


def test_the_main_job_on_postgresql(database: Database) -> None:
    """Create, two dumps of one service asked for at once, restore, an unknown prefix, delete.

    And a restart of PostgreSQL under a job, after which the job and the service are what they are.
    """
    folder = FOLDER / "node-on-postgresql"
    folder.mkdir(mode=0o755)
    stack = Stack(folder)
    stack.environment["DATABASE_URL"] = database.url
    stack.start()
    try:
        port = free_port()
        command = ["python3", "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", "/etc"]
        service = stack.create(*command, options=("--name", "web"))
        content = eventually(lambda: get_page(port, "hostname"))
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: stack.mhctl("service", "dump", "web", check=False), range(2)))
        assert sorted(answer.code for answer in answers) == [0, 1]
        assert any("active job" in answer.err or "not running" in answer.err for answer in answers), answers
        image = next(Path(answer.out.strip()).name for answer in answers if answer.code == 0)
        stack.restore(image)
        assert get_page(port, "hostname") == content
        assert stack.show("image", image)["service"] == service
        assert stack.mhctl("service", "show", "nobody", check=False).code == 4
        assert not (folder / "state/database/db.sqlite3").exists()

        job = stack.mhctl("service", "dump", "web", "--leave-running", "--no-wait").out.strip()
        database.restart()
        ended = eventually(lambda: (now := stack.show("job", job))["finished"] and now, 40)
        assert ended and ended["status"] == "succeeded"
        assert get_page(port, "hostname") == content

        for moment in range(6):  # in each hundredth of a second that a job takes
            for words in ("dump", {"leave_running": True}), ("check", {}):
                assert ends_when_cut_off(database, stack, *words, after=moment / 100) == "succeeded"

        without(database, stack)
        os.kill(stack.show("service", "web")["pid"], signal.SIGKILL)
        assert eventually(lambda: stack.show("service", "web")["status"] == "exited", 20)

        stack.mhctl("service", "start", "web")
        eventually(lambda: get_page(port, "hostname"))
        last = stack.dump("web")
    finally:
        stack.stop()
    other = backed_up(stack, database)
    other.start()
    try:
        assert other.mhctl("service", "restore", "web").out.strip() == last
        assert get_page(port, "hostname") == content
        assert other.show("service", "web")["object_id"] == service
        assert other.show("job", job)["status"] == "succeeded"
        other.clear()
    finally:
        other.stop()


ASKED_WHILE_IT_IS_TAKEN = """
import json, threading, time
import django; django.setup()
from django.db import connection, connections, transaction
from services import operations, progress
from services.models import Job, Service
from services.problems import Problem
from services.states import JobKind
from tests.rows import running_service

web = running_service("web")
job = operations.request_dump(web, actor="root", source="manage", leave_running=True)
said = []

def waits():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0]

def meanwhile(write):
    def run():
        try:
            write()
        except Exception as error:
            said.append(f"it failed: {error}")
        connections.close_all()
    with transaction.atomic():
        Service.objects.select_for_update().get(pk=web.pk)
        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive() and not waits():
            time.sleep(0.01)
        try:
            operations.new_job(JobKind.STOP, node=web.node, service=web, actor="root", source="manage")
        except Problem as problem:
            said.append(problem.code)
    thread.join()
    said.append(Job.objects.get(pk=job.pk).status)

meanwhile(lambda: progress.claim(job.pk, worker="w"))
meanwhile(lambda: progress.fail(job, code="c", message="m", remedy="r", lines=[], service_state=None))
print(json.dumps(said))
"""


def test_a_job_that_is_asked_for_while_another_is_taken_or_ends_is_refused(database: Database) -> None:
    """Two at once wait for one another nowhere: PostgreSQL would end one of them as a deadlock."""
    folder = FOLDER / "asked-at-once"
    folder.mkdir(mode=0o755)
    stack = Stack(folder)
    stack.environment["DATABASE_URL"] = database.url
    stack.environment["DJANGO_SETTINGS_MODULE"] = "miehisto_web.settings"
    for words in ([*stack.command, "--prepare"], [sys.executable, "-c", ASKED_WHILE_IT_IS_TAKEN]):
        done = subprocess.run(
            words,
            env=stack.environment,
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == ["job_active", "running", "job_active", "failed"]


def test_tables_are_sorted_alike_in_either_database(database: Database) -> None:
    shown = {}
    for kind, url in (("sqlite", ""), ("postgresql", database.url)):
        folder = FOLDER / f"sorted-in-{kind}"
        folder.mkdir(mode=0o755)
        stack = Stack(folder)
        stack.environment["DATABASE_URL"] = url
        for words in ([*stack.command, "--prepare"], [sys.executable, "-m", "tests.sorting"]):
            done = subprocess.run(
                words, env=stack.environment, cwd=CHECKOUT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        shown[kind] = json.loads(done.stdout)
    assert shown["postgresql"] == shown["sqlite"]
    services, images = shown["sqlite"]["services"], shown["sqlite"]["images"]
    for order, texts in (("name", sorting.NAMES), ("command", sorting.COMMANDS)):
        assert [texts[int(pk, 16)] for pk in services[order]] == sorted(texts)
        assert services[f"-{order}"] == services[order][::-1]
    nobodys = sorting.OF_NOBODY
    assert images["service"][-1] == images["-service"][-1] == nobodys, "what has none comes last both ways"


def test_the_first_login_goes_along_to_another_database(database: Database) -> None:
    """Every set-up makes it in SQLite, before anybody names PostgreSQL."""
    folder = FOLDER / "node-moved-to-postgresql"
    folder.mkdir(mode=0o755)
    stack = Stack(folder)
    for url in ("", database.url, database.url):
        stack.environment["DATABASE_URL"] = url
        words = [*stack.command, "--prepare"]
        subprocess.run(words, cwd=CHECKOUT, env=stack.environment, check=True, capture_output=True)
    stack.start()
    try:
        assert logs_in(stack, "admin", (folder / "state/admin_password").read_text().strip())
        assert not logs_in(stack, "admin", "another password")
        # Where somebody else may log in, and nobody needs the file any more, there is no other one.
        users = "from django.contrib.auth.models import User as U; "
        stack.manage("shell", "-c", f"{users} U.objects.filter(username='admin').update(username='ann')")
        (folder / "state/admin_password").unlink()
        stack.stop()
        stack.start()
        assert "login admin" not in stack.said()
        names = stack.manage("shell", "-c", f"{users} print(sorted(U.objects.values_list('username')))")
        assert "[('ann',), ('root',)]" in names.out
    finally:
        stack.stop()


def logs_in(stack: Stack, name: str, password: str) -> bool:
    """Tell whether the site lets somebody in."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    form = f"http://127.0.0.1:{stack.port}/login/"
    found = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', browser.open(form).read().decode())
    assert found
    said = {"csrfmiddlewaretoken": found[1], "username": name, "password": password}
    return bool(browser.open(form, urllib.parse.urlencode(said).encode()).url != form)


def ends_when_cut_off(
    database: Database, stack: Stack, verb: str, options: dict[str, Any], *, after: float
) -> str:
    """Ask for a job, end all connections to the database some seconds after, and return how the job ended."""
    asked = eventually(
        lambda: (reply := stack.api("POST", f"services/web/{verb}", options)).status == 202 and reply
    )
    assert asked
    time.sleep(after)
    database.cut()

    def ended() -> str | None:
        reply = stack.api("GET", f"jobs/{asked.body['object_id']}")
        return str(reply.body["status"]) if reply.status == 200 and reply.body["finished"] else None

    return str(eventually(ended, 40))


def without(database: Database, stack: Stack) -> None:
    """See that everybody is told so when the database is away, and that it is taken up again."""
    database.stop()
    away = stack.api("GET", "services")
    assert (away.status, away.body["error"]["code"]) == (503, "database_away")
    asked = stack.mhctl("service", "dump", "web", check=False)
    assert (asked.code, "The database does not answer." in asked.err) == (3, True), asked
    page = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    page.request("GET", "/", headers={"Cookie": "sessionid=0123456789abcdefghijklmnopqrstuv"})
    answer = page.getresponse()
    assert (answer.status, b"The database does not answer" in answer.read()) == (503, True)
    page.close()
    database.start()
    assert eventually(lambda: stack.api("GET", "services").status == 200)


def backed_up(stack: Stack, database: Database) -> Stack:
    """Return a new node with a backup of one that has ended, made as docs/how-to/back-up.md says."""
    place = FOLDER / "node-from-a-backup"
    place.mkdir(mode=0o755)
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))[-1]
    where = ["-h", database.url.partition("host=")[2], "-U", "miehisto"]
    state = stack.folder / "state"
    other = Stack(place)
    other.environment["DATABASE_URL"] = database.url.replace("/miehisto?", "/another?")

    def run(*words: str | Path) -> None:
        done = subprocess.run(
            words, env=other.environment, cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"

    run(programs / "pg_dump", *where, "--format=custom", f"--file={place}/db.dump", "miehisto")
    run("tar", "-C", state, "-cf", place / "pool.tar", "--exclude=images/.*", "images", "services")
    run(programs / "createdb", *where, "another")
    run(*other.command, "--prepare")
    run(programs / "psql", *where, "-qc", "DROP SCHEMA public CASCADE; CREATE SCHEMA public", "another")
    run(programs / "pg_restore", *where, "--dbname=another", place / "db.dump")
    run("cp", "-a", state / "database/secret_key", place / "state/database")
    run("tar", "-C", place / "state", "-xpf", place / "pool.tar")
    return other
