"""Memory and disk agree: a restore looks at the files that the memory in the image believes in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.servers import program
from tests.stack import Stack, eventually

WRITER = """
import mmap, os, signal, sys, time
folder = sys.argv[1]
log = open(folder + "/log", "a", buffering=1)
book = open(folder + "/book", "r+")
os.open(folder + "/old", os.O_RDWR), os.unlink(folder + "/old")
with open(folder + "/map", "r+b") as file:
    page = mmap.mmap(file.fileno(), 4096)
def write(*_):
    print("written", file=log)
    book.write("x"), book.flush()
    page[0] = page[0] + 1
signal.signal(signal.SIGUSR1, write)
print("ready", flush=True)
while True:
    time.sleep(3600)
"""


@pytest.fixture
def writer(stack: Stack, folder: Path) -> str:
    """A service with files that it appends to, writes, maps, has deleted, and a declared folder of data."""
    (folder / "data").mkdir()
    (folder / "data/one").write_text("1")
    for name in ("book", "map", "old"):
        (folder / name).write_bytes(bytes(4096))
    command = [program("python3"), "-c", WRITER, str(folder)]
    service = stack.create(*command, options=("--data", str(folder / "data")))
    assert eventually(lambda: "ready" in stack.log(service))
    return service


def write(stack: Stack, service: str, folder: Path) -> None:
    """Let the service write to each of its files."""
    held = (folder / "log").stat().st_size
    os.kill(stack.show("service", service)["pid"], 10)
    assert eventually(lambda: (folder / "map").read_bytes()[0] and (folder / "log").stat().st_size > held)


def refusal(stack: Stack, image: str, *options: str) -> tuple[str, str]:
    """Return the code and the lines of a restore that is refused."""
    answer = stack.mhctl("service", "restore", "--from", image, "--json", *options, check=False)
    assert answer.code == 1
    error = json.loads(answer.out)["error"]
    return error["code"], "\n".join(error["lines"])


def test_a_service_that_wrote_on_is_not_restored_beside_newer_files(
    stack: Stack, folder: Path, writer: str
) -> None:
    write(stack, writer, folder)
    older = stack.dump(writer, "--leave-running")
    write(stack, writer, folder)
    newest = stack.dump(writer)

    code, lines = refusal(stack, older)
    assert code == "files_changed"
    assert f"{folder}/log was 8 bytes" in lines
    assert "is 16 bytes" in lines
    assert "only ever appended to" in lines
    assert f"{folder}/book was 4096 bytes" in lines
    assert f"{folder}/map was 4096 bytes" in lines
    assert "old" not in lines
    assert stack.show("service", writer)["status"] == "dumped"

    # Its newest image fits the disk as it is, and what it goes on to write is where it was.
    stack.restore(newest)
    write(stack, writer, folder)
    stack.mhctl("service", "stop", writer)

    # Told so by name, the older memory wakes up beside the newer files, also where CRIU minds their size.
    with (folder / "book").open("a") as book:
        book.write("longer")
    assert refusal(stack, older)[0] == "files_changed"
    sealed = {path.name: path.read_bytes() for path in (stack.state / "images" / older).iterdir()}
    stack.mhctl("service", "restore", "--from", older, "--accept-changed-files")
    write(stack, writer, folder)
    assert (folder / "log").read_text() == "written\n" * 4
    assert (folder / "book").read_text()[:3] == "xxx"
    assert {path.name: path.read_bytes() for path in (stack.state / "images" / older).iterdir()} == sealed


def test_what_is_declared_as_data_is_compared_file_by_file(stack: Stack, folder: Path, writer: str) -> None:
    image = stack.dump(writer)
    data = folder / "data"

    # The same content, brought back with its time, is the same; and a folder's own times tell nothing.
    before = (data / "one").stat()
    (data / "one").unlink()
    (data / "one").write_text("1")
    os.utime(data / "one", ns=(before.st_atime_ns, before.st_mtime_ns))
    stack.restore(image)
    stack.dump(writer)

    (data / "one").write_text("2")
    (data / "deep").mkdir()
    (data / "deep/two\n").write_text("2")
    code, lines = refusal(stack, image)
    assert code == "files_changed"
    assert f"{data}/one was 1 bytes" in lines
    assert f"{data}/deep/two\\n is new" in lines

    # A file that is missing nobody can accept.
    (folder / "book").rename(folder / "kept")
    code, lines = refusal(stack, image, "--accept-changed-files")
    assert code == "file_missing"
    assert lines == f"{folder}/book is not there any more"
    (folder / "kept").rename(folder / "book")
    stack.mhctl("service", "restore", "--from", image, "--accept-changed-files")


def test_a_file_that_stands_where_a_folder_was_is_called_that(stack: Stack, folder: Path) -> None:
    place = folder / "place"
    place.mkdir()
    code = "import os, sys, time; os.chdir(sys.argv[1]); print('there', flush=True); time.sleep(3600)"
    service = stack.create(program("python3"), "-c", code, str(place))
    assert eventually(lambda: "there" in stack.log(service))
    image = stack.dump(service)

    place.rmdir()
    place.touch()
    code, lines = refusal(stack, image)
    assert code == "file_kind_changed", lines
    place.unlink()
    place.mkdir(mode=0o700)
    code, lines = refusal(stack, image)
    assert code == "file_mode_changed", lines
    place.chmod(0o755)
    stack.restore(image)


WATCHER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
book = open(sys.argv[1] + "/book", "r+")
assert libc.inotify_add_watch(libc.inotify_init(), sys.argv[1].encode(), 0x100) > 0
print("ready", flush=True)
while not os.path.exists(sys.argv[1] + "/asked"):
    time.sleep(0.05)
print("read", book.read(), flush=True)
time.sleep(3600)
"""


@pytest.fixture
def overlay(folder: Path) -> Iterator[Path]:
    """A folder on overlayfs, with a file of its lower layer."""
    with ExitStack() as mounts:

        def mount(place: Path, *options: str) -> None:
            subprocess.run(["mount", *options, place], check=True)
            mounts.callback(subprocess.check_call, ["umount", place])

        layers = folder / "layers"
        layers.mkdir()
        mount(layers, "-t", "tmpfs", "layers")
        for name in ("lower", "upper", "work", "merged"):
            (layers / name).mkdir()
        (layers / "lower/book").write_text("lines")
        names = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        mount(layers / "merged", "-t", "overlay", "overlay", "-o", names)
        yield layers / "merged"


def test_files_on_overlayfs(stack: Stack, overlay: Path) -> None:
    """What is open there is compared and restored as anywhere; what is watched has to be searched for."""
    service = stack.create(program("python3"), "-c", WATCHER, str(overlay))
    try:
        assert eventually(lambda: "ready" in stack.log(service), 60)
        found = stack.api("POST", f"services/{service}/check?wait=30", {}).body["result"]
        assert (found["verdict"], found["options"]) == ("options", {"force_irmap": [str(overlay)]})
        for folder, verdict in (("/usr/share/doc", "No: "), (str(overlay.parent), "Yes: ")):
            told = stack.mhctl("service", "check", service, "--force-irmap", folder, check=False)
            assert told.out.startswith(verdict)
        refused = stack.mhctl("service", "dump", service, check=False)
        assert stack.api("GET", "jobs?limit=1").body[0]["error"]["code"] == "inotify_handle"
        assert "as on overlayfs" in refused.err and "force_irmap" in refused.err
        image = stack.dump(service, "--force-irmap", str(overlay))
        (overlay / "book").write_text("other lines")
        moved_on = stack.mhctl("service", "restore", "--from", image, check=False)
        assert f"{overlay}/book was 5 bytes" in moved_on.err
        stack.mhctl("service", "restore", "--from", image, "--accept-changed-files")
        (overlay / "asked").touch()
        assert eventually(lambda: "read other lines" in stack.log(service), 60)
    finally:
        stack.clear()  # before its mount goes
