"""A sealed image survives a power cut: the kernel has nothing of it left to write."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from tests.isolation import FOLDER
from worker import syncing

_SYS_CACHESTAT = 451  # on every architecture (cachestat(2), since Linux 6.5)
_libc = ctypes.CDLL(None, use_errno=True)


class _CacheStat(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
    ]


def unwritten(path: Path) -> int:
    """Return how many pages of a file wait to be written to the disk, or are being written."""
    found = _CacheStat()
    with path.open("rb") as file:
        whole = (ctypes.c_uint64 * 2)(0, 0)
        if _libc.syscall(_SYS_CACHESTAT, file.fileno(), whole, ctypes.byref(found), 0) != 0:
            pytest.skip(f"this kernel does not tell what is dirty: {os.strerror(ctypes.get_errno())}")
    return int(found.dirty + found.writeback)


@pytest.mark.parametrize("much", [False, True], ids=["little to write", "much to write"])
def test_nothing_of_a_sealed_image_is_left_to_write(much: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "_LITTLE", -1 if much else 1 << 40)
    folder = FOLDER / f"synced-{much}"
    folder.mkdir()
    opened = os.open(folder, os.O_RDONLY)
    paths = [folder / f"pages-{number}.img" for number in range(20)]
    for path in paths:
        path.write_bytes(os.urandom(1 << 18))
    if not all(map(unwritten, paths)):
        pytest.skip(f"{folder} lies on no disk, or on one that is written to at once")
    try:
        syncing.sync_files(opened)
    finally:
        os.close(opened)
    assert not any(map(unwritten, paths))
