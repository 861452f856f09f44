"""Carried data on a file system that shares blocks, a real btrfs in a file: no byte is written twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_carried_data import listing
from worker import blocks, carry, carry_index, putback
from worker.paths import Paths

FILE = 4 << 20


@pytest.fixture
def btrfs(folder: Path) -> Iterator[Path]:
    """A folder on a btrfs."""
    if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this host's kernel has no btrfs")
    disk, place = folder / "disk", folder / "btrfs"
    place.mkdir()
    disk.touch()
    os.truncate(disk, 256 << 20)
    subprocess.run(["mkfs.btrfs", "--quiet", disk], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", disk, place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this host mounts no file by a loop device: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def taken(place: Path) -> int:
    """Return the bytes that a file system has in use, with all that waits to be written."""
    subprocess.run(["sync", "-f", place], check=True)
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_data_is_carried_and_put_back_without_a_copy(btrfs: Path) -> None:
    data, service, image = btrfs / "data", uuid.uuid4().hex, uuid.uuid4().hex
    paths = Paths(btrfs / "state", btrfs / "run", btrfs / "log")
    for folder in (data, paths.image(image), paths.spec(service).parent):
        folder.mkdir(parents=True)
    # Whole blocks, an end in the middle of one, a hole between, and what is too small to be worth it.
    (data / "whole").write_bytes(os.urandom(FILE))
    (data / "odd").write_bytes(os.urandom(FILE - 5))
    with (data / "holes").open("wb") as file:
        file.write(os.urandom(FILE))
        file.seek(3 * FILE)
        file.write(os.urandom(FILE + 1))
    (data / "small").write_bytes(b"small")
    before, room = listing(data), taken(btrfs)

    packed = carry.pack(paths.image(image), [str(data)], [], 0)
    assert packed.shared_bytes == 4 * FILE - 5 + 1
    assert taken(btrfs) - room < FILE / 4

    # The image keeps what it has, whatever becomes of the files that it shares their blocks with.
    for name in ("whole", "odd", "holes"):
        with (data / name).open("r+b") as file:
            file.write(bytes(100_000))
    (data / "small").unlink()
    room = taken(btrfs)
    with putback.PutBack(paths, service, image) as under_way:
        facts = {"carried": [str(data)], "mounts": []}
        under_way.begin(carry_index.read(paths.image(image), facts), [])
        under_way.about_to_run()
        assert taken(btrfs) - room < FILE / 4
    putback.settle(paths, service, ran=True)
    assert listing(data) == before


def test_what_cannot_be_shared_is_copied(btrfs: Path, folder: Path) -> None:
    """An image on another file system than the data, or a range that is not of whole blocks."""
    data, image = btrfs / "data", folder / "image"
    for each in (data, image):
        each.mkdir()
    (data / "book").write_bytes(os.urandom(FILE))
    packed = carry.pack(image, [str(data)], [], 0)
    assert packed.shared_bytes == 0
    assert (image / "carried.pack").read_bytes() == (data / "book").read_bytes()

    shutil.copy(data / "book", data / "other")
    with (data / "book").open("rb") as source, (data / "other").open("r+b") as target:
        ours = source.fileno(), 0, target.fileno()
        assert not blocks.share(*ours, 100, FILE)
        assert not blocks.share(*ours, 0, blocks.WORTH_SHARING - blocks.BLOCK)
        assert blocks.share(*ours, 0, FILE)
