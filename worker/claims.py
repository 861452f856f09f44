"""Room in the image pool that dumps under way will need, so that two at once do not take the same. No rows.

A claim counts as long as its service's job lock is held, by the worker or by a CRIU that has outlived it; so
one that was left by who died counts no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from worker import locks
from worker.durable import write_json
from worker.paths import Paths
from worker.preflight import check_room, size_of

_NAME = "claim.json"


@contextmanager
def claimed(
    paths: Paths, service_id: str, image_id: str, init: int, most: int | None, data: int
) -> Iterator[None]:
    """Claim for the block what the dump of a service may need; its job lock is held by who calls this.

    Args:
        image_id: what the dump is written to.
        init, most, data: as for `check_room`.

    Raises:
        JobFailed: there is not so much room, less what others have claimed and not written yet.
    """
    if most is None:
        check_room(paths.images, init, most, data)
        yield
        return
    claim = paths.runtime(service_id) / _NAME
    with locks.waited_for(paths.run_dir / "claims.lock"):
        needed = check_room(paths.images, init, most, data, claimed=_of_others(paths, service_id))
        write_json(claim, {"image": image_id, "bytes": needed}, durable=False)
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)


def _of_others(paths: Paths, service_id: str) -> int:
    """Return the bytes that other dumps under way have claimed and not written yet."""
    promised = 0
    for claim in (paths.run_dir / "services").glob(f"*/{_NAME}"):
        other = claim.parent.name
        if other == service_id:
            continue
        with locks.held(paths.job_lock(other)) as lock:
            if lock is not None:
                continue  # whoever has made it is dead
        with suppress(OSError, ValueError, KeyError):  # it has just ended
            known = json.loads(claim.read_bytes())
            image = known["image"]
            written = size_of(paths.partial_image(image)) + size_of(paths.image(image))
            promised += max(0, known["bytes"] - written)
    return promised
