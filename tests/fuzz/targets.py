"""What is fuzzed: each target takes bytes, and raises only what is a finding.

A finding is any exception that the code does not promise, and any broken promise that is asserted here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pycriu.images import images as criu_images
from pycriu.images import magic as magics

from miehisto_web import settings as site
from services import validation
from services.problems import Problem
from tests.archives import FILES, IMAGE, facts_of, node_in, tar_of
from tests.fuzz.proc import mountinfo, proc
from tests.fuzz.shaping import ODD_NAMES, Shaper
from worker import (
    carry,
    carry_index,
    carry_rights,
    connections,
    criu,
    engine,
    explaining,
    files,
    importing,
    inspecting,
    manifest,
    orphans,
    preflight,
    putback,
    supervision,
    tarstream,
    tools,
    unpack,
)
from worker.errors import JobFailed
from worker.image_files import Unreadable
from worker.importing import Import
from worker.paths import Paths
from worker.policy import Policy
from worker.tarstream import BadStream, Reader

SERVICE = "0" * 32


@functools.cache
def _node(target: str) -> Paths:
    """Return the folders of a node of this target's own, on which is only what it writes again each time."""
    paths = node_in(Path(tempfile.mkdtemp(prefix="fuzz-")))
    paths.runtime(SERVICE).mkdir(parents=True)
    return paths


def _reader(data: bytes, most: int = 1 << 20) -> Reader:
    stream = io.BytesIO(data)
    return Reader(lambda count: stream.read(min(count, most)))


def tar(data: bytes) -> None:
    """Any bytes as a tar stream, which comes in pieces."""
    reader = _reader(data[1:], most=1 + data[0] if data else 1)
    try:
        while (member := reader.next()) is not None:
            assert sum(map(len, reader.content())) == member.size
    except BadStream:
        pass


def archive(data: bytes) -> None:
    """A tar stream with sound headers about members of any kind, name and size."""
    shaper = Shaper(data)
    stream = bytearray()
    contents = {**FILES, manifest.NAME: facts_of(FILES), "origin.json": b'{"node": "there"}'}
    names = (*contents, *ODD_NAMES)
    if shaper.number(7):
        stream += tar_of((manifest.NAME, contents[manifest.NAME])).rstrip(b"\0")
        stream += tarstream.padding(len(stream))
    for _ in range(shaper.number(6)):
        name = _encodable(shaper.pick(names))
        content = contents.get(name, b"") if shaper.number(3) else shaper.bytes(shaper.number(600))
        info = tarfile.TarInfo(name)
        info.size = len(content) if shaper.number(7) else shaper.number(2**34)
        info.type = tarfile.REGTYPE if shaper.number(7) else bytes([shaper.number(255)])
        info.linkname = "" if shaper.number(7) else _encodable(shaper.text())
        as_pax = shaper.number(1) == 0
        head = info.tobuf(tarfile.PAX_FORMAT if as_pax else tarfile.GNU_FORMAT, "utf-8", "strict")
        stream += head + content + tarstream.padding(len(content))
    stream += tarstream.END if shaper.number(7) else b""
    stream += shaper.data
    paths = _node("archive")
    folder = paths.importing(IMAGE)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    work = Import(paths, Path("x"), identity=None, check=lambda _: None, notes={}, step=lambda _: None)
    reader = _reader(bytes(stream))
    try:
        facts = work._manifest(reader)
        work._fill(reader, folder, facts)
    except (BadStream, JobFailed):
        facts = None
    assert {path.name for path in paths.images.iterdir()} == {folder.name}
    assert {path.name for path in paths.state_dir.iterdir()} == {"images", "archives"}
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(written) <= set(FILES)
    if facts is not None:
        assert written == FILES


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def manifest_text(data: bytes) -> None:
    """Any bytes as a manifest."""
    with contextlib.suppress(JobFailed):
        manifest.parse(Path("x"), data)


def manifest_facts(data: bytes) -> None:
    """A manifest that is intact, and odd: what passes is good enough for all that read it."""
    facts = Shaper(data).changed(
        json.loads(facts_of(FILES)) | {"created": 1.5, "pages_bytes": 4, "criu": "4"}
    )
    if not isinstance(facts, dict):
        return
    text = json.dumps(manifest._summed(facts)).encode()
    try:
        facts = manifest.parse(Path("x"), text)
    except JobFailed:
        return
    if next(importing.faults_of(facts), None) is not None:
        return
    json.dumps(facts, ensure_ascii=False, allow_nan=False).encode()
    assert sum(entry["size"] for entry in facts["files"].values()) >= 0
    for name in facts["files"]:
        assert (Path("/pool/x") / name).resolve().is_relative_to("/pool/x"), name
    datetime.fromtimestamp(facts.get("created", 0), UTC)
    criu.external_for_restore(facts["mounts"])
    try:
        _check_spec(facts["spec"])
        preflight.check_mounts(facts)
    except (JobFailed, Problem):
        pass


def _check_spec(spec: dict[str, Any]) -> None:
    """As images.origins.check_spec does, which knows rows."""
    argv = validation.command(spec.get("argv"))
    env = validation.environment(spec.get("env", {}))
    validation.command_size(argv, env)
    validation.account(spec.get("user", ""), "user")
    validation.account(spec.get("group", ""), "group")
    validation.folder(spec.get("cwd") or "/")
    validation.binds(spec.get("binds", []))


_STATE = {
    "phase": "running", "runmh": [4000000, 1], "init": [4000001, 2], "main": [4000002, 3], "pipe": 7,
    "image": "", "mounts": [["/", "/"]], "exit_code": None, "exit_signal": 9, "adopted": True,
}  # fmt: skip


def state(data: bytes) -> None:
    """A supervisor's state, as bytes or as an odd value."""
    paths = _node("state")
    shaper = Shaper(data)
    odd = shaper.number(7)
    text = json.dumps(shaper.changed(_STATE)).encode() if odd else shaper.data
    paths.state(SERVICE).write_bytes(text)
    found = supervision.running(paths, SERVICE)
    assert found is None, "there is no such process"
    left = supervision.read_state(paths, SERVICE)
    engine.describe(engine.Ended(left.get("exit_code"), left.get("exit_signal")))
    supervision.is_at_work(paths, SERVICE)


_MAGICS = sorted(name for name in magics.by_name if name in criu_images.handlers)
_READ = ("inventory.img", "files.img")


def criu_image(data: bytes) -> None:
    """Any content under the names of CRIU's files that are read here."""
    image = _node("criu_image").images
    shaper = Shaper(data)
    for name in _READ:
        magic = magics.by_name[shaper.pick(("INVENTORY", "FILES", "CORE", *_MAGICS))]
        content = bytearray()
        while shaper and len(content) < 2000:
            part = shaper.bytes(shaper.number(200))
            size = len(part) if shaper.number(7) else shaper.number(2**32 - 1)
            content += size.to_bytes(4, "little") + part
        head = (0x54564319).to_bytes(4, "little") + magic.to_bytes(4, "little")
        (image / name).write_bytes((head if shaper.number(15) else b"") + content)
    assert isinstance(connections.run_of(image), str)
    explaining.listening_ports(image)


_RECORD = {
    "open": [{"path": "/etc/hostname", "size": 1, "mtime": 2, "mode": 0o100644, "inode": 3, "device": 4,
              "writes": True, "appends": False}],
    "data": {"/etc": {"hostname": [1, 2, 3]}},
}  # fmt: skip


def disk_record(data: bytes) -> None:
    """What an image says of the files that its memory believes."""
    image = _node("disk_record").images
    shaper = Shaper(data)
    (image / files.NAME).write_text(json.dumps(shaper.changed(_RECORD)) if shaper.number(7) else "{")
    with contextlib.suppress(JobFailed):
        files.changes(files.read(image), [("/", "/")])


@functools.cache
def _carried() -> tuple[Path, str, dict[str, Any]]:
    """Return an image that carries a folder with one of each kind of thing, the folder, and its list."""
    image = _node("carried").images
    data = image.parent / "data"
    (data / "deep").mkdir(parents=True)
    (data / "deep/leaf").write_bytes(b"leaf" * 2000)
    (data / "alias").hardlink_to(data / "deep/leaf")
    (data / "link").symlink_to("/etc/hostname")
    os.mkfifo(data / "fifo")
    carry.pack(image, [str(data)], [], 0)
    return image, str(data), json.loads((image / carry_index.INDEX).read_text())


def carried(data: bytes) -> None:
    """A list of carried data: what is believed can be made, unless the disk refuses, and nowhere else."""
    image, place, index = _carried()
    (image / carry_index.INDEX).write_text(json.dumps(Shaper(data).changed(index)))
    facts = {"carried": [place], "mounts": [["/", "/"]]}
    try:
        (root,) = carry_index.read(image, facts)
    except JobFailed:
        return
    with contextlib.suppress(JobFailed):
        carry_rights.check([root], {"user": "nobody"})
    putback.is_unchanged(root, facts)
    with tempfile.TemporaryDirectory(dir=image) as folder, (image / carry_index.PACK).open("rb") as content:
        new = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            alone = "alone" if root["items"][0]["kind"] == "file" else None
            unpack.make(new, root["items"], content.fileno(), alone=alone)
            unpack.give(new, root["items"][0])
        except OSError:
            pass
        finally:
            os.close(new)
    assert {path.name for path in image.iterdir()} == {carry_index.INDEX, carry_index.PACK}


@functools.cache
def _real_image() -> dict[str, bytes]:
    """Return the files of an image of a real service, made for this."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        paths = node_in(Path(folder))
        for made in (paths.run_dir / "services", paths.log_dir):
            made.mkdir(parents=True)
        works = engine.Engine(tools.Tools(paths, site.MIEHISTO_CRIU, site.MIEHISTO_TINI, settle=0.05))
        works.start(SERVICE, {"argv": ["/bin/sleep", "600"], "env": {"A": "b"}})
        works.dump(SERVICE, IMAGE)
        orphans.reap()
        return {path.name: path.read_bytes() for path in paths.image(IMAGE).iterdir()}


def inspected(data: bytes) -> None:
    """An image of a real service of which some bytes in some files are others."""
    image = _node("inspected").images
    sound = _real_image()
    shaper = Shaper(data)
    changed: dict[str, bytes] = {}
    choices = sorted(name for name in sound if name.endswith(".img") and not name.startswith("pages-"))
    for _ in range(1 + shaper.number(2)):
        name = shaper.pick(choices)
        content = bytearray(changed.get(name, sound[name]))
        for _ in range(1 + shaper.number(3)):
            at = shaper.number(max(0, min(len(content), 4096) - 1))
            content[at : at + shaper.number(8)] = shaper.bytes(shaper.number(8))
        changed[name] = bytes(content)
    for name in sound:
        if name in changed or not (image / name).exists():
            (image / name).write_bytes(changed.get(name, sound[name]))
    try:
        with contextlib.suppress(Unreadable):
            json.dumps(inspecting.contents(image)).encode()
        with contextlib.suppress(Unreadable):
            json.dumps(inspecting.environment(image)).encode()
        with contextlib.suppress(JobFailed):
            preflight.check_insides(image, Policy(root=False))
        explaining.listening_ports(image)
        connections.run_of(image)
    finally:
        for name in changed:
            (image / name).unlink()


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        tar,
        archive,
        manifest_text,
        manifest_facts,
        state,
        criu_image,
        inspected,
        disk_record,
        carried,
        mountinfo,
        proc,
    )
}


def seeds(name: str) -> list[bytes]:
    """Return sound inputs to begin with, and have ready what the target needs."""
    {"inspected": _real_image, "carried": _carried}.get(name, object)()
    sound = tar_of((manifest.NAME, facts_of(FILES)), *FILES.items())
    return {
        "tar": [b"\xff" + sound, b"\x01" + tar_of(("y" * 300, b"x"))],
        "manifest_text": [facts_of(FILES), b"[" * 2000],
        "proc": [b") Z 1 1\nS:\tZ\r\xff" + bytes(range(256)), bytes(range(255, 0, -1)) * 2],
        "criu_image": [hashlib.sha512(bytes([n])).digest() * 4 for n in range(4)],
    }.get(name, [bytes(range(256)) * 2, b"\x01" * 64])
