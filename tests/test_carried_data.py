"""An image that carries its data: a restore puts memory and disk back to one moment, or changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.servers import PostgreSQL, Redis, program, started
from tests.stack import Stack, eventually, free_port
from worker import carry, carry_index, carry_rights, putback, unpack
from worker.errors import JobFailed
from worker.paths import Paths

HOLDER = """
import os, signal, sys, time
folder = sys.argv[1]
book = open(folder + "/book", "r+")
alias = open(folder + "/deep/alias")
def write(*_):
    book.seek(0), book.write(sys.argv[2]), book.flush()
    open(folder + "/later", "w").close()
signal.signal(signal.SIGUSR1, write)
print("ready", flush=True)
while True:
    time.sleep(3600)
"""


def listing(folder: Path) -> dict[str, object]:
    """Return all that can be told of a tree from outside, but for inode numbers."""
    found: dict[str, object] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        what: object = None
        if path.is_symlink():
            what = path.readlink()
        elif path.is_file():
            what = (path.read_bytes(), status.st_blocks < 64, status.st_nlink)
        times = 0 if path.is_dir() else status.st_mtime_ns
        xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path, follow_symlinks=False)}
        found[str(path.relative_to(folder))] = (
            oct(status.st_mode),
            (status.st_uid, status.st_gid),
            times,
            what,
            xattrs,
        )
    return found


@pytest.fixture
def data(folder: Path) -> Path:
    """A folder with one of each kind of thing that a service keeps."""
    data = folder / "data"
    (data / "deep").mkdir(parents=True)
    (data / "book").write_bytes(b"one" + bytes(5000))
    (data / "sparse").touch()
    os.truncate(data / "sparse", 32 << 20)
    with (data / "sparse").open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"far")
    os.link(data / "book", data / "deep/alias")
    (data / "link").symlink_to("/etc/hostname")
    os.mkfifo(data / "fifo", 0o640)
    (data / os.fsdecode(b"odd \xff\n")).write_text("named oddly")
    os.chmod(data / "book", 0o4710)
    os.chown(data / "deep", 12, 34)
    os.utime(data / "link", ns=(1, 1_234_567_890_123_456_789), follow_symlinks=False)
    with contextlib.suppress(OSError):  # a file system without
        os.setxattr(data / "book", "user.word", b"kept")
    return data


def holder(stack: Stack, data: Path, *options: str) -> str:
    """Start a service that has a file in the folder open."""
    service = stack.create(program("python3"), "-c", HOLDER, str(data), "two", options=options)
    assert eventually(lambda: "ready" in stack.log(service))
    return service


def write(stack: Stack, service: str, data: Path) -> None:
    """Let the service change its data."""
    os.kill(stack.show("service", service)["pid"], 10)
    assert eventually((data / "later").exists)


def test_memory_and_disk_are_of_one_moment(stack: Stack, folder: Path, data: Path) -> None:
    service = holder(stack, data, "--carry", f"{data}/")
    before = listing(data)
    image = stack.dump(service, "--leave-running")
    write(stack, service, data)
    shutil.rmtree(data / "deep")
    (data / "sparse").unlink()
    assert listing(data) != before
    stack.mhctl("service", "stop", service)

    stack.restore(image)
    assert listing(data) == before
    assert not list(data.rglob(".miehisto*"))
    write(stack, service, data)
    assert (data / "book").read_bytes()[:3] == b"two"

    # Which kind an image is, is said; and what it carries is sealed and verified as its memory is.
    shown = stack.show("image", image)
    assert shown["carried"] == [str(data)]
    assert shown["statistics"]["carried_bytes"] < 1 << 20
    assert shown["size"] < shown["page_size"] + (2 << 20)
    assert "CARRIES" in stack.mhctl("image", "list").out
    stack.mhctl("image", "verify", image)
    with (stack.state / "images" / image / "carried.pack").open("r+b") as pack:
        pack.write(b"X")
    answer = stack.mhctl("image", "verify", image, check=False)
    assert "carried.pack: its content has changed" in answer.err

    # What lies there untouched since a dump that ended the service is not written again.
    image = stack.dump(service)
    inode = (data / "book").stat().st_ino
    stack.restore(image)
    assert (data / "book").stat().st_ino == inode


def test_a_restore_that_fails_leaves_the_disk_as_it_was(stack: Stack, data: Path) -> None:
    port = free_port()
    command = [program("python3"), "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", str(data)]
    service = stack.create(*command)
    one, other = data / "book", data / "deep"
    image = stack.dump(service, "--leave-running", "--carry", str(one), "--carry", str(other))
    stack.mhctl("service", "stop", service)
    (data / "book").write_text("newer")
    (data / "deep/new").mkdir()
    now = listing(data)
    with socket.create_server(("127.0.0.1", port)):
        answer = stack.mhctl("service", "restore", "--from", image, check=False)
    assert "held by another process" in answer.err
    assert listing(data) == now
    assert not list(data.rglob(".miehisto*"))
    stack.restore(image)
    assert one.read_bytes()[:3] == b"one"
    assert [path.name for path in other.iterdir()] == ["alias"]


def test_only_what_is_the_services_own_is_carried(stack: Stack, folder: Path) -> None:
    """A service may lay anything into its folder while root looks; nothing of others gets out by that."""
    data, secret = folder / "data", folder / "secret"
    data.mkdir()
    secret.write_text("of root alone")
    secret.chmod(0o600)
    shutil.chown(data, "nobody", "nogroup")
    server = Redis(folder)
    service = started(stack, server, "-u", "nobody", "-e", "WITH=data")
    (data / "own").symlink_to(secret)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(data / "socket"))
    os.mknod(data / "device", 0o666 | 0o020000, os.makedev(1, 3))
    os.mkfifo(data / "fifo")
    for name in ("own", "fifo"):
        os.chown(data / name, 65534, 65534, follow_symlinks=False)

    def refusal(path: object) -> str:
        answer = stack.mhctl("service", "dump", service, "--carry", str(path), "--json", check=False)
        assert answer.code == 1
        assert stack.show("service", service)["status"] == "running"
        return str(json.loads(answer.out)["error"]["message"])

    assert "does not belong" in refusal("/etc")
    assert "does not belong" in refusal(secret)
    assert "is a link" in refusal(data / "own/deeper")
    assert "neither a folder nor a regular file" in refusal(data / "own")
    assert "of Miehistö's own" in refusal(stack.folder)
    assert "is not there" in refusal(folder / "nowhere")

    (data / "of-root").touch()
    assert "of-root does not belong" in refusal(data)
    (data / "of-root").unlink()

    image = stack.dump(service, "--leave-running", "--carry", str(data))
    path = stack.state / "images" / image
    assert b"of root alone" not in (path / "carried.pack").read_bytes()
    items = json.loads((path / "carried.json").read_text())["roots"][0]["items"]
    assert {item["path"]: item["kind"] for item in items} == {"": "folder", "own": "link", "fifo": "fifo"}
    assert stack.show("image", image)["statistics"]["carry_skipped"] == 2

    # Nor is anything put back through a link, or into what is another's by then.
    stack.mhctl("service", "stop", service)
    data.rename(folder / "away")
    data.symlink_to("/etc")
    answer = stack.mhctl("service", "restore", "--from", image, check=False)
    assert "is not a folder any more" in answer.err
    data.unlink()
    data.mkdir()
    (data / "of-root").write_text("stays")
    answer = stack.mhctl("service", "restore", "--from", image, check=False)
    assert "belongs to another user" in answer.err
    assert [path.name for path in data.iterdir()] == ["of-root"]


def told(session: psycopg.Connection[tuple[Any, ...]]) -> tuple[int, int]:
    """Return how many transactions of pgbench are committed, and the sum of what they moved."""
    found = session.execute("SELECT count(*), coalesce(sum(delta), 0) FROM pgbench_history").fetchone()
    assert found is not None
    return found[0], found[1]


def sound(session: psycopg.Connection[tuple[Any, ...]]) -> tuple[int, int]:
    """Fail unless all sums and indexes of pgbench's tables are right; return what `told` does."""
    found = told(session)
    tables = "accounts", "tellers", "branches"
    balances = [session.execute(f"SELECT sum({each[0]}balance) FROM pgbench_{each}") for each in tables]
    assert [each.fetchone() for each in balances] == [(found[1],)] * 3
    indexes = "SELECT bt_index_check(oid, true) FROM pg_class WHERE relname LIKE 'pgbench%pkey'"
    assert len(session.execute(indexes).fetchall()) == 3
    return found


def test_postgresql_goes_back_with_its_files(stack: Stack, folder: Path) -> None:
    """Under pgbench: exactly the dump's moment, and sound; without its files it is refused."""
    bench = PostgreSQL(folder)
    service = stack.create(*bench.command, options=(*bench.options, "--data", str(bench.data)))
    address = ["-h", "127.0.0.1", "-p", str(bench.port), "-U", bench.USER, "postgres"]
    pgbench = str(bench.programs / "pgbench")
    with eventually(bench.connect, 20) as session:
        session.execute("CREATE EXTENSION amcheck")
    subprocess.run([pgbench, "-i", "-q", *address], check=True, capture_output=True)
    running = subprocess.Popen(
        [pgbench, "-c", "3", "-T", "60", "-n", *address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with bench.connect() as session:
            assert eventually(lambda: told(session)[0] > 100)
            low = told(session)
        memory_only = stack.dump(service, "--leave-running")
        busy = stack.dump(service, "--leave-running", "--carry", str(bench.data))
        # What is committed cannot be asked in the very moment of the dump, so for one nothing is, meanwhile:
        # clients stand still, some within a transaction.
        running.send_signal(signal.SIGSTOP)
        with bench.connect() as session:
            working = (
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                " AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Lock'"
                " AND pid <> pg_backend_pid()"
            )
            assert eventually(lambda: session.execute(working).fetchone() == (0,))
            high = told(session)
        exact = stack.dump(service, "--leave-running", "--carry", str(bench.data))
        running.send_signal(signal.SIGCONT)
        with bench.connect() as session:
            assert eventually(lambda: told(session)[0] > high[0] + 100)
    finally:
        running.kill()
        running.wait()
    stack.mhctl("service", "stop", service)

    answer = stack.mhctl("service", "restore", "--from", memory_only, "--json", check=False)
    error = json.loads(answer.out)["error"]
    assert error["code"] == "files_changed"
    assert any("/pg_wal/" in line for line in error["lines"])

    stack.restore(busy)
    with bench.connect() as session:
        assert low[0] <= sound(session)[0] <= high[0]
    stack.mhctl("service", "stop", service)
    stack.restore(exact)
    with bench.connect() as session:
        assert sound(session) == high
    done = subprocess.run([pgbench, "-c", "2", "-t", "50", "-n", *address], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr

    # What lies on the disk is as good as the memory that went on with it.
    stack.mhctl("service", "restart", service)
    with eventually(bench.connect, 20) as session:
        assert sound(session)[0] == high[0] + 100


def moved_on(folder: Path, data: Path) -> tuple[Paths, str, str, list[dict[str, Any]]]:
    """Return a node, a service, its image and what that carries of the data, which has changed since."""
    paths = Paths(folder / "state", folder / "run", folder / "log")
    service, image = uuid.uuid4().hex, uuid.uuid4().hex
    for part in (paths.image(image), paths.spec(service).parent):
        part.mkdir(parents=True)
    for number in range(300):
        (data / f"file-{number}").write_bytes(bytes(number))
    carry.pack(paths.image(image), [str(data)], [], 0)
    for number in range(0, 300, 2):
        (data / f"file-{number}").unlink()
    (data / "newer").write_text("kept")
    return paths, service, image, carry_index.read(paths.image(image), {"carried": [str(data)], "mounts": []})


def test_what_dies_half_way_through_putting_back_is_gone_back_on(folder: Path, data: Path) -> None:
    """A killed worker, at any moment: whoever works on the service next finds the disk as it was."""
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    paths, service, image, carried = moved_on(folder, data)
    before = listing(data)

    began = time.monotonic()
    with contextlib.suppress(InterruptedError), putback.PutBack(paths, service, image) as under_way:
        under_way.begin(carried, [])
        raise InterruptedError
    lasts = time.monotonic() - began

    reached = set()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            with putback.PutBack(paths, service, image) as under_way:
                under_way.begin(carried, [])
                under_way.about_to_run()
                signal.pause()
        time.sleep(moments.uniform(0.001, 1.2 * lasts))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        journal = paths.spec(service).with_name("putback.json")
        reached.add(json.loads(journal.read_text())["phase"] if journal.exists() else "nothing")
        putback.settle(paths, service, ran=False)
        assert listing(data) == before, f"seed {seed}"
        assert not journal.exists()
    assert len(reached) > 1, f"seed {seed}: {reached}"

    # Where it is known that the service has run with the data, that stays; so it does if nobody knows.
    with putback.PutBack(paths, service, image) as under_way:
        under_way.begin(carried, [])
        under_way.about_to_run()
        kept = journal.read_text()
        beside = [path for path in data.iterdir() if path.name.startswith(".miehisto")]
        assert len(beside) == 1
    journal.write_text(kept)
    putback.settle(paths, service)
    assert (data / "file-0").exists()
    assert not (data / "newer").exists()


def test_what_cannot_be_brought_back_is_when_that_is_mended(folder: Path, data: Path) -> None:
    """A restore failed when it was about to run, and what is known of the service is forgotten since."""
    paths, service, image, carried = moved_on(folder, data)
    before = listing(data)
    with pytest.raises(JobFailed) as failure, putback.PutBack(paths, service, image) as under_way:
        under_way.begin(carried, [])
        under_way.about_to_run()
        os.chown(data, 65534, 65534)
        raise InterruptedError
    assert failure.value.code == "data_not_brought_back" and "is kept beside" in failure.value.message
    os.chown(data, 0, 0)
    putback.settle(paths, service)
    assert listing(data) == before


@pytest.mark.parametrize("gone", ["new/file-1", "new/book", "old"])
def test_who_dies_while_he_clears_up_after_going_back_loses_nothing(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    paths, service, image, carried = moved_on(folder, data)
    before = listing(data)
    (remove, removals) = putback._remove_beside, iter([None])

    def remove_some(root: dict[str, Any]) -> None:
        if next(removals, root) is not None:
            remove(root)
            return
        target = data / root["beside"] / gone
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        raise InterruptedError

    monkeypatch.setattr(putback, "_remove_beside", remove_some)
    with pytest.raises(JobFailed), putback.PutBack(paths, service, image) as under_way:
        under_way.begin(carried, [])
        raise InterruptedError
    putback.settle(paths, service)
    assert listing(data) == before


@pytest.mark.parametrize("its_place", ["a link", "another folder"])
def test_a_place_that_is_exchanged_meanwhile_gets_nothing(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, its_place: str
) -> None:
    """The service's user may rename his folders while root builds in one of them."""
    paths, service, image, carried = moved_on(folder, data)
    before = listing(data)
    others, away = folder / "others", folder / "away"
    others.mkdir()
    (others / "of-others").write_text("stays")
    found: dict[str, object] = {}
    make = unpack.make

    def exchange_and_make(*words: Any, **options: Any) -> None:
        (beside,) = [path.name for path in data.iterdir() if path.name.startswith(".miehisto")]
        data.rename(away)
        if its_place == "a link":
            data.symlink_to(others)
        else:
            for half in ("new", "old"):
                (others / beside / half).mkdir(parents=True, mode=0o700)
            (others / beside).chmod(0o700)
            others.rename(data)
        found.update(listing(data.resolve()))
        make(*words, **options)

    monkeypatch.setattr(unpack, "make", exchange_and_make)
    with pytest.raises(JobFailed), putback.PutBack(paths, service, image) as under_way:
        under_way.begin(carried, [])
    assert listing(data.resolve()) == found
    data.rename(folder / "exchanged")
    away.rename(data)
    putback.settle(paths, service)
    assert listing(data) == before


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../out"},
        {"path": "/etc/out"},
        {"path": "deep/../../out"},
        {"path": "own/out"},
        {"path": "nowhere/out"},
        {"kind": "device"},
        {"same_as": "../../../etc/hostname"},
        {"pieces": [[0, 1 << 40, 8]]},
        {"pieces": [[0, -8, 8]]},
        {"size": True},
        {"mode": 1 << 20},
        {"uid": -1},
        {"xattrs": {"trusted.overlay.opaque": "eQ=="}},
        {"xattrs": {"user.\ud800": "eQ=="}},
        {"xattrs": None},
        {"path": "\ud800"},
        {"path": ["book"]},
        {"kind": "link", "target": ["/etc"]},
        {"kind": "link", "target": "\ud800"},
    ],
)
def test_a_list_that_leads_elsewhere_is_not_believed(
    folder: Path, data: Path, change: dict[str, Any]
) -> None:
    carry.pack(folder, [str(data)], [], 0)
    index = json.loads((folder / carry_index.INDEX).read_text())
    item = next(item for item in index["roots"][0]["items"] if item["path"] == "book")
    (folder / carry_index.INDEX).write_text(json.dumps(index))
    assert carry_index.read(folder, {"carried": [str(data)]})
    item.update(change)
    (folder / carry_index.INDEX).write_text(json.dumps(index))
    with pytest.raises(JobFailed, match="cannot be used"):
        carry_index.read(folder, {"carried": [str(data)]})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"uid": 0, "mode": 0o4755}, "belongs to user 0"),
        ({"gid": 42, "mode": 0o2755}, "the rights of group 42"),
        ({"xattrs": {"security.capability": "AQAAAoAAAAAAAAAAAAAAAAAAAAA="}}, "give capabilities"),
    ],
)
def test_a_strangers_list_gives_nobody_rights(
    folder: Path, data: Path, change: dict[str, Any], why: str
) -> None:
    """Root's worker puts back for a service what its user could have made, and no more."""
    for path in (data, *data.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    carry.pack(folder, [str(data)], [], 65534)
    roots = carry_index.read(folder, {"carried": [str(data)]})
    carry_rights.check(roots, {"user": "nobody"})
    next(item for item in roots[0]["items"] if item["path"] == "book").update(change)
    carry_rights.check(roots, {"user": "root"})
    with pytest.raises(JobFailed, match=why):
        carry_rights.check(roots, {"user": "nobody"})
