"""Looks at the disk with a user's rights instead of root's, for one thread and one block."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from worker.runmh.launch import Account

_SETGROUPS = {"x86_64": 116, "aarch64": 159}
"""The number of setgroups(2): the C library's function would change all threads."""
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def of(account: Account) -> Iterator[None]:
    """Have the rights of a user's where files are looked up, opened and listed, with no capability for that.

    The file system's user counts there, and the kernel takes the capabilities that override permissions as
    long as it is not root (setfsuid(2), capabilities(7)). Nothing changes for root's.

    Raises:
        OSError: this thread may not.
    """
    if account.uid == 0:
        yield
        return
    before = os.getgroups()
    _set_groups([account.gid, *account.groups])
    try:
        group, user = _libc.setfsgid(account.gid), _libc.setfsuid(account.uid)
        try:
            if _libc.setfsuid(-1) != account.uid:  # it never says that it failed
                raise PermissionError(f"cannot look with the eyes of user {account.uid}")
            yield
        finally:
            _libc.setfsuid(user)
            _libc.setfsgid(group)
    finally:
        _set_groups(before)


def _set_groups(groups: Sequence[int]) -> None:
    numbers = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc.syscall(_SETGROUPS[platform.machine()], ctypes.c_size_t(len(groups)), numbers) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
