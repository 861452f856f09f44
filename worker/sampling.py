"""Writes how much each running service of the node uses, every ten seconds. It measures nothing."""

from __future__ import annotations

from services import loads
from worker import process
from worker.background import Background
from worker.loads import Meter


class Sampler(Background):
    """Samples the services of one node.

    Args:
        node: the node's name.
    """

    name = "sampler"
    every = loads.EVERY

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node
        self._meter = Meter()

    def turn(self) -> None:
        """Measure all services once, and write it."""
        with self.database():
            running = loads.running(self._node)
        roots = {key: _root(pid, supervisor) for key, (pid, supervisor) in running.items()}
        measured = self._meter.measure(roots)
        with self.database():
            loads.record(self._node, {key: load._asdict() for key, load in measured.items()})


def _root(pid: int, supervisor: int | None) -> int:
    """Return the first process of a service's namespace: its supervisor's child, or what is known of it."""
    children = process.children(supervisor) if supervisor else []
    return children[0] if children else pid
