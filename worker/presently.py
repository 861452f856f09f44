"""What a running service is and does at this moment: its processes, open files and sockets. Changes nothing.

It has the shape of what is read out of an image, so that both are shown alike.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

from worker import process, sockdiag
from worker.image_files import text
from worker.scan_sockets import network_of, protocol_of
from worker.users import name_users

_MOST_PROCESSES = 500
_MOST_FILES = 2000
_MOST_LOOKED_AT = 20_000
"""Descriptors after which those of other processes are not looked at; a service may have millions."""
_MEASURED = 0.1
"""Seconds over which CPU is measured."""
_TICKS = os.sysconf("SC_CLK_TCK")
_STATES = {"R": "running", "S": "sleeping", "D": "disk sleep", "T": "stopped", "t": "traced", "I": "idle"}
_FAMILIES = {
    "TCP": "tcp", "TCPv6": "tcp", "UDP": "udp", "UDPv6": "udp", "UNIX": "unix", "UNIX-STREAM": "unix",
    "RAW": "raw", "RAWv6": "raw", "MPTCP": "mptcp", "MPTCPv6": "mptcp",
}  # fmt: skip


def look(init: int) -> dict[str, Any]:
    """Return what a service does now.

    Args:
        init: its first process, in this PID namespace.

    Returns:
        processes (cpu in cores over a tenth of a second, memory in bytes that no file backs; user is "" where
        its number has no name here), files, sockets, counts, and whether something was left out; all JSON.
    """
    pids = list(process.tree(init))
    before, began = {pid: _ticks(pid) for pid in pids}, time.monotonic()
    processes: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    held: dict[int, dict[str, Any]] = {}
    known = set(pids)
    for pid in pids[:_MOST_PROCESSES]:
        found = _process(pid, known)
        if found is not None:
            processes.append(found)
            if len(files) + len(held) < _MOST_LOOKED_AT:
                files += _descriptors(pid, held)
    sockets = _sockets(init, held)
    time.sleep(max(0.0, _MEASURED - (time.monotonic() - began)))
    elapsed = time.monotonic() - began
    for found in processes:
        used = _ticks(found["pid"]) - before.get(found["pid"], 0)
        found["cpu"] = round(max(0, used) / _TICKS / elapsed, 2)
    name_users(processes)
    return {
        "processes": processes,
        "files": files[:_MOST_FILES],
        "sockets": sockets[:_MOST_FILES],
        "counts": {
            "processes": len(pids),
            "threads": sum(found["threads"] for found in processes),
            "files": len(files),
            "sockets": len(sockets),
        },
        "truncated": len(pids) > _MOST_PROCESSES or max(len(files), len(sockets)) > _MOST_FILES,
    }


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _process(pid: int, known: Container[int]) -> dict[str, Any] | None:
    """Return a process as pages show it; None if it has ended."""
    status = process.status(pid)
    if not status:
        return None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()[: 8 << 10].rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    parent = int(status["PPid"])
    letter = status["State"][0]
    kept = sum(int(status.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssShmem", "VmSwap"))
    return {
        "pid": pid,
        "ppid": parent if parent in known else 0,
        "inside": int(status["NSpid"].split()[-1]) if "NSpid" in status else pid,
        "comm": text(status["Name"], 64),
        "args": [text(word) for word in words[:64] if word] if words != [b""] else [],
        "state": "zombie" if letter in "ZX" else _STATES.get(letter, letter),
        "uid": int(status["Uid"].split()[0]),
        "gid": int(status["Gid"].split()[0]),
        "threads": int(status.get("Threads", "1")),
        "memory": kept,
        "cpu": 0.0,
        "cwd": _link(f"/proc/{pid}/cwd"),
        "exe": _link(f"/proc/{pid}/exe"),
    }


def _link(path: str) -> str:
    try:
        return text(os.readlink(path), 4096)
    except OSError:
        return ""


def _descriptors(pid: int, held: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the open files of a process, and add its sockets to `held` by inode."""
    found = []
    try:
        numbers = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
    except OSError:
        return []
    for number in numbers[:_MOST_LOOKED_AT]:
        path = f"/proc/{pid}/fd/{number}"
        try:
            target = os.readlink(path)
        except OSError:
            continue
        kind, _, rest = target.partition(":")
        if kind == "socket":
            inode = int(rest.strip("[]"))
            if inode in held:
                pids = held[inode]["pids"]
                pids += [pid] * (pid not in pids and len(pids) < 100)
            else:
                held[inode] = {"pids": [pid], "fd": number, "protocol": protocol_of(pid, number)}
        elif target.startswith("/"):
            named = {"path": text(target.removesuffix(" (deleted)"), 4096)}
            found.append(
                {"pids": [pid], "fd": number, **_kind(path, target), **named}
                | {"deleted": target.endswith(" (deleted)")}
            )
        else:
            name = rest.strip("[]") if kind == "anon_inode" else kind
            found.append({"pids": [pid], "fd": number, "kind": name, "path": "", "deleted": False})
    return found


def _kind(path: str, target: str) -> dict[str, Any]:
    try:
        mode = os.stat(path)
    except OSError:
        return {"kind": "file"}
    if target.startswith("/memfd:"):
        return {"kind": "memfd", "size": mode.st_size}
    if stat.S_ISDIR(mode.st_mode):
        return {"kind": "folder"}
    if stat.S_ISFIFO(mode.st_mode):
        return {"kind": "fifo"}
    if stat.S_ISCHR(mode.st_mode):
        return {"kind": "terminal" if target.startswith(("/dev/pts/", "/dev/tty", "/dev/ptmx")) else "device"}
    return {"kind": "file", "size": mode.st_size}


def _sockets(init: int, held: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the sockets in `held` with their states and addresses, as the kernel's list has them."""
    if not held:
        return []
    try:
        with network_of(init) as namespace:
            inet = {each.inode: each for each in sockdiag.inet(namespace)}
            unix = {each.inode: each for each in sockdiag.unix(namespace)}
    except OSError:
        inet, unix = {}, {}
    found = []
    for inode, holder in held.items():
        protocol = holder.pop("protocol")
        row = {
            **holder,
            "family": _FAMILIES.get(protocol, protocol.lower()),
            "state": "",
            "local": "",
            "peer": "",
        }
        if inode in inet:
            each = inet[inode]
            row["state"] = sockdiag.STATES.get(each.state, "")
            row["local"] = sockdiag.endpoint(each.local, each.port)
            row["peer"] = sockdiag.endpoint(each.peer, each.peer_port) if each.peer_port else ""
        elif inode in unix:
            local = unix[inode]
            row["state"] = sockdiag.STATES.get(local.state, "")
            row["local"] = text(local.name, 256)
            row["peer"] = text(unix[local.peer].name, 256) if local.peer in unix else ""
            row["kind"] = sockdiag.UNIX_KINDS.get(local.kind, "")
        found.append(row)
    return found
