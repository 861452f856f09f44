"""What an earlier Miehistö left is still good: rows, images, and parts of one version beside another's.

`tests/data/first_schema.*.sql` were dumped from databases that the first version had made and filled.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import os
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import psycopg
import pytest
from django.apps import apps
from django.db import migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from tests.isolation import FOLDER
from tests.pages import Page, Reader
from tests.servers import Redis, folder, started
from tests.stack import CHECKOUT, Answer, Stack, living
from tests.test_postgresql import Database, database
from worker import files, manifest

__all__ = ["database", "folder"]
FIRST = CHECKOUT / "tests/data"
PAGE = Page(CHECKOUT / "docs/how-to/back-up.md")
TABLES = (
    *("services_node", "services_service", "services_job", "services_jobevent", "services_apitoken"),
    *("images_image", "auth_user", "auth_user_user_permissions"),
)
FIRST_VERSION = {"services": "0014_sums_of_jobs", "images": "0004_pages_indexes"}
"""The newest migrations of the first version, which no older worker can have met."""
HARMLESS = (
    *(migrations.AddIndex, migrations.RemoveIndex, migrations.RenameIndex),
    *(migrations.AlterModelManagers, migrations.AlterModelOptions),
)
"""Changes of the database that an older worker does not notice."""
Rows = dict[str, list[dict[str, Any]]]


def run(stack: Stack, *words: str) -> Answer:
    """Run a program of Miehistö's in a node's environment, to its end."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=CHECKOUT,
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def old_node(name: str) -> Stack:
    """Return a node that was not started yet, named as the one that the rows are of."""
    place = FOLDER / name
    place.mkdir(mode=0o755)
    stack = Stack(place)
    stack.environment["MIEHISTO_NODE"] = "node-1"
    return stack


def rows(connection: sqlite3.Connection | psycopg.Connection[Any]) -> Rows:
    """Return all rows of the tables, by column."""
    found: Rows = {}
    for table in TABLES:
        cursor = connection.cursor()
        cursor.execute(f"SELECT * FROM {table} ORDER BY id")
        names = [column[0] for column in cursor.description or ()]
        found[table] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return found


def upgraded(stack: Stack, look: Callable[[], Rows]) -> Rows:
    """Bring the database up to date as an operator does; every row keeps every value. Return the new rows."""
    before = look()
    assert len(before["services_service"]) == 6 and len(before["services_job"]) == 9
    done = run(stack, "-m", "miehistod.main", "--prepare")
    assert done.code == 0, done.err
    after = look()
    for table, old in before.items():
        kept = [{name: new[name] for name in one} for one, new in zip(old, after[table], strict=True)]
        assert kept == old, table
    # It is what this version works with: a part starts only then.
    shown = run(stack, "manage.py", "services", "--all")
    assert shown.code == 0, shown.err
    assert {row["id"] for row in after["services_service"]} <= set(shown.out.split())
    assert "dddd" in run(stack, "manage.py", "images").out
    return after


def type_it(stack: Stack, block: str, *programs: Path) -> None:
    """Type lines of the page about backups at a node, whose own folder is its /srv."""
    home = stack.folder / uuid.uuid4().hex
    home.mkdir()
    own = {"PATH": ":".join(map(str, [*programs, os.environ["PATH"]]))}
    here = {"/srv": str(stack.folder), "/var/lib/miehisto": str(stack.folder / "state")}
    someone = Reader(home, stack.environment | own, here)
    printed, code = someone.type(someone.here(block))
    someone.leave()
    assert (printed, code) == ("", 0)


def test_a_backup_of_the_first_version_in_sqlite() -> None:
    """It is put on a newer node as docs/how-to/back-up.md says, and is brought up to date."""
    stack = old_node("first-in-sqlite")
    assert run(stack, "-m", "miehistod.main", "--prepare").code == 0
    backup = stack.folder / "backup"
    backup.mkdir(mode=0o700)
    (backup / "secret_key").write_text("of the first one")
    with closing(sqlite3.connect(backup / "db.sqlite3")) as connection:
        connection.executescript((FIRST / "first_schema.sqlite.sql").read_text(encoding="utf-8"))
    (block,) = [text for by, text in PAGE.run_by if by == "tests/test_docs.py"]
    type_it(stack, "\n".join(line for line in block.splitlines() if "db.sqlite3" in line))
    path = stack.folder / "state/database/db.sqlite3"

    def look() -> Rows:
        with closing(sqlite3.connect(path)) as connection:
            return rows(connection)

    after = upgraded(stack, look)
    assert all(row["data"] == "[]" and not row["restore_on_boot"] for row in after["services_service"])


def test_a_backup_of_the_first_version_in_postgresql(database: Database) -> None:
    """It is put on a newer node as docs/how-to/back-up.md says, and is brought up to date."""
    stack = old_node("first-in-postgresql")
    stack.environment["DATABASE_URL"] = database.url
    place = database.url.partition("host=")[2]

    def look() -> Rows:
        with psycopg.connect(f"host={place} user=miehisto dbname=another") as connection:
            return rows(connection)

    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=str)[-1]
    dump, restore = [text for by, text in PAGE.run_by if by == "tests/test_upgrades.py"]

    with psycopg.connect(f"host={place} user=miehisto dbname=miehisto") as connection:
        connection.execute((FIRST / "first_schema.postgresql.sql").read_bytes())
    (stack.folder / "backup").mkdir(mode=0o700)
    type_it(stack, dump, programs)
    words = ["-h", place, "-U", "miehisto", "another"]
    subprocess.run([programs / "createdb", *words], check=True, capture_output=True)
    stack.environment["DATABASE_URL"] = database.url.replace("/miehisto?", "/another?")
    assert run(stack, "-m", "miehistod.main", "--prepare").code == 0
    type_it(stack, restore, programs)
    upgraded(stack, look)
    # The same version's.
    type_it(stack, dump, programs)
    type_it(stack, restore, programs)
    after = look()
    assert len(after["services_service"]) == 6
    # No image of theirs is on this disk, and what is not there has no row.
    rescan = run(stack, "manage.py", "rescan")
    assert rescan.code == 0 and "dddd" in rescan.out, rescan
    assert after["images_image"] and not look()["images_image"]


def flipped(file: BinaryIO) -> None:
    """Flip the bits of the first byte."""
    file.seek(0)
    byte = file.read(1)[0]
    file.seek(0)
    file.write(bytes([byte ^ 0xFF]))
    file.flush()


def test_an_image_of_the_first_version_is_restored(stack: Stack, folder: Path) -> None:
    """Its manifest is made what the first version wrote: fewer fields, and nothing of files on the disk."""
    server = Redis(folder)
    service = started(stack, server)
    held = server.state()
    image = stack.dump(service)
    path = stack.state / "images" / image
    said = json.loads((path / manifest.NAME).read_bytes())
    assert set(said) == set(manifest.FIELDS), "docs/reference/manifest.md is made of FIELDS"
    for later in ("sum", "options", "data", "carried", "shared_memory"):
        del said[later]
    for later in set(said["spec"]) - {"argv", "user", "group", "cwd", "env", "binds"}:
        del said["spec"][later]
    del said["files"][files.NAME]
    (path / files.NAME).unlink()
    for name in said["files"]:
        content = (path / name).read_bytes()
        said["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    said["version"] = 1
    (path / manifest.NAME).write_text(json.dumps(manifest._summed(said)))
    assert stack.mhctl("image", "verify", image).code == 0
    with (path / "pstree.img").open("r+b") as file:
        flipped(file)
        refused = stack.mhctl("image", "verify", image, check=False)
        assert refused.code == 1 and "pstree.img: its content has changed" in refused.err
        flipped(file)
    stack.restore(image)
    assert server.state() == held
    server.grow()


def test_an_image_of_a_later_version_is_refused(stack: Stack) -> None:
    image = stack.dump(stack.create("sleep", "1000"))
    path = stack.state / "images" / image / manifest.NAME
    said = json.loads(path.read_bytes()) | {"version": manifest.VERSION + 1}
    path.write_text(json.dumps(manifest._summed(said)))
    refused = stack.mhctl("service", "restore", "--from", image, check=False)
    assert refused.code == 1 and "was made by a newer Miehistö" in refused.err


def test_a_worker_says_so_when_a_newer_site_asks_for_what_it_does_not_know(stack: Stack) -> None:
    program = (
        "from django.utils import timezone\n"
        "from services.enqueue import send\n"
        "from services.models import Job, Node\n"
        "job = Job.objects.create(kind='teleport', node=Node.objects.local(), queued_at=timezone.now())\n"
        "send(job.pk, job.node.name)\n"
        "print(job.pk)\n"
    )
    made = run(stack, "-c", f"import django; django.setup()\n{program}")
    assert made.code == 0, made.err
    ended = stack.mhctl("job", "wait", made.out.strip(), "--json", check=False)
    assert ended.code == 1
    job = stack.show("job", made.out.strip())
    assert job["status"] == "failed" and job["error"]["code"] == "kind_unknown", job
    retried = stack.api("POST", f"jobs/{job['object_id']}/retry", {})
    assert retried.status == 409 and retried.body["error"]["code"] == "not_retryable"
    assert "teleport" in stack.mhctl("job", "list").out


def test_an_older_worker_works_on_in_a_newer_database_and_is_not_started_on_it() -> None:
    """What a later version may add: columns that may be empty, and columns that fill themselves."""
    with living(Stack, "in-a-newer-database") as stack:
        path = stack.folder / "state/database/db.sqlite3"
        with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
            for table in ("services_service", "services_job", "services_jobevent", "images_image"):
                connection.execute(f"ALTER TABLE {table} ADD COLUMN later_note varchar(9) NULL")
                connection.execute(f"ALTER TABLE {table} ADD COLUMN later_count integer NOT NULL DEFAULT 7")
            connection.execute(
                "INSERT INTO django_migrations (app, name, applied) "
                "VALUES ('services', '9999_later', '2030-01-01')"
            )
        service = stack.create("sleep", "1000")
        stack.restore(stack.dump(service))
        assert stack.show("service", service)["status"] == "running"
        stack.mhctl("service", "stop", service)
    for words in (["--only", "worker"], ["--prepare"], []):
        refused = run(stack, "-m", "miehistod.main", *words)
        assert refused.code == 1
        assert "It belongs to a newer Miehistö, with services.9999_later." in refused.err
        assert "Start that version here too" in refused.err


def stored(field: models.Field[Any, Any]) -> object:
    """Return what the database knows of a column: not its choices, nor its words."""
    _, path, values, named = field.deconstruct()
    return path, values, {name: each for name, each in named.items() if name not in field.non_db_attrs}


def binds(field: models.Field[Any, Any]) -> bool:
    """Tell whether the database keeps a row that is referred to from being deleted."""
    relation: Any = field.remote_field if field.many_to_many else field
    return field.is_relation and relation.db_constraint


def survives(app: str, change: Operation, before: ProjectState) -> bool:
    """Tell whether an older worker goes on: its INSERT names no later column, its DELETE no later table."""
    if isinstance(change, migrations.AddField):
        field = change.field
        return not binds(field) and (field.many_to_many or field.null or field.has_db_default())
    if isinstance(change, migrations.CreateModel):
        return not any(binds(field) for _, field in change.fields)
    if isinstance(change, migrations.AlterField):
        return stored(before.models[app, change.model_name_lower].fields[change.name]) == stored(change.field)
    return isinstance(change, HARMLESS)


def test_an_older_worker_survives_each_later_migration() -> None:
    loader = MigrationLoader(None)
    own = {app for app, _ in loader.disk_migrations if Path(apps.get_app_config(app).path).parent == CHECKOUT}
    assert own == set(FIRST_VERSION)
    for (app, name), migration in sorted(loader.disk_migrations.items()):
        if app not in own or name <= FIRST_VERSION[app]:
            continue
        state = loader.project_state((app, name), at_end=False)
        for change in migration.operations:
            assert survives(app, change, state), f"{app}.{name}: {change.describe()}"
            change.state_forwards(app, state)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (migrations.AddField("job", "later", models.IntegerField()), False),
        (migrations.AddField("job", "later", models.IntegerField(db_default=7)), True),
        (migrations.AddField("job", "later", models.IntegerField(null=True)), True),
        (
            migrations.CreateModel("Later", [("job", models.ForeignKey("services.job", models.CASCADE))]),
            False,
        ),
        (migrations.CreateModel("Later", [("jobs", models.ManyToManyField("services.job"))]), False),
        (migrations.CreateModel("Later", [("count", models.IntegerField())]), True),
        (migrations.AlterField("job", "kind", models.CharField(max_length=16, choices=[("a", "b")])), True),
        (migrations.AlterField("job", "kind", models.CharField(max_length=9)), False),
        (migrations.RemoveField("job", "kind"), False),
        (migrations.RenameField("job", "kind", "sort"), False),
        (migrations.RenameModel("job", "work"), False),
        (migrations.DeleteModel("job"), False),
        (migrations.RunSQL("DROP TABLE services_job"), False),
    ],
    ids=lambda value: value.describe() if isinstance(value, Operation) else "",
)
def test_what_an_older_worker_survives(change: Operation, verdict: bool) -> None:
    state = MigrationLoader(None).project_state()
    assert survives("services", change, state) is verdict


@contextmanager
def a_newer_site(stack: Stack) -> Iterator[str]:
    """The node's own API, but what has an id has a field more, and every answer a header."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
            connection.request("GET", self.path, headers={"Authorization": self.headers["Authorization"]})
            answer = connection.getresponse()
            body = json.dumps(more(json.loads(answer.read()))).encode()
            connection.close()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Miehisto-Later", "yes")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    def more(said: Any) -> Any:
        if isinstance(said, list):
            return [more(each) for each in said]
        if isinstance(said, dict):
            later = {"later": {"than": ["this"]}} if "object_id" in said else {}
            return {name: more(each) for name, each in said.items()} | later
        return said

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_older_mhctl_passes_over_what_it_does_not_know(stack: Stack) -> None:
    service = stack.create("sleep", "1000", options=("--name", "calm"))
    image = stack.dump(service, "--leave-running")
    with a_newer_site(stack) as url:
        for words in (
            *(("service", "list"), ("service", "show", "calm"), ("image", "list"), ("image", "show", image)),
            *(("job", "list"), ("service", "show", "nobody")),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(stack.environment, "MIEHISTO_TOKEN", stack.token())
                newer = stack.mhctl(*words, "--url", url, check=False)
            same = stack.mhctl(*words, check=False)
            assert (newer.code, newer.err) == (same.code, same.err), words
            first = same.out.partition("\n")[0]
            assert first in newer.out, words
