"""The init of a service that another runmh has started: no child of ours. Knows nothing of services."""

from __future__ import annotations

import fcntl
import select
import struct

from worker.process import Process

# linux/pidfd.h: a pidfd tells the exit status of a process that somebody else has reaped, from Linux 6.15 on.
_GET_INFO = 3 << 30 | 64 << 16 | 0xFF << 8 | 11
_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")
_EXIT_STATUS = 52 - 3  # proc_pid_stat(5), counted from the field behind the name


class Stranger:
    """A process that is watched by its pidfd.

    Attributes:
        descriptor: the pidfd, readable once the process has ended; None if that was before the first look.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.descriptor = process.open()

    def ended(self) -> bool:
        """Tell whether the process has ended."""
        if self.descriptor is None:
            return True
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def status(self) -> int | None:
        """Return how it ended, as waitpid(2) would; None if nobody knows any more."""
        zombie = self._zombie_status()
        if zombie is not None or self.descriptor is None:
            return zombie
        asked = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
        try:
            fcntl.ioctl(self.descriptor, _GET_INFO, asked)
        except OSError:  # an older kernel
            return None
        mask, *_, status = _INFO.unpack(asked)
        return int(status) if mask & _INFO_EXIT else None

    def _zombie_status(self) -> int | None:
        """Return what the process left for its parent, who has not come for it yet."""
        try:
            with open(f"/proc/{self._process.pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return None
        if fields[0] != "Z" or int(fields[19]) != self._process.start:
            return None
        return int(fields[_EXIT_STATUS])
