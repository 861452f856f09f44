"""How much CPU and memory processes use, and on which ports they listen: one cheap pass over all of them.

Knows nothing of services but a key and a first process of each.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from worker import process, sockdiag
from worker.scan_sockets import address

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Load(NamedTuple):
    """What the processes of a tree use together.

    Attributes:
        cpu: cores, over the time since the last pass; None at the first.
        memory: bytes that no file backs and no other process of the host shares, as an image would hold.
        processes: how many they are.
        listening: where they wait for clients, such as ``127.0.0.1:80`` and ``0.0.0.0:53/udp``.
    """

    cpu: float | None
    memory: int
    processes: int
    listening: list[str]


class _Seen(NamedTuple):
    parent: int
    ticks: int


class Meter:
    """Measures trees of processes, each pass against the one before it."""

    def __init__(self) -> None:
        self._ticks: dict[str, tuple[int, int]] = {}
        self._at = 0.0
        self._holders: dict[int, str] = {}

    def measure(self, roots: Mapping[str, int]) -> dict[str, Load]:
        """Return the load of each tree.

        Args:
            roots: by key, the first process; what isn't there any more has no load.
        """
        now = time.monotonic()
        seen = dict(_processes())
        children: dict[int, list[int]] = defaultdict(list)
        for pid, each in seen.items():
            children[each.parent].append(pid)
        trees = {key: list(_tree(root, children)) for key, root in roots.items() if root in seen}
        listening = self._listening(trees)
        found = {}
        ticks = {}
        for key, pids in trees.items():
            used = sum(seen[pid].ticks for pid in pids)
            ticks[key] = (roots[key], used)
            root, before = self._ticks.get(key, (0, 0))
            cpu = max(0, used - before) / _TICKS / (now - self._at) if root == roots[key] else None
            memory = sum(map(_memory, pids))
            found[key] = Load(
                None if cpu is None else round(cpu, 3), memory, len(pids), listening.get(key, [])
            )
        self._ticks, self._at = ticks, now
        return found

    def _listening(self, trees: Mapping[str, list[int]]) -> dict[str, list[str]]:
        """Return where each tree listens; descriptors are looked through only when a new socket appeared."""
        sockets = {each.inode: address(each) for each in sockdiag.inet(listening_only=True) if each.inode}
        self._holders = {
            inode: key
            for inode, key in self._holders.items()
            if inode in sockets and (not key or key in trees)
        }
        unknown = sockets.keys() - self._holders.keys()
        if unknown:
            for key, pids in trees.items():
                for pid in pids:
                    self._holders |= dict.fromkeys(unknown & process.sockets(pid), key)
            # Those of nobody here are not looked for again.
            self._holders |= dict.fromkeys(unknown - self._holders.keys(), "")
        found: dict[str, set[str]] = defaultdict(set)
        for inode, key in self._holders.items():
            found[key].add(sockets[inode])
        return {key: sorted(addresses) for key, addresses in found.items()}


def _processes() -> Iterable[tuple[int, _Seen]]:
    """Yield each process of the host with its parent and its ticks of CPU, those of reaped children too."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                fields = file.read(1024).rpartition(b")")[2].split()
        except OSError:
            continue
        if len(fields) > 14:
            yield int(name), _Seen(int(fields[1]), sum(map(int, fields[11:15])))


def _tree(root: int, children: Mapping[int, list[int]]) -> Iterable[int]:
    todo = [root]
    while todo:
        pid = todo.pop()
        yield pid
        todo += children.get(pid, ())


def _memory(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            _, resident, shared, *_ = map(int, file.read(256).split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * _PAGE
