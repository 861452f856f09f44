"""What a service may do to the host, given up before its program runs. Knows nothing of how it is started.

The bounding set is what no program of the service can ever have again (capabilities(7)); "no new privileges"
makes setuid programs run as whoever calls them (prctl(2)). CRIU dumps and restores both.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from typing import Any

# By their numbers, linux/capability.h.
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
_ALL = frozenset(range(64))
# What servers that start as root need: to open their port and their files, and to become somebody else.
OF_ROOT = frozenset(
    map(
        NAMES.index,
        ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID",
         "SYS_CHROOT"),
    )
)  # fmt: skip
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522  # capget(2)

_libc = ctypes.CDLL(None, use_errno=True)


class NoSuchCapability(ValueError):
    """A name that capabilities(7) does not know, or a capability that this host cannot give."""


class Privileges:
    """The capabilities of one service, by their numbers.

    Args:
        asked: a spec's privileges: cap_add and cap_drop, lists of names or ALL; new_privileges.
        uid: its user. Who is not root has none by itself, so the default is none, unless setuid programs
            shall work.

    Raises:
        NoSuchCapability: one that is added does not exist here.
    """

    def __init__(self, asked: Mapping[str, Any], uid: int) -> None:
        self.may_gain = bool(asked.get("new_privileges"))
        present = _present()
        added = _numbers(asked.get("cap_add", []))
        if added != _ALL and added - present:
            raise NoSuchCapability(NAMES[min(added - present)])
        default = OF_ROOT if uid == 0 or self.may_gain else frozenset()
        self.kept = (default - _numbers(asked.get("cap_drop", [])) | added) & present
        # Root's programs get what the bounding set leaves; others get what is handed to them.
        self.handed_on = frozenset() if uid == 0 else added & present

    def bound(self) -> None:
        """Let this process and its descendants never gain others; what it has stays for now."""
        for number in _present() - self.kept:
            _prctl(_PR_CAPBSET_DROP, number)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        if self.handed_on:
            _prctl(_PR_SET_KEEPCAPS, 1)

    def settle(self) -> None:
        """Have these and no others, also in the program; to be called once the user is the service's."""
        mine = self.kept if os.getuid() == 0 else self.handed_on
        sets = (_mask(mine), _mask(mine), _mask(self.handed_on))
        header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
        words = [mask >> shift & 0xFFFFFFFF for shift in (0, 32) for mask in sets]
        _check(_libc.capset(header, (ctypes.c_uint32 * 6)(*words)))
        for number in self.handed_on:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
        if not self.may_gain:
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _present() -> frozenset[int]:
    """Return what the present process could have: the kernel's capabilities that nobody took from it."""
    return frozenset(number for number in _ALL if _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1)


def _numbers(names: Iterable[str]) -> frozenset[int]:
    found = set(names)
    unknown = found - {"ALL", *NAMES}
    if unknown:
        raise NoSuchCapability(min(unknown))
    return _ALL if "ALL" in found else frozenset(map(NAMES.index, found))


def _mask(some: Iterable[int]) -> int:
    return sum(1 << number for number in some)


def numbers(mask: int) -> frozenset[int]:
    """Return the capabilities in a set as the kernel writes it."""
    return frozenset(number for number in _ALL if mask >> number & 1)


def name_of(number: int) -> str:
    """Return the name of a capability; one that is newer than this list has its number."""
    return NAMES[number] if number < len(NAMES) else str(number)


def _prctl(option: int, value: int, third: int = 0) -> None:
    _check(_libc.prctl(option, *(ctypes.c_ulong(word) for word in (value, third, 0, 0))))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"privileges: {os.strerror(number)}")
