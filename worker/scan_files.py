"""Looks at the descriptors and the memory of a running process for what a dump could stumble over.

It opens nothing that the process has open, but for the files that an inotify watches; it changes nothing.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from worker import findings, scan_locks, scan_watches
from worker.findings import Finding
from worker.namespaces import lines_of, unescaped
from worker.scan_sockets import Held, protocol_of

_ANONYMOUS = frozenset(
    {"[eventfd]", "[eventpoll]", "[timerfd]", "[signalfd]", "inotify", "[fanotify]", "[pidfd]"}
)
"""What CRIU can make again of what has no name (criu/files.c)."""
_MEMORY_DEVICES = 1
_TERMINALS = frozenset({4, 5, *range(136, 144)})
_PTS = range(136, 144)
"""Majors of devices (Documentation/admin-guide/devices.txt): /dev/null and its like; terminals; /dev/pts."""
_DELETED = " (deleted)"
_MOUNT = re.compile(r"^mnt_id:\s*(\d+)", re.MULTILINE)
_MAPPING = re.compile(
    rb"^(?P<range>\S+) (?P<mode>\S+) \S+ (?P<device>\S+) (?P<inode>\d+) +(?P<name>\S.*)$", re.MULTILINE
)


class Mounts:
    """The mounts that the processes of a service see."""

    def __init__(self) -> None:
        self._namespaces: set[str] = set()
        self.ids: set[int] = set()
        self.points: dict[int, list[tuple[int, str, str]]] = {}

    def add(self, pid: int) -> None:
        """Take up the mount namespace of a process."""
        namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        if namespace in self._namespaces:
            return
        self._namespaces.add(namespace)
        self.take(pid, lines_of(f"/proc/{pid}/mountinfo"))

    def take(self, pid: int, rows: Iterable[str]) -> None:
        """Take up what mountinfo says (proc_pid_mountinfo(5)) of the mounts that a process sees."""
        for row in rows:
            fields, _, rest = row.partition(" - ")
            number, _, device, _, point, *_ = fields.split(" ")
            major, minor = map(int, device.split(":"))
            self.ids.add(int(number))
            kind = rest.split(" ", 1)[0]
            self.points.setdefault(major << 20 | minor, []).append((pid, unescaped(point), kind))


class Files:
    """What was seen so far of the files of a service.

    Args:
        ghost_limit: bytes of a deleted file that an image takes.
        watched_in: folders in which CRIU searches what is watched.
    """

    def __init__(self, ghost_limit: int, watched_in: Sequence[str] = ()) -> None:
        self._ghost_limit = ghost_limit
        self._watched_in = watched_in
        self._search = scan_watches.Search()
        self.mounts = Mounts()
        self.findings: list[Finding] = []
        self.sockets: dict[int, Held] = {}
        self.locks: list[scan_locks.Lock] = []
        self.descriptors = 0
        self.deleted: dict[tuple[int, int], int] = {}
        self._slaves: list[tuple[int, int, str, int]] = []
        self._masters: set[int] = set()

    @property
    def deleted_bytes(self) -> int:
        """Bytes of the deleted files and the memory files that the image has to hold."""
        return sum(self.deleted.values())

    def look(self, pid: int) -> None:
        """Take up the descriptors and mappings of a process.

        Raises:
            OSError: it has ended.
        """
        self.mounts.add(pid)
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for entry in descriptors:
                try:
                    self._descriptor(pid, int(entry.name), os.readlink(entry.path))
                except FileNotFoundError:
                    continue
        self._mappings(pid)

    def terminals_without_other_end(self) -> Iterator[Finding]:
        """Yield the terminals whose master nobody of the service holds; ask when all was looked at."""
        for pid, descriptor, path, index in self._slaves:
            if index not in self._masters:
                yield findings.dangling_terminal(pid, descriptor, path)

    def _descriptor(self, pid: int, number: int, target: str) -> None:
        self.descriptors += 1
        kind, _, rest = target.partition(":")
        if kind == "socket":
            inode = int(rest.strip("[]"))
            if inode not in self.sockets:
                self.sockets[inode] = Held(pid, number, protocol_of(pid, number))
        elif kind == "anon_inode":
            self._anonymous(pid, number, rest)
        elif target.startswith("/"):
            self._named(pid, number, target)
        # What is left: pipes, and what the kernel names like them (pidfd:, net:, mnt:).

    def _anonymous(self, pid: int, number: int, name: str) -> None:
        if name == "[io_uring]":
            self.findings.append(findings.io_uring(pid))
        elif name not in _ANONYMOUS:
            self.findings.append(findings.unsupported_file(pid, number, name))
        elif name in {"inotify", "[fanotify]"}:
            self.findings += scan_watches.look(
                pid, number, self._about(pid, number), self.mounts.points, self._watched_in, self._search
            )

    def _named(self, pid: int, number: int, path: str) -> None:
        found = os.stat(f"/proc/{pid}/fd/{number}")
        if path.startswith("/memfd:"):
            self.deleted[found.st_dev, found.st_ino] = found.st_blocks * 512
            return
        about = self._about(pid, number)
        self.locks += scan_locks.of(pid, path, about, found)
        mount = _MOUNT.search(about)
        known = mount is not None and int(mount[1]) in self.mounts.ids
        if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in _TERMINALS:
            self._terminal(pid, number, path, os.major(found.st_rdev), os.minor(found.st_rdev), known)
        elif not known:
            self.findings.append(findings.mount_unknown(pid, number, path))
        elif (stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) != _MEMORY_DEVICES) or stat.S_ISBLK(
            found.st_mode
        ):
            self.findings.append(findings.unsupported_file(pid, number, path))
        elif path.endswith(_DELETED):
            self._deleted(pid, path.removesuffix(_DELETED), found)

    @staticmethod
    def _about(pid: int, number: int) -> str:
        return Path(f"/proc/{pid}/fdinfo/{number}").read_text(encoding="utf-8", errors="replace")

    def _terminal(self, pid: int, number: int, path: str, major: int, minor: int, known: bool) -> None:
        if not known:
            self.findings.append(findings.dangling_terminal(pid, number, path))
        elif path.endswith(_DELETED):
            pass  # hung up, which CRIU can restore
        elif major in _PTS:
            self._slaves.append((pid, number, path, minor + 256 * (major - _PTS[0])))
        elif index := re.search(r"^tty-index:\s*(\d+)", self._about(pid, number), re.MULTILINE):
            self._masters.add(int(index[1]))

    def _deleted(self, pid: int, path: str, found: os.stat_result) -> None:
        if stat.S_ISREG(found.st_mode) and found.st_nlink:
            self.findings.append(findings.link_remap(pid, path))
        elif (found.st_dev, found.st_ino) not in self.deleted:
            # Holes cost nothing: CRIU counts blocks, too.
            octets = found.st_blocks * 512
            self.deleted[found.st_dev, found.st_ino] = octets
            if stat.S_ISREG(found.st_mode) and octets > self._ghost_limit:
                self.findings.append(findings.deleted_too_large(pid, path, octets, self._ghost_limit))

    def _mappings(self, pid: int) -> None:
        text = Path(f"/proc/{pid}/maps").read_bytes()
        for row in _MAPPING.finditer(text):
            name = row["name"].decode("utf-8", "surrogateescape")
            if name == "[uprobes]":
                self.findings.append(findings.traced(pid))
            elif name == "anon_inode:[io_uring]":
                self.findings.append(findings.io_uring(pid))
            elif name.startswith("anon_inode:"):
                self.findings.append(findings.unsupported_mapping(pid, name))
            elif name.startswith("/dev/") or name.endswith(_DELETED):
                self._mapped(pid, row["range"].decode(), name)

    def _mapped(self, pid: int, where: str, name: str) -> None:
        if name.startswith(("/dev/zero", "/SYSV", "/memfd:")):
            return  # shared memory by another name
        start, _, end = where.partition("-")
        try:
            found = os.stat(f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}")
        except OSError:
            return
        if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) != _MEMORY_DEVICES:
            self.findings.append(findings.unsupported_mapping(pid, name))
        elif stat.S_ISREG(found.st_mode) and name.endswith(_DELETED):
            self._deleted(pid, name.removesuffix(_DELETED), found)
