"""Where CRIU finds its kernel probe done already. Knows nothing of dumps.

CRIU probes the kernel at each call, 30 to 50 ms, unless it may keep the result in /run/criu.kdat, which it
does only on a tmpfs. Where /run is none (containers, mostly) CRIU is run in a mount namespace that has one
there, with the result of a probe that was made once. What the host keeps below /run is hidden in it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Iterable
from typing import NamedTuple

from worker import criu, namespaces

log = logging.getLogger(__name__)


class Warm(NamedTuple):
    """The two things that spare CRIU its probe, as descriptors; -1 where there are none.

    Attributes:
        namespace: a mount namespace to dump in. It shows the host as it was when the namespace was made.
        probe: the result of the probe. A restore needs the host as it is now, so it takes this into a mount
            namespace of its own.
    """

    namespace: int = -1
    probe: int = -1


def prepare(criu_binary: str) -> Warm:
    """Probe the kernel once; not if /run is a tmpfs, so that CRIU does it by itself.

    That it could not be done only costs time.

    Args:
        criu_binary: the CRIU that will be run.
    """
    if namespaces.is_tmpfs("/run"):
        return Warm()
    made: list[Warm] = []

    def work() -> None:
        try:
            made.append(_make(criu_binary))
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("CRIU's kernel probe cannot be kept, each call will take longer: %s", error)

    # unshare(2) moves one thread; this one ends with its errand and leaves the process where it was.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0] if made else Warm()


def _make(criu_binary: str) -> Warm:
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.follow_host()
    namespaces.cover_with_tmpfs("/run")
    subprocess.run([criu_binary, "check"], env=criu.ENVIRONMENT, capture_output=True, timeout=30, check=False)
    probe = os.open(namespaces.KERNEL_PROBE, os.O_RDONLY | os.O_CLOEXEC)
    return Warm(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), probe)


def serves(places: Iterable[str]) -> bool:
    """Tell whether a restore that needs these folders of the host can do with an empty /run."""
    return not any(place == "/run" or place.startswith("/run/") for place in places)
