"""Looks at the sockets of a running service for what a dump could stumble over. Changes nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from worker import findings, sockdiag
from worker.findings import Finding

_INET = frozenset({"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "RAW", "RAWv6"})
_LOCAL = frozenset({"UNIX", "UNIX-STREAM", "NETLINK", "PACKET"})


class Held(NamedTuple):
    """A socket of a service: who has it, under which number, and what the kernel calls its protocol."""

    pid: int
    descriptor: int
    protocol: str


class Sockets(NamedTuple):
    """What was seen of a service's sockets; `listening` are addresses such as ``127.0.0.1:80``."""

    findings: list[Finding]
    connected: int
    waiting: int
    listening: list[str]


def protocol_of(pid: int, descriptor: int) -> str:
    """Return the kernel's name for the protocol of a socket, such as TCP or MPTCP; empty if it is gone.

    The extended attribute is what lsof uses (net/socket.c, sockfs).
    """
    try:
        name = os.getxattr(f"/proc/{pid}/fd/{descriptor}", "system.sockprotoname")
    except OSError:
        return ""
    return name.rstrip(b"\0").decode("ascii", "replace")


@contextmanager
def network_of(pid: int) -> Iterator[int]:
    """Yield a descriptor of the network namespace of a process, or -1 if it is our own."""
    path = f"/proc/{pid}/ns/net"
    if os.readlink(path) == os.readlink("/proc/self/ns/net"):
        yield -1
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def look(init: int, held: Mapping[int, Held], *, close: bool, skip_in_flight: bool) -> Sockets:
    """Judge the sockets of a service.

    Args:
        init: a process in the service's network namespace.
        held: each socket of the service by its inode.
        close: the dump drops connections.
        skip_in_flight: the dump passes over connections that were not accepted.
    """
    found = list(_by_protocol(held))
    if not held:
        return Sockets(found, 0, 0, [])
    with network_of(init) as namespace:
        inet = [each for each in sockdiag.inet(namespace) if each.inode in held]
        local = sockdiag.unix(namespace)
    connected = waiting = 0
    listening = set()
    for each in inet:
        if each.state == sockdiag.LISTEN or (each.protocol == "udp" and not each.peer_port):
            listening.add(address(each))
        elif each.protocol == "tcp" and each.peer_port:
            connected += 1
        if each.protocol == "tcp" and each.state == sockdiag.LISTEN and each.queued:
            waiting += each.queued
            if not skip_in_flight:
                found.append(findings.tcp_in_flight(each.queued, each.port))
    if connected:
        found.append(findings.connections(connected, close))
    found += _unix(local, held)
    return Sockets(found, connected, waiting, sorted(listening))


def address(each: sockdiag.Inet) -> str:
    """Return where a socket listens, as ss(8) writes it."""
    return sockdiag.endpoint(each.local, each.port) + ("/udp" if each.protocol == "udp" else "")


def _by_protocol(held: Mapping[int, Held]) -> Iterator[Finding]:
    for pid, descriptor, protocol in held.values():
        if protocol in {"MPTCP", "MPTCPv6"}:
            yield findings.mptcp(pid)
        elif protocol and protocol not in _INET | _LOCAL:
            yield findings.unsupported_socket(pid, descriptor, protocol)


def _unix(sockets: list[sockdiag.Unix], held: Mapping[int, Held]) -> Iterator[Finding]:
    names = {each.inode: each.name for each in sockets}
    for each in sockets:
        if each.inode not in held:
            continue
        pid = held[each.inode].pid
        if any(inode not in held for inode in each.waiting):
            yield findings.unix_waiting(pid, each.name)
        if not each.peer or each.peer in held or each.state == sockdiag.LISTEN:
            continue
        if each.kind == socket.SOCK_DGRAM and (name := names.get(each.peer, "")):
            yield findings.unix_datagrams_outside(pid, name)
            continue
        yield findings.unix_peer_outside(pid, each.name)
