"""A runmh that was started before it was needed and waits for its command line. Knows no service."""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import sys

_MOST_BYTES = 1 << 18
_MOST_DESCRIPTORS = 8
_ARG_START, _ARG_END = 48, 49  # fields of proc_pid_stat(5)


def receive(descriptor: int) -> list[str]:
    """Return the command line that comes through the socket `descriptor`, together with its descriptors.

    Each comes as an option with the number that it has here; one named ``errors`` becomes standard error. The
    process ends if the sender does.
    """
    _be_called("runmh waiting for a service")
    connection = _socket.socket(fileno=descriptor)
    room = _socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
    message, ancillary, _, _ = connection.recvmsg(_MOST_BYTES, room, _socket.MSG_CMSG_CLOEXEC)
    if not message:
        os._exit(0)
    connection.close()
    raw = b"".join(data for _, _, data in ancillary)
    received = [int.from_bytes(raw[at : at + 4], sys.byteorder) for at in range(0, len(raw), 4)]
    order = json.loads(message)
    given = dict(zip(order["descriptors"], received, strict=True))
    os.dup2(given.pop("errors"), 2)
    _be_called(f"runmh {order['title']}")
    words: list[str] = order["words"]
    return words + [f"--{name}={number}" for name, number in given.items()]


def _be_called(title: str) -> None:
    """Let ps show `title`: an operator looks for the service's id there, which was not known before."""
    with contextlib.suppress(OSError):
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
        room = end - start
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(title.encode()[: room - 1].ljust(room, b"\0"))
