"""Targets: what a hostile service can write into its part of /proc, by the names that it gives."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import tempfile
from pathlib import Path

from tests.fuzz.shaping import Shaper
from worker import (
    held,
    namespaces,
    process,
    scan_files,
    scan_locks,
    scan_sockets,
    scanning,
    sockdiag,
)

_PR_SET_NAME, _PR_GET_NAME = 15, 16
_libc = ctypes.CDLL(None)


def _named(name: bytes) -> bytes:
    """Return the name that the kernel takes, which has no NUL."""
    return name.replace(b"\0", b"")


def mountinfo(data: bytes) -> None:
    """Rows about mounts of any name, as the kernel escapes them (proc_pid_mountinfo(5))."""
    shaper = Shaper(data)
    made = [(shaper.number(255), [_named(shaper.bytes(shaper.number(60))) for _ in "abc"]) for _ in "123"]
    rows = [
        b"%d 1 0:%d / " % (number, number)
        + b"/%s rw,relatime shared:1 - fuse.%s %s rw\n" % tuple(map(_escaped, names))
        for number, names in made
    ]
    points = [(number, os.fsdecode(b"/" + point)) for number, (point, *_) in made]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(rows))
        file.flush()
        read = namespaces.lines_of(file.name)
    mounts = scan_files.Mounts()
    mounts.take(7, read)
    assert mounts.ids == {number for number, _ in points}
    seen = [(number, point) for number, those in mounts.points.items() for _, point, _ in those]
    assert sorted(seen) == sorted(points)
    assert [namespaces._Mount(row).point for row in read] == [point for _, point in points]


def _escaped(name: bytes) -> bytes:
    """Return a name as the kernel writes it there (fs/proc_namespace.c)."""
    return b"".join(b"\\%03o" % each if each in b" \t\n\\#" else bytes([each]) for each in name)


def proc(data: bytes) -> None:
    """What any process may call itself, its memory and its sockets, as this kernel writes it."""
    shaper = Shaper(data)
    me = os.getpid()
    own = ctypes.create_string_buffer(16)
    _libc.prctl(_PR_GET_NAME, own, 0, 0, 0)
    known = process.Process.of(me), process.parent(me), set(process.status(me))
    _libc.prctl(_PR_SET_NAME, shaper.bytes(15) + b"\0", 0, 0, 0)
    try:
        assert (process.Process.of(me), process.parent(me), set(process.status(me))) == known
    finally:
        _libc.prctl(_PR_SET_NAME, own, 0, 0, 0)
    _memory(shaper, me)
    _socket(shaper, me)


def _memory(shaper: Shaper, me: int) -> None:
    name = _named(shaper.bytes(shaper.number(200)))
    start, length = shaper.number(2**61), shaper.number(2**61)
    path = os.fsdecode(b"/memfd:" + name + b" (deleted)")
    with open(os.memfd_create(os.fsdecode(name)), "r+b") as file:
        file.truncate(4096)
        fcntl.lockf(file, fcntl.LOCK_EX, length, start)
        found = os.fstat(file.fileno())
        (lock,) = scan_locks.of(me, path, scan_files.Files._about(me, file.fileno()), found)
        end = start + length - 1 if length else "EOF"
        assert (lock.kind, lock.mode, lock.range) == ("POSIX", "WRITE", f"{start} {end}")
        with mmap.mmap(file.fileno(), 4096):
            rows = list(scan_files._MAPPING.finditer(Path("/proc/self/maps").read_bytes()))
            files_of_mine = scan_files.Files(0)
            files_of_mine._mappings(me)
            mapped = [
                each.path for each in held._mapped(me, sync=False) if each.status.st_ino == found.st_ino
            ]
    assert path in mapped and not files_of_mine.findings
    shown = os.fsencode(path).replace(b"\n", b"\\012")
    assert found.st_ino in [int(row["inode"]) for row in rows if row["name"] == shown]


def _socket(shaper: Shaper, me: int) -> None:
    address = b"\0%d " % me + shaper.bytes(shaper.number(90))
    with socket.socket(socket.AF_UNIX) as line, socket.socket(socket.AF_UNIX) as client:
        line.bind(address)
        line.listen()
        client.connect(address)
        inode = os.fstat(line.fileno()).st_ino
        seen = sockdiag.unix()
        (found,) = (each for each in seen if each.inode == inode)
        told = scan_sockets._unix(seen, {inode: scan_sockets.Held(me, line.fileno(), "UNIX-STREAM")})
    assert found.name == "@" + address[1:].decode("utf-8", "backslashreplace") and len(found.waiting) == 1
    verdict = scanning._verdict(told)
    assert [each["code"] for each in verdict["findings"]] == ["unix_in_flight"]
    assert verdict["findings"][0]["message"].isprintable(), "no row could hold it"
