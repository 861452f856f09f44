"""Supervisors that are started before they are needed: a start of Python takes half of a small restore.

Each process of the worker keeps one, which waits for its order; it is used once, and becomes the service's
runmh. Knows nothing of what is ordered.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker import forks

_CODE = Path(__file__).resolve().parent.parent
# -I and -S: nothing of the operator's environment or of site-packages is read.
PROGRAM = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    f"import sys; sys.path.insert(0, {str(_CODE)!r}); from worker.runmh.main import main; main()",
]


class Spare:
    """A runmh without a service, in a session of its own; a moment after its start it is nobody's child."""

    def __init__(self) -> None:
        with forks.put_off():
            self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                # It ends as soon as it has forked the runmh proper.
                self.launcher = subprocess.Popen(
                    [*PROGRAM, f"--order-fd={theirs.fileno()}"],
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
                    cwd="/",
                )

    def order(self, title: str, words: Sequence[str], descriptors: Mapping[str, int]) -> bool:
        """Give it its command line and its descriptors; False if it is gone."""
        message = {"title": title, "words": list(words), "descriptors": list(descriptors)}
        try:
            socket.send_fds(self._connection, [json.dumps(message).encode()], list(descriptors.values()))
        except (BrokenPipeError, ConnectionResetError):
            return False
        finally:
            self._connection.close()
        return True


# Seconds; a job that comes earlier starts its supervisor itself.
_SOON = 1.0

_ready: dict[int, Spare] = {}


def keep_one() -> None:
    """Start one for the next order of this process, unless one waits already."""
    if os.getpid() not in _ready:
        _ready[os.getpid()] = Spare()


def keep_one_soon() -> None:
    """Do `keep_one` a little later, when the operator's next command does not need the processor more."""
    timer = threading.Timer(_SOON, keep_one)
    timer.daemon = True
    timer.start()


def order(title: str, words: Sequence[str], descriptors: Mapping[str, int]) -> subprocess.Popen[bytes]:
    """Order a supervisor, one that waits if there is one.

    Args:
        title: what ps shall show behind ``runmh``.
        words: its command line.
        descriptors: what it inherits, by the names of the options that tell it their numbers.

    Returns:
        What launched it, to be waited for.
    """
    spare = _ready.pop(os.getpid(), None)
    if spare is None or not spare.order(title, words, descriptors):
        spare = Spare()
        spare.order(title, words, descriptors)
    return spare.launcher
