"""What is in an image, read from CRIU's files: processes, files, sockets, memory. Knows no rows and no jobs.

`python -m worker.inspecting FOLDER` prints it as JSON, in a process that may use only so much memory and
time, alone and without rights: an image may come from elsewhere, and its reader is expected to be attacked.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from worker import alone, forks
from worker.image_files import Entry, Held, Image, Unreadable, entries, number, part, some_entries, text
from worker.image_memory import KINDS, Memory, Shared
from worker.runmh.launch import Account
from worker.runmh.privileges import Privileges
from worker.sockdiag import STATES, UNIX_KINDS, endpoint

log = logging.getLogger(__name__)

_MOST_PROCESSES = 2000
_MOST_FILES = 10_000
_MOST_MAPPINGS = 2000
_MOST_WORDS, _MOST_COMMAND, _MOST_ENVIRONMENT = 64, 8 << 10, 128 << 10
_MOST_TOLD = 16 << 20
_MEMORY, _SECONDS = 2 << 30, 60
_TASKS = {1: "running", 2: "dead", 3: "stopped", 6: "zombie"}
_PROTOCOLS = {6: "tcp", 17: "udp", 136: "udplite"}
_SOCKETS = {"INETSK": "isk", "UNIXSK": "usk", "PACKETSK": "psk", "NETLINKSK": "nlsk"}
_WORDS = {
    "PIPE": "pipe", "FIFO": "fifo", "EVENTFD": "eventfd", "EVENTPOLL": "epoll", "INOTIFY": "inotify",
    "FANOTIFY": "fanotify", "SIGNALFD": "signalfd", "TIMERFD": "timerfd", "TTY": "terminal", "TUNF": "tun",
    "MEMFD": "memfd", "PIDFD": "pidfd", "NS": "namespace", "BPFMAP": "bpf map", "EXT": "external",
}  # fmt: skip


def apart(image: Path, what: str = "contents") -> dict[str, Any]:
    """Return what `contents` or `environment` does, from a process that may use only so much.

    Raises:
        Unreadable: it is no image, is damaged, or wants more than that.
    """
    said, complaint = heard([sys.executable, "-m", __name__, what, str(image)], 2 * _MOST_TOLD, 2 * _SECONDS)
    try:
        found: Any = json.loads(said)
    except ValueError:
        log.warning("the contents of %s: %s", image, complaint.decode(errors="replace")[-2000:])
        raise Unreadable("it makes its reader fail; the worker's log says how") from None
    if not isinstance(found, dict):
        raise Unreadable("it makes its reader say what no reader says")
    if "error" in found:
        raise Unreadable(str(found["error"]))
    return found


def heard(command: Sequence[str], most: int, seconds: float) -> tuple[bytes, bytes]:
    """Return what a program prints and what it complains of: an image may have made it say anything.

    It is run apart from all other processes and from the network.

    Args:
        most: bytes of both together.
        seconds: how long it may take.

    Raises:
        Unreadable: it says more, or takes longer; it is killed then.
    """
    deadline = time.monotonic() + seconds
    with forks.put_off():
        program = subprocess.Popen(
            [*alone.APART, *command],
            env=alone.ENVIRONMENT,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    with program, selectors.DefaultSelector() as open_ones:
        said: dict[Any, bytearray] = {program.stdout: bytearray(), program.stderr: bytearray()}
        try:
            for pipe in said:
                open_ones.register(pipe, selectors.EVENT_READ)
            while open_ones.get_map():
                ready = open_ones.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise Unreadable("it takes too long to be read")
                for key, _ in ready:
                    piece = os.read(key.fd, 65536)
                    if not piece:
                        open_ones.unregister(key.fileobj)
                    said[key.fileobj] += piece
                if sum(map(len, said.values())) > most:
                    raise Unreadable("it makes its reader say more than any reader says")
            program.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            program.kill()
            raise Unreadable("it takes too long to be read") from None
        except BaseException:
            program.kill()
            raise
    return bytes(said[program.stdout]), bytes(said[program.stderr])


def contents(image: Image) -> dict[str, Any]:
    """Return what is in an image.

    Args:
        image: its folder.

    Returns:
        processes, files, sockets, memory (bytes by kind), mappings (bytes by what is mapped), environment
        (names by process, never values), counts, and whether something was left out; all of it JSON.

    Raises:
        Unreadable: it is no image, or damaged.
    """
    tree = entries(image, "pstree.img")
    files = _files(image)
    sums = _Sums()
    shared = Shared(image, files)
    names: dict[str, list[str]] = {}
    processes = []
    holders: dict[int, list[int]] = {}
    for item in tree[:_MOST_PROCESSES]:
        process = _process(image, item)
        processes.append(process)
        if process["state"] in {"zombie", "dead"}:
            continue
        pid = process["pid"]
        held = Memory(image, pid)
        process |= {
            "args": _words(held, "mm_arg_start", "mm_arg_end", _MOST_COMMAND)[:_MOST_WORDS],
            "exe": _path(files, number(held.mm, "exe_file_id")),
            **_place(image, pid, files),
        }
        variables = _words(held, "mm_env_start", "mm_env_end", _MOST_ENVIRONMENT)
        names[str(pid)] = sorted({word.partition("=")[0] for word in variables if "=" in word})
        stored = 0
        for area in held.mappings():
            size = area.stored
            name = _path(files, area.source) if area.kind == "file" else f"[{area.kind}]"
            if area.kind == "shared":
                name, size = shared.take(area.source)
            sums.add(area.kind, name, area.mapped, size)
            stored += size
        process["memory"] = stored
        for ids in some_entries(image, f"ids-{pid}.img"):
            holders.setdefault(number(ids, "files_id"), []).append(pid)
    for source in list(shared.left):  # what is open and nowhere mapped
        name, size = shared.take(source)
        sums.add("shared", name, 0, size)
    opened, sockets = _descriptors(image, files, holders)
    return {
        "processes": processes,
        "files": opened[:_MOST_FILES],
        "sockets": sockets[:_MOST_FILES],
        "memory": sums.memory,
        "mappings": sums.largest(),
        "environment": names,
        "counts": {
            "processes": len(tree),
            "threads": sum(len(process["threads"]) for process in processes),
            "files": len(opened),
            "sockets": len(sockets),
            "locks": len(some_entries(image, "filelocks.img")),
        },
        "truncated": len(tree) > _MOST_PROCESSES
        or max(len(opened), len(sockets)) > _MOST_FILES
        or len(sums.mappings) > _MOST_MAPPINGS,
    }


class _Sums:
    """Bytes, mapped and stored, by kind of memory and by what is mapped."""

    def __init__(self) -> None:
        self.memory = {kind: {"mapped": 0, "stored": 0} for kind in KINDS}
        self.mappings: dict[tuple[str, str], dict[str, int]] = {}

    def add(self, kind: str, name: str, mapped: int, stored: int) -> None:
        for sizes in (
            self.memory[kind],
            self.mappings.setdefault((kind, name), {"mapped": 0, "stored": 0}),
        ):
            sizes["mapped"] += mapped
            sizes["stored"] += stored

    def largest(self) -> list[dict[str, Any]]:
        """Return the mappings, those of which the image holds most first, and not too many of them."""
        ordered = sorted(
            self.mappings.items(), key=lambda each: (-each[1]["stored"], -each[1]["mapped"], each[0])
        )
        return [{"kind": kind, "name": name, **sizes} for (kind, name), sizes in ordered[:_MOST_MAPPINGS]]


def environment(image: Image) -> dict[str, dict[str, str]]:
    """Return the environment of each process of an image, values included, by the process's number.

    Raises:
        Unreadable: it is no image, or damaged.
    """
    found = {}
    for item in entries(image, "pstree.img")[:_MOST_PROCESSES]:
        process = _process(image, item)
        if process["state"] not in {"zombie", "dead"}:
            held = Memory(image, process["pid"])
            words = _words(held, "mm_env_start", "mm_env_end", _MOST_ENVIRONMENT)
            pairs = (word.partition("=") for word in words if "=" in word)
            found[str(process["pid"])] = {name: value for name, _, value in pairs}
    return found


def _process(image: Image, item: Entry) -> dict[str, Any]:
    pid = number(item, "pid")
    core = next(iter(entries(image, f"core-{pid}.img")), {})
    task = part(core, "tc")
    owner = part(part(core, "thread_core"), "creds")
    state = _TASKS.get(number(task, "task_state"), "running")
    threads = item.get("threads")
    alive = state not in {"zombie", "dead"}
    return {
        "pid": pid,
        "ppid": number(item, "ppid"),
        "comm": text(task.get("comm"), 64),
        "state": state,
        "uid": number(owner, "uid") if alive else None,
        "gid": number(owner, "gid") if alive else None,
        "threads": threads[:10_000] if alive and isinstance(threads, list) else [],
        "args": [],
        "exe": "",
        "cwd": "",
        "root": "",
        "memory": 0,
    }


def _words(held: Memory, first: str, last: str, most: int) -> list[str]:
    """Return the words, ended by NUL each, that stand between two addresses of a process's memory."""
    start, end = number(held.mm, first), number(held.mm, last)
    if not start < end:
        return []
    return [text(word, most) for word in held.read(start, end, most).rstrip(b"\0").split(b"\0")]


def _place(image: Image, pid: int, files: dict[int, Entry]) -> dict[str, str]:
    place = next(iter(some_entries(image, f"fs-{pid}.img")), {})
    return {"cwd": _path(files, number(place, "cwd_id")), "root": _path(files, number(place, "root_id"))}


def _files(image: Image) -> dict[int, Entry]:
    return {number(entry, "id"): entry for entry in some_entries(image, "files.img")}


def _path(files: dict[int, Entry], number_of_file: int) -> str:
    return text(part(files.get(number_of_file, {}), "reg").get("name"), 4096)


def _descriptors(
    image: Image, files: dict[int, Entry], holders: dict[int, list[int]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the open files and the sockets; those that several processes share are named once."""
    deleted = {number(entry, "orig_id") for entry in some_entries(image, "remap-fpath.img")}
    opened, sockets = [], []
    for table, pids in sorted(holders.items()):
        for entry in some_entries(image, f"fdinfo-{table}.img"):
            file = files.get(number(entry, "id"), {})
            kind = text(file.get("type") or entry.get("type"), 32)
            where = {"pids": pids[:100], "fd": number(entry, "fd", -1)}
            if kind in _SOCKETS:
                sockets.append(where | _socket(kind, part(file, _SOCKETS[kind])))
            else:
                opened.append(where | _file(kind, file, files) | {"deleted": number(entry, "id") in deleted})
    return opened, sockets


def _file(kind: str, file: Entry, files: dict[int, Entry]) -> dict[str, Any]:
    regular = part(file, "reg")
    if kind == "REG":
        folder = number(regular, "mode") >> 12 == 4
        device = number(regular, "mode") >> 12 in {2, 6}
        return {
            "kind": "folder" if folder else "device" if device else "file",
            "path": text(regular.get("name"), 4096),
            "position": number(regular, "pos"),
            "size": number(regular, "size", -1) if "size" in regular else None,
            "writes": bool(number(regular, "flags") & 3),
        }
    named = number(part(file, {"FIFO": "fifo", "TTY": "tty"}.get(kind, "")), "regf_id")
    return {"kind": _WORDS.get(kind, kind.lower()), "path": _path(files, named) if named else ""}


def _socket(kind: str, found: Entry) -> dict[str, Any]:
    state = found.get("state")
    said = STATES.get(state, "") if isinstance(state, int) else text(state, 32).lower()
    if kind == "INETSK":
        family = socket.AF_INET6 if number(found, "family") == socket.AF_INET6 else socket.AF_INET
        raw = number(found, "type") == socket.SOCK_RAW
        protocol = "raw" if raw else _PROTOCOLS.get(number(found, "proto"), str(number(found, "proto")))
        return {
            "family": protocol,
            "state": said,
            "local": _endpoint(family, found.get("src_addr"), number(found, "src_port")),
            "peer": _endpoint(family, found.get("dst_addr"), number(found, "dst_port"))
            if number(found, "dst_port")
            else "",
        }
    if kind == "UNIXSK":
        name = found.get("name")
        shown = text(name, 256)
        raw_name = name if isinstance(name, bytes) else str(name or "").encode("utf-8", "backslashreplace")
        kind_of = UNIX_KINDS.get(number(found, "type"), "")
        return {
            "family": "unix",
            "state": said,
            "local": ("@" if raw_name[:1] == b"\0" else "") + shown,
            "peer": "",
            "kind": kind_of,
        }
    return {"family": "packet" if kind == "PACKETSK" else "netlink", "state": said, "local": "", "peer": ""}


def _endpoint(family: int, words: object, port: int) -> str:
    """Return an address as ss(8) writes it; CRIU keeps it as numbers whose bytes are the network's."""
    length = 4 if family == socket.AF_INET6 else 1
    if not isinstance(words, list) or len(words) < length:
        return f"?:{port}"
    try:
        packed = struct.pack(f"<{length}I", *words[:length])
    except struct.error:
        return f"?:{port}"
    return endpoint(socket.inet_ntop(family, packed), port)


def _main(arguments: Iterable[str]) -> None:
    what, folder = arguments
    try:
        image = _with_nothing_else(Path(folder))
        found = {"contents": contents, "environment": environment}[what](image)
    except Unreadable as error:
        found = {"error": text(str(error), 500)}
    except (MemoryError, RecursionError):
        found = {"error": "it needs more memory than an image may"}
    told = json.dumps(found)
    if len(told) > _MOST_TOLD:
        told = json.dumps({"error": "there is more in it than can be shown"})
    sys.stdout.write(told)


def _with_nothing_else(folder: Path) -> Held:
    """Open the files of an image, and give up all rights but that of telling what is in them.

    Raises:
        Unreadable: they cannot be opened.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    image = Held(folder)
    nobody = Account(str(alone.UID), "")
    rights = Privileges({}, nobody.uid)
    rights.bound()
    # No path leads anywhere from here on, for the image's folder is root's: no file, no socket.
    os.chdir(folder)
    os.chroot(".")
    nobody.become()
    rights.settle()
    for limit, value in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    os.nice(10)
    return image


if __name__ == "__main__":
    _main(sys.argv[1:])
