"""The kernel's own list of sockets, asked for by netlink (sock_diag(7)). Knows no processes.

It tells what /proc/net does not: the peer of a unix socket. And it lists listeners alone, however many
connections the host has.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

ESTABLISHED, LISTEN = 1, 10
"""States of TCP and of unix sockets (linux/tcp_states.h)."""

STATES = {
    1: "established", 2: "syn_sent", 3: "syn_recv", 4: "fin_wait1", 5: "fin_wait2", 6: "time_wait",
    7: "closed", 8: "close_wait", 9: "last_ack", 10: "listening", 11: "closing",
}  # fmt: skip

UNIX_KINDS = {1: "stream", 2: "datagram", 5: "seqpacket"}
"""By their types (socket(2))."""

_SOCK_DIAG = 4
_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_HEAD = struct.Struct("=IHHII")
_INET_ASK = struct.Struct("=BBBBI48x")
_INET_TOLD = struct.Struct("=BBBB2s2s16s16sIIIIIIII")
_UNIX_ASK = struct.Struct("=BBHIIIII")
_UNIX_TOLD = struct.Struct("=BBBBIII")
_SHOW = 0x1 | 0x4 | 0x8
"""Name, peer, and who waits to be accepted."""
_NAME, _PEER, _WAITING = 0, 2, 3
_EVERY_STATE = 0xFFFFFFFF
_CLONE_NEWNET = 0x40000000


class Inet(NamedTuple):
    """A TCP or UDP socket; `queued` of a listener is how many connections nobody has accepted yet."""

    inode: int
    protocol: str
    state: int
    local: str
    port: int
    peer: str
    peer_port: int
    queued: int


class Unix(NamedTuple):
    """A unix socket; `name` is a path, "@…" of the abstract kind, or empty."""

    inode: int
    kind: int
    state: int
    name: str
    peer: int
    waiting: tuple[int, ...]


def endpoint(host: str, port: int) -> str:
    """Return an address as ss(8) writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def inet(namespace: int = -1, *, listening_only: bool = False) -> list[Inet]:
    """Return the TCP and UDP sockets of a network namespace.

    Args:
        namespace: a descriptor of the namespace; -1 for the present one.
        listening_only: only those that wait for clients: listeners of TCP, and UDP without a peer.
    """
    found = []
    with _asked(namespace) as line:
        for protocol, number in (("tcp", socket.IPPROTO_TCP), ("udp", socket.IPPROTO_UDP)):
            # An UDP socket without a peer has the state 7, TCP_CLOSE.
            states = (1 << LISTEN if protocol == "tcp" else 1 << 7) if listening_only else _EVERY_STATE
            for family in (socket.AF_INET, socket.AF_INET6):
                ask = _INET_ASK.pack(family, number, 0, 0, states)
                found += [_inet(protocol, body) for body in _dump(line, ask)]
    return found


def unix(namespace: int = -1) -> list[Unix]:
    """Return the unix sockets of a network namespace."""
    with _asked(namespace) as line:
        ask = _UNIX_ASK.pack(socket.AF_UNIX, 0, 0, _EVERY_STATE, 0, _SHOW, 0, 0)
        return [_unix(body) for body in _dump(line, ask)]


def _inet(protocol: str, body: bytes) -> Inet:
    family, state, _, _, port, peer_port, local, peer, *rest = _INET_TOLD.unpack_from(body)
    _, _, _, _, queued, _, _, inode = rest
    length = 4 if family == socket.AF_INET else 16
    return Inet(
        inode,
        protocol,
        state,
        socket.inet_ntop(family, local[:length]),
        int.from_bytes(port, "big"),
        socket.inet_ntop(family, peer[:length]),
        int.from_bytes(peer_port, "big"),
        queued,
    )


def _unix(body: bytes) -> Unix:
    _, kind, state, _, inode, _, _ = _UNIX_TOLD.unpack_from(body)
    name, peer, waiting = "", 0, ()
    for number, value in _attributes(body[_UNIX_TOLD.size :]):
        if number == _NAME:
            abstract = value[:1] == b"\0"
            text = value[1:] if abstract else value.rstrip(b"\0")
            name = ("@" if abstract else "") + text.decode("utf-8", "backslashreplace")
        elif number == _PEER:
            peer = int.from_bytes(value[:4], "little")
        elif number == _WAITING:
            waiting = struct.unpack(f"={len(value) // 4}I", value[: len(value) // 4 * 4])
    return Unix(inode, kind, state, name, peer, waiting)


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    while len(body) >= 4:
        length, number = struct.unpack_from("=HH", body)
        if length < 4:
            return
        yield number, body[4:length]
        body = body[(length + 3) & ~3 :]


def _dump(line: socket.socket, ask: bytes) -> Iterator[bytes]:
    """Yield the body of each message of one answer.

    Raises:
        OSError: the kernel refuses.
    """
    line.send(_HEAD.pack(_HEAD.size + len(ask), _BY_FAMILY, _REQUEST_DUMP, 0, 0) + ask)
    while True:
        told = memoryview(line.recv(1 << 18))
        while len(told) >= _HEAD.size:
            length, kind, *_ = _HEAD.unpack_from(told)
            body = bytes(told[_HEAD.size : length])
            told = told[(length + 3) & ~3 :]
            if kind == _DONE:
                return
            if kind == _ERROR:
                error = -int.from_bytes(body[:4], "little", signed=True)
                # A protocol that this kernel has no sockets of.
                if error == 2:
                    return
                raise OSError(error, os.strerror(error))
            yield body


def _asked(namespace: int) -> socket.socket:
    """Return a socket to the kernel in a network namespace; a netlink socket stays where it was made."""
    if namespace < 0:
        return _line()
    made: list[socket.socket | OSError] = []

    def enter() -> None:
        # In a thread of its own, which ends there: setns(2) moves the calling thread alone.
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
            number = ctypes.get_errno()
            made.append(OSError(number, os.strerror(number)))
        else:
            made.append(_line())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _line() -> socket.socket:
    line = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _SOCK_DIAG)
    line.settimeout(10)
    return line
