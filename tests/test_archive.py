"""Images that leave a node and come to another: what arrives is what left, and it runs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mhctl.archives import deliver
from mhctl.client import Client
from mhctl.errors import NOT_ALLOWED, MhctlError
from tests.archives import IMAGE, compressed, do_import, import_file, node_in, sound_members, tar_of
from tests.isolation import FOLDER
from tests.stack import Stack, eventually, free_port, get_page
from worker import exporting, eyes, host, importing, manifest, tarstream
from worker.errors import JobFailed
from worker.paths import Paths
from worker.runmh.launch import Account

COUNTER = """
import sys, http.server as server
class Counter(server.BaseHTTPRequestHandler):
    count = 0
    def do_GET(self):
        Counter.count += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d" % Counter.count)
server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Counter).serve_forever()
"""


@pytest.fixture(scope="module")
def other_node(node: Stack) -> Iterator[Stack]:
    """A second node on this machine, with folders and a port of its own."""
    folder = FOLDER / "other-node"
    folder.mkdir(mode=0o755)
    made = Stack(folder)
    made.environment["MIEHISTO_NODE"] = "other-node-of-tests"
    made.start()
    yield made
    made.clear()
    made.stop()


def test_a_service_moves_to_another_node_with_its_memory(
    stack: Stack, other_node: Stack, tmp_path: Path
) -> None:
    port = free_port()
    service = stack.create("python3", "-c", COUNTER, str(port), options=("--name", "counter"))
    assert [eventually(lambda: get_page(port)), get_page(port)] == [b"1", b"2"]
    image = stack.dump(service)
    archive = tmp_path / "counter.tar.zst"
    exported = stack.mhctl("image", "export", image, str(archive))
    assert exported.out.strip() == str(archive)
    assert "passwords" in exported.err
    assert archive.stat().st_mode & 0o777 == 0o600
    assert list((stack.state / "archives").iterdir()) == []
    # Any tar reads it: the manifest first, then where it comes from.
    listed = subprocess.run(["tar", "--zstd", "-tf", archive], capture_output=True, text=True, check=True)
    assert listed.stdout.split()[:2] == [manifest.NAME, exporting.ORIGIN]

    assert other_node.mhctl("image", "import", str(archive)).out.strip() == image
    assert list((other_node.state / "archives").iterdir()) == []
    origin = other_node.show("image", image)["origin"]
    assert origin["imported_by"] and origin["archive"].endswith("counter.tar.zst")
    assert (origin["from"]["node"], origin["from"]["service_name"]) == ("node-of-tests", "counter")
    assert stack.show("image", image)["origin"] is None
    again = other_node.mhctl("image", "import", str(archive))
    assert (again.out.strip(), "nothing was changed" in again.err) == (image, True)

    other_node.restore(image)
    assert get_page(port) == b"3", "it has forgotten what it had counted"
    shown = other_node.show("service", "counter")
    assert (shown["object_id"], shown["status"]) == (service, "running")
    # It is a service like any other there: it is dumped, restored and deleted.
    second = other_node.dump(service)
    other_node.restore(second)
    assert get_page(port) == b"4"
    assert other_node.show("image", second)["origin"] is None


def test_an_archive_goes_through_a_pipe_and_comes_back_after_the_image_is_lost(stack: Stack) -> None:
    port = free_port()
    service = stack.create("python3", "-c", COUNTER, str(port))
    assert eventually(lambda: get_page(port)) == b"1"
    image = stack.dump(service)
    command = [sys.executable, "-c", "import sys; from mhctl.main import main; sys.exit(main())", "image"]
    options: dict[str, Any] = {"env": stack.environment, "cwd": Path(__file__).parent.parent}
    sent = subprocess.run([*command, "export", image, "-"], capture_output=True, check=True, **options)
    assert sent.stdout.startswith(b"\x28\xb5\x2f\xfd")
    stack.mhctl("image", "delete", "--force", image)
    taken = subprocess.run(
        [*command, "import", "-"], input=sent.stdout, capture_output=True, check=True, **options
    )
    assert taken.stdout.decode().strip() == image
    stack.restore(image)
    assert get_page(port) == b"2"


def test_an_encrypted_archive_from_the_command_line(stack: Stack, tmp_path: Path) -> None:
    image = stack.dump(stack.create("sleep", "600"))
    key = tmp_path / "key"
    made = subprocess.run(["age-keygen", "-o", key], capture_output=True, text=True, check=True)
    public = made.stderr.split()[-1]
    archive = tmp_path / "sleep.tar.zst.age"
    stack.mhctl("image", "export", image, str(archive), "-r", public)
    stack.mhctl("image", "delete", "--force", image)

    refused = stack.mhctl("image", "import", str(archive), check=False)
    assert refused.code == 1
    assert "encrypted with age" in refused.err and "--identity" in refused.err
    assert stack.mhctl("image", "import", str(archive), "-i", str(key)).out.strip() == image
    assert list((stack.state / "archives").iterdir()) == [], "neither archive nor key is left there"
    stack.restore(image)


def test_files_that_cannot_be_used_are_told_before_anything_happens(stack: Stack, tmp_path: Path) -> None:
    image = stack.dump(stack.create("sleep", "600"))
    there = tmp_path / "there"
    there.write_bytes(b"mine")
    jobs = len(stack.api("GET", "jobs").body)
    for words, code, said in (
        (("export", image, str(there)), 1, "exists already"),
        (("export", image, str(there), "--no-wait"), 2, "--no-wait"),
        (("export", image, "-", "--json"), 2, "standard output"),
        (("import", str(tmp_path / "nothing")), 4, "There is no file"),
        (("import", str(tmp_path)), 1, "no plain file"),
        (("import", str(there), "--no-wait"), 2, "folder of archives"),
    ):
        answer = stack.mhctl("image", *words, check=False)
        assert (answer.code, said in answer.err) == (code, True), answer
    assert len(stack.api("GET", "jobs").body) == jobs
    assert there.read_bytes() == b"mine"
    # What is no archive is known only to the worker; it is taken away from the folder again.
    assert "no archive" in stack.mhctl("image", "import", str(there), check=False).err
    assert list((stack.state / "archives").iterdir()) == []


def test_who_may_not_write_where_the_archive_shall_go_is_told_so(folder: Path) -> None:
    folder.chmod(0o755)
    made = folder / "made"
    made.touch(mode=0o644)
    client = Client(f"unix:{folder}/socket")
    with eyes.of(Account("nobody", "")), pytest.raises(MhctlError, match="Permission denied") as caught:
        deliver(client, {"result": {"path": str(made)}}, str(folder / "target"))
    assert caught.value.exit_code == NOT_ALLOWED
    assert made.exists()


def test_the_servers_own_shell_calls_archives_by_their_names(stack: Stack) -> None:
    image = stack.dump(stack.create("sleep", "600"))

    made = stack.manage("export", image, "night.tar.zst").out.strip()
    assert Path(made).name == "night.tar.zst"
    stack.mhctl("image", "delete", "--force", image)
    assert stack.manage("import_image", "night.tar.zst").out.strip() == image
    (stack.state / "archives/night.tar.zst").unlink()


# --- the archive itself -----------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A node whose pool has one image, of 40 files, one of which has a name too long for tar's own field."""
    made = node_in(tmp_path)
    files = {f"f{number:02}.img": os.urandom(number * 97) for number in range(39)}
    files["n" * 200] = b"long"
    do_import(made, compressed(tar_of(*sound_members(files))))
    return made


def export(paths: Paths, name: str = "out", **options: Any) -> exporting.Exported:
    given: dict[str, Any] = {
        "origin": {"node": "here"},
        "recipients": [],
        "gpg_recipients": [],
        "step": lambda _: None,
        **options,
    }
    return exporting.export(paths.image(IMAGE), paths.archives / name, **given)


def same_image(paths: Paths, other: Paths) -> bool:
    one, two = paths.image(IMAGE), other.image(IMAGE)
    files = manifest.read(one)["files"]
    same = all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    return same and files == manifest.read(two)["files"] and not manifest.faults(two, manifest.read(two))


def test_age_encrypts_what_only_its_key_opens(paths: Paths, tmp_path: Path) -> None:
    keys = [tmp_path / name for name in ("mine", "theirs")]
    public = []
    for key in keys:
        subprocess.run(["age-keygen", "-o", key], capture_output=True, check=True)
        public.append(key.read_text().split("public key: ")[1].split()[0])
    made = export(paths, recipients=public[:1]).path
    assert b"ustar" not in made.read_bytes()
    other = node_in(tmp_path / "other")
    for identity, code in ((None, "identity_needed"), (keys[1], "archive_damaged")):
        with pytest.raises(JobFailed) as caught:
            import_file(other, made, identity=identity)
        assert caught.value.code == code
    assert list(other.images.iterdir()) == []
    import_file(other, made, identity=keys[0])
    assert same_image(paths, other)
    # age's last chunk says that it is the last: nothing is sealed before that has been seen.
    cut = paths.archives / "cut"
    cut.write_bytes(made.read_bytes()[:-1])
    another = node_in(tmp_path / "another")
    with pytest.raises(JobFailed) as caught:
        import_file(another, cut, identity=keys[0])
    assert caught.value.code == "archive_damaged"
    assert list(another.images.iterdir()) == []


def test_gnupg_encrypts_for_a_key_of_roots_ring(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = FOLDER / "gnupg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    options = [
        "--batch",
        "--quiet",
        "--passphrase",
        "",
        "--quick-generate-key",
        "keeper@example.org",
        "future-default",
    ]
    subprocess.run(["gpg", *options], capture_output=True, check=True)
    try:
        made = export(paths, gpg_recipients=["keeper@example.org"]).path
        assert b"ustar" not in made.read_bytes()
        other = node_in(tmp_path / "other")
        import_file(other, made)
        assert same_image(paths, other)
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], check=True)


@pytest.mark.parametrize(
    "options",
    [
        {"recipients": ["-o/etc/cron.d/x"]},
        {"recipients": ["age1"]},
        {"gpg_recipients": ["--output=/etc/cron.d/x"]},
        {"gpg_recipients": ["nobody@example.org"]},
        {"recipients": ["age1" + "q" * 58]},
    ],
)
def test_a_recipient_that_is_none(paths: Paths, options: dict[str, Any]) -> None:
    with pytest.raises(JobFailed) as caught:
        export(paths, **options)
    assert caught.value.code in {"bad_recipient", "export_failed"}
    assert {path.name for path in paths.archives.iterdir()} == {"x.tar.zst"}


def test_an_image_that_was_damaged_is_not_exported(paths: Paths) -> None:
    victim = paths.image(IMAGE) / "f38.img"
    content = victim.read_bytes()
    for damage in (content[:-1], content[:-1] + b"?", None):
        victim.unlink()
        if damage is not None:
            victim.write_bytes(damage)
        with pytest.raises(JobFailed) as caught:
            export(paths)
        assert caught.value.code == "image_damaged"
        assert "f38.img" in caught.value.message
        assert {path.name for path in paths.archives.iterdir()} == {"x.tar.zst"}
        victim.write_bytes(content)
    export(paths)


def test_nothing_is_written_over(paths: Paths) -> None:
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("/etc/nothing")):
        target = paths.archives / f"there-{len(list(paths.archives.iterdir()))}"
        make(target)
        with pytest.raises(JobFailed) as caught:
            export(paths, target.name)
        assert caught.value.code == "archive_exists"


def test_an_import_that_was_killed_goes_on_where_it_was(paths: Paths, tmp_path: Path) -> None:
    """Killed a real process in the middle of writing, at moments that differ from run to run."""
    other = node_in(tmp_path / "other")
    made = export(paths)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from tests.archives import *; from worker import importing;"
        "write = importing.Import._write; import time\n"
        "def slowly(self, *args):\n    write(self, *args)\n    time.sleep(0.01)\n"
        "importing.Import._write = slowly\n"
        "import_file(Paths(*map(Path, sys.argv[2:5])), Path(sys.argv[5]))"
    )
    root = Path(__file__).parent.parent
    child = subprocess.Popen(
        [sys.executable, "-c", code, root, *other, made.path], cwd=root, stdout=subprocess.DEVNULL
    )
    folder = other.importing(IMAGE)
    eventually(lambda: len(list(folder.iterdir())) > 10)
    child.send_signal(signal.SIGKILL)
    child.wait()
    present = {path.name for path in folder.iterdir()}
    assert 10 < len(present) < 40
    # What is there but not right is written again, what does not belong there goes.
    damaged = folder / "f05.img"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    (folder / "stranger").write_bytes(b"x")
    untouched = {path.name: path.stat().st_ino for path in folder.iterdir()}
    done = import_file(other, made.path)
    assert len(present) - 4 <= done.resumed < len(present)
    assert same_image(paths, other)
    assert (other.image(IMAGE) / "f04.img").stat().st_ino == untouched["f04.img"]


def test_an_import_that_is_killed_ends_with_its_cause_and_goes_on(stack: Stack, folder: Path) -> None:
    """A pool process is killed where its node is held fast, in the middle of the files."""
    image = stack.dump(stack.create("sleep", "600"))
    archive = folder / "sleep.tar.zst"
    stack.mhctl("image", "export", image, str(archive))
    stack.mhctl("image", "delete", "--force", image)
    left = stack.state / f"images/.import-{image}"
    left.mkdir(mode=0o700)
    held = left / "pages-1.img"
    os.mkfifo(held)  # which nobody reads: the import waits there
    with subprocess.Popen(
        [sys.executable, "-c", "from mhctl.main import main; exit(main())", "image", "import", str(archive)],
        cwd=Path(__file__).parent.parent,
        env=stack.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as mhctl:

        def is_held() -> bool:
            step = stack.api("GET", "jobs?limit=1").body[0]["step"]
            return step == "writing files" and (left / "inventory.img").exists()

        assert eventually(is_held, 60)
        assert stack.api("GET", "images").body == []
        for pid in stack.pool():
            os.kill(pid, signal.SIGKILL)
        said = mhctl.communicate(timeout=120)[1]
    assert mhctl.returncode == 1
    assert "The worker died at the step 'writing files'" in said
    assert "what was written is not written again" in said
    assert stack.api("GET", "images").body == []
    held.unlink()
    stack.mhctl("image", "import", str(archive))
    assert stack.api("GET", "jobs?limit=1").body[0]["result"]["resumed"] > 0
    assert not left.exists()
    stack.mhctl("image", "verify", image)
    stack.restore(image)


def test_an_archive_that_is_cut_off_goes_on_where_it_was(stack: Stack, folder: Path) -> None:
    """As after a transfer that broke: what had come is not written again."""
    image = stack.dump(stack.create("sleep", "600"))
    archive, part = folder / "sleep.tar.zst", folder / "part"
    stack.mhctl("image", "export", image, str(archive))
    stack.mhctl("image", "delete", "--force", image)
    part.write_bytes(archive.read_bytes()[:-20])
    refused = stack.mhctl("image", "import", str(part), check=False)
    assert refused.code == 1
    assert "is not written again" in refused.err
    assert stack.api("GET", "images").body == []
    stack.mhctl("image", "import", str(archive))
    assert stack.api("GET", "jobs?limit=1").body[0]["result"]["resumed"] > 0
    assert [path.name for path in (stack.state / "images").iterdir()] == [image]
    stack.restore(image)


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (OSError(errno.EIO, "broken"), True),
        (RuntimeError("a bug"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EDQUOT, "quota"), False),
    ],
)
def test_an_import_goes_on_after_a_fault_of_ours_unless_the_pool_is_full(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, error: Exception, goes_on: bool
) -> None:
    other = node_in(paths.state_dir.parent / "other")
    made = export(paths).path

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(manifest, "seal", fails)
        with pytest.raises(type(error)):
            import_file(other, made)
    assert list(other.images.iterdir()) == [other.importing(IMAGE)] * goes_on
    assert import_file(other, made).resumed == 39 * goes_on
    assert same_image(paths, other)


def test_one_import_of_an_image_at_once(paths: Paths, tmp_path: Path) -> None:
    other = node_in(tmp_path / "other")
    made = export(paths).path
    second: list[str] = []

    def step(doing: str) -> None:
        if doing == "sealing image":
            with pytest.raises(JobFailed) as caught:
                import_file(other, made)
            second.append(caught.value.code)

    import_file(other, made, step=step)
    assert second == ["image_busy"]
    assert import_file(other, made).was_there
    assert [path.name for path in other.images.iterdir()] == [IMAGE]


def test_what_a_killed_import_left_is_swept_away(paths: Paths) -> None:
    for name in (f".import-{'c' * 32}", ".import-by-hand"):
        (paths.images / name).mkdir()
        (paths.images / name / "pages-1.img").write_bytes(b"secret")

    def left() -> set[str]:
        return {path.name for path in paths.images.iterdir()} - {IMAGE}

    assert not importing.sweep(paths)
    assert len(left()) == 2, "somebody may go on with it"
    assert importing.sweep(paths, kept_for=0)  # as a dump does that finds no room
    assert left() == {".import-by-hand"}


def test_a_killed_export_leaves_a_file_that_the_next_sweep_takes(paths: Paths) -> None:
    left = paths.archives / ".out.4711.new"
    left.write_bytes(b"half")
    staged = paths.archives / "staged-0123abcd-x.tar.zst"
    staged.write_bytes(b"half")
    exporting.sweep(paths.archives)
    assert left.exists() and staged.exists(), "they may be in use"
    for path in (left, staged):
        os.utime(path, (0, 0))
    exporting.sweep(paths.archives)
    assert not left.exists() and not staged.exists()


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[None]:
    """Lay a file system of that size over a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "small", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("kibibytes", "kept"), [(250, False), (500, True)])
def test_what_would_fill_the_pool_is_not_kept(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, kibibytes: int, kept: bool
) -> None:
    """What was right of an archive that is damaged at its end, some 160 KiB, takes no more than it leaves."""
    monkeypatch.setattr(importing, "_RESERVE", 0)
    other = node_in(paths.state_dir.parent / "other")
    made = export(paths).path
    made.write_bytes(made.read_bytes() + b"no zstd")
    with small_disk(other.images, kibibytes):
        with pytest.raises(JobFailed, match="cannot be read to its end"):
            import_file(other, made)
        assert list(other.images.iterdir()) == [other.importing(IMAGE)] * kept


def test_a_disk_that_is_full_in_the_middle_keeps_nothing_half(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export(paths).path
    other = node_in(tmp_path / "other")
    # As if somebody else took the room that was there a moment ago.
    monkeypatch.setattr(importing, "_RESERVE", -(1 << 30))
    with small_disk(other.images, 32):
        with pytest.raises(OSError) as caught:
            import_file(other, made)
        assert caught.value.errno == errno.ENOSPC
        assert list(other.images.iterdir()) == []
    with small_disk(paths.archives, 32):
        with pytest.raises(JobFailed) as failed:
            export(paths)
        assert "No space left" in " ".join(failed.value.lines)
        assert list(paths.archives.iterdir()) == []


def test_folders_that_others_may_read_are_told_of(paths: Paths) -> None:
    assert host.private_folders(paths).ok
    for path, change in (
        (paths.images, lambda p: p.chmod(0o750)),
        (paths.archives, lambda p: os.chown(p, 1, 0)),
    ):
        change(path)
        found = host.private_folders(paths)
        assert not found.ok and str(path) in found.detail
        path.chmod(0o700)
        os.chown(path, 0, 0)


def test_an_archive_of_an_image_with_large_files(tmp_path: Path) -> None:
    """What 8 GiB and more need in a header, and what comes back of it."""
    for size in (0, 2**33 - 1, 2**33, 2**40):
        stream = iter([tarstream.header("ä" * 90, size)])
        data = bytearray(next(stream))

        def read(count: int, data: bytearray = data) -> bytes:
            taken = bytes(data[:count])
            del data[:count]
            return taken

        assert tarstream.Reader(read).next() == ("ä" * 90, size)
