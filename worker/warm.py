"""A mount namespace in which CRIU finds its kernel probe done already. Knows nothing of dumps.

CRIU probes the kernel at each call, 30 to 50 ms, unless it may keep the result in /run/criu.kdat, which it
does only on a tmpfs. Where /run is none (containers, mostly) CRIU is run in a mount namespace that has one
there and in which the probe has been made once. What the host keeps below /run is hidden in it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Sequence

from worker import namespaces

log = logging.getLogger(__name__)


def prepare(criu_binary: str) -> int:
    """Return a descriptor of a warm mount namespace; -1 if /run is a tmpfs, so that none is needed, or if
    it could not be made, which only costs time.

    Args:
        criu_binary: the CRIU that will run in it.
    """
    if namespaces.is_tmpfs("/run"):
        return -1
    made: list[int] = []

    def work() -> None:
        try:
            made.append(_make(criu_binary))
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("CRIU's kernel probe cannot be kept, each call will take longer: %s", error)

    # unshare(2) moves one thread; this one ends with its errand and leaves the process where it was.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0] if made else -1


def _make(criu_binary: str) -> int:
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.follow_host()
    namespaces.cover_with_tmpfs("/run")
    subprocess.run([criu_binary, "check"], capture_output=True, timeout=30, check=False)
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def serves(mounts: Sequence[tuple[str, str]]) -> bool:
    """Tell whether a restore that needs these (target, source) mounts can run in the warm namespace."""
    return not any(source == "/run" or source.startswith("/run/") for _, source in mounts)
