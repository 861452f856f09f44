"""Room in the image pool that who is writing an image will need, so that two at once do not take the same.

A claim lies beside the lock of whoever has made it, and counts as long as that is held, by the worker or by a
CRIU that has outlived it; so one that was left by who died counts no more. Knows no rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker import locks
from worker.durable import write_json
from worker.paths import Paths
from worker.preflight import size_of

_NAME = "claim.json"


@contextmanager
def claimed(
    paths: Paths, lock: Path, image_id: str, most: int | None, check: Callable[[int], int]
) -> Iterator[None]:
    """Claim for the block what an image that is written in it may need.

    Args:
        lock: `Paths.job_lock` of the service that is dumped, or `Paths.import_lock` of the image; it is held.
        image_id: what is written.
        most: bytes that all images together may take, by root's policy; None for no such rule.
        check: is given the bytes that others have claimed and not written yet, and returns those that the
            image may need in all.

    Raises:
        JobFailed: from `check`, if there is not so much room.
    """
    if most is None:
        check(0)
        yield
        return
    claim = lock.with_name(_NAME)
    with locks.waited_for(paths.run_dir / "claims.lock"):
        needed = check(_of_others(paths, lock))
        write_json(claim, {"image": image_id, "bytes": needed}, durable=False)
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)


def promised(paths: Paths, lock: Path, most: int | None) -> int:
    """Return the bytes that an image may not have now because others have claimed them.

    Args:
        lock, most: as for `claimed`; it need not be held.
    """
    if most is None:
        return 0
    with locks.waited_for(paths.run_dir / "claims.lock"):
        return _of_others(paths, lock)


def _of_others(paths: Paths, mine: Path) -> int:
    """Return the bytes that others have claimed and not written yet."""
    promised = 0
    for kind in ("services", "imports"):
        for claim in (paths.run_dir / kind).glob(f"*/{_NAME}"):
            lock = claim.with_name(mine.name)
            if lock == mine:
                continue
            with locks.held(lock) as free:
                if free is not None:
                    claim.unlink(missing_ok=True)  # whoever has made it is dead
                    continue
            with suppress(OSError, ValueError, KeyError):  # it has just ended
                known = json.loads(claim.read_bytes())
                promised += max(0, known["bytes"] - _written(paths, known["image"]))
    return promised


def _written(paths: Paths, image_id: str) -> int:
    return sum(
        size_of(folder)
        for folder in (paths.partial_image(image_id), paths.importing(image_id), paths.image(image_id))
    )
