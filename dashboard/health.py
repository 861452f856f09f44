"""Whether the nodes are well, as far as their heartbeats and their images tell. It asks no node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Q, Sum
from django.utils import timezone

from images.models import Image, ImageState
from services.models import Node

SILENT_AFTER = timedelta(seconds=20)  # a heartbeat comes each 5 s
NEARLY_FULL = 90  # percent of the image pool's disk
LEAST_FREE = 2**30 // 10  # bytes; with less `mhctl check` calls a node unfit

LACKS = {
    "sys_resource": "CAP_SYS_RESOURCE: services whose processes have several users cannot be dumped",
    "limits_memory": "a control group for memory: services with a limit of memory are not started",
    "limits_tasks": "a control group for tasks: services with a limit of tasks are not started",
    "run_is_tmpfs": "a tmpfs on /run: CRIU is given one of its own",
}
# What dumps in rounds would need (dirty_tracking) is no lack as long as there are none.

KINDS = ("silent", "criu", "policy", "full", "damaged")  # of trouble, the worst first


@dataclass(frozen=True)
class Trouble:
    """What is not well on a node, and what to do.

    kind: one of KINDS. stops: whether the node cannot do its work because of it.
    says: a sentence without its end; at: the moment that it ends with, if any. remedy: sentences.
    """

    kind: str
    node: Node
    stops: bool
    says: str
    remedy: str
    at: datetime | None = None


@dataclass(frozen=True)
class NodeHealth:
    """A node and what is to be said of it. pool sizes in bytes, None when it has not told."""

    node: Node
    alive: bool
    lacks: list[str]
    images: int
    images_bytes: int
    damaged: int
    pool_free: int | None
    pool_size: int | None

    @property
    def pool_used_percent(self) -> int | None:
        if not self.pool_size or self.pool_free is None:
            return None
        return round(100 * (1 - self.pool_free / self.pool_size))

    @property
    def nearly_full(self) -> bool:
        return (self.pool_used_percent or 0) > NEARLY_FULL

    @property
    def unfit(self) -> bool:
        return any(trouble.stops for trouble in self.troubles)

    @property
    def troubles(self) -> list[Trouble]:
        """What is not well. Of a silent node nothing else is known to be still so."""
        return list(self._troubles()) if self.alive else [self._silence()]

    def _silence(self) -> Trouble:
        heard = self.node.last_seen_at
        return Trouble(
            "silent",
            self.node,
            True,
            f"The worker of {self.node} was {'last' if heard else 'never'} heard",
            "Jobs wait until it is back; services go on without it. See whether miehistod runs there.",
            at=heard,
        )

    def _troubles(self) -> Iterator[Trouble]:
        node = self.node
        if not node.criu_version:
            yield Trouble(
                "criu",
                node,
                True,
                f"{node} has no CRIU, so that nothing is dumped or restored there",
                "Set one up (`make setup`, `miehisto-setup`) and start miehistod anew; see `mhctl check`.",
            )
        policy = (node.capabilities or {}).get("policy") or {}
        if error := policy.get("error"):
            yield Trouble(
                "policy",
                node,
                True,
                f"{node} runs nothing new: {str(error).rstrip('.')}",
                "Mend the policy (docs/policy.md has every rule); `mhctl check` says whether it can be read.",
            )
        if self.nearly_full:
            yield Trouble(
                "full",
                node,
                (self.pool_free or 0) < LEAST_FREE,
                f"The disk of the image pool of {node} is {self.pool_used_percent} % full",
                "A dump that finds no room fails: delete what nobody needs, or enlarge the file system.",
            )
        if self.damaged:
            yield Trouble(
                "damaged",
                node,
                False,
                f"{self.damaged} image{'s are' if self.damaged > 1 else ' is'} damaged on {node},"
                " and cannot be restored",
                "Dump what still runs once more, look at the disk, and delete what is of no use.",
            )


def is_silent(node: Node) -> bool:
    """Tell whether a node's worker has not been heard for so long that something is wrong."""
    return node.last_seen_at is None or timezone.now() - node.last_seen_at >= SILENT_AFTER


def nodes() -> list[NodeHealth]:
    """Return all nodes, by name; two queries."""
    sums: dict[str, Any] = {
        "images": Count("*"),
        "images_bytes": Sum("size_bytes"),
        "damaged": Count("status", filter=Q(status=ImageState.DAMAGED)),
    }
    held: Any = Image.objects.order_by().values("node").annotate(**sums)
    counted = {row.pop("node"): row for row in held}
    found = []
    for node in Node.objects.order_by("name"):
        can = node.capabilities or {}
        found.append(
            NodeHealth(
                node=node,
                alive=not is_silent(node),
                lacks=[text for name, text in LACKS.items() if can.get(name) is False],
                pool_free=can.get("pool_free"),
                pool_size=can.get("pool_size"),
                **counted.get(node.pk, dict.fromkeys(sums, 0)),
            )
        )
    return found
