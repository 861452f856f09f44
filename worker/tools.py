"""What a node works with: its folders, its programs, its patience. Knows nothing of what they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from worker.paths import Paths
from worker.policy import Policy
from worker.warm import Warm


class Tools(NamedTuple):
    """Handed down from whoever runs the engine to each of its parts.

    Attributes:
        paths: the node's folders.
        criu: path of the CRIU binary.
        tini: path of the init program for services.
        step: is told the name of each step before it begins.
        timeout: seconds that CRIU may be silent.
        settle: seconds that a service must live to count as started.
        warm: what spares CRIU its kernel probe.
        policy: reads what root lets services be; anything, where nobody else asks.
        title: what systemd shall call the service that is worked on; "" for its id.
    """

    paths: Paths
    criu: str
    tini: str
    step: Callable[[str], None] = lambda _: None
    timeout: float = 600.0
    settle: float = 0.5
    warm: Warm = Warm()
    policy: Callable[[], Policy] = Policy
    title: str = ""

    def work_folder(self, service_id: str) -> Path:
        """Return the folder for the log and figures of the next call, without those of the last."""
        folder = self.paths.runtime(service_id) / "criu"
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in ("dump.log", "restore.log", "stats-dump", "stats-restore"):
            (folder / name).unlink(missing_ok=True)
        return folder
