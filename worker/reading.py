"""A thread of the worker that looks into new images, after their jobs have ended, and writes what it saw.

With tasks.py, agent.py and reconcile.py a module of the worker that touches rows.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from django.db import DatabaseError, close_old_connections, connections

from images import contents
from images.models import Image
from worker import forks, inspecting
from worker.image_files import Unreadable
from worker.paths import Paths

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0
_FORGET_EVERY = 30.0


class Reader:
    """Looks into the images of one node, one at a time.

    Args:
        paths: the node's folders.
        node: the node's name.
    """

    def __init__(self, paths: Paths, node: str) -> None:
        self._paths = paths
        self._node = node
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="reader", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; what is being read is given up, and read by the next worker."""
        self._stopping.set()

    def run(self) -> None:
        """Look until told to stop. A database that is away is waited for."""
        forgotten = 0.0
        mine = connections["default"]
        mine.inc_thread_sharing()
        forks.close_before_each(mine.close)
        while not self._stopping.wait(_LOOK_EVERY):
            try:
                with forks.kept_away():
                    close_old_connections()
                while not self._stopping.is_set() and (image := self._next()):
                    self._read(image)
                if time.monotonic() - forgotten >= _FORGET_EVERY:
                    with forks.kept_away():
                        contents.forget_environments()
                    forgotten = time.monotonic()
            except DatabaseError as error:
                log.warning("what images hold cannot be written, and is tried again: %s", error)
            except Exception:
                log.exception("looking into images failed, and goes on")
        mine.close()

    def _next(self) -> Image | None:
        with forks.kept_away():
            return contents.unread(self._node)

    def _read(self, image: Image) -> None:
        found: dict[str, Any] = {}
        why = ""
        try:
            found = inspecting.apart(self._paths.image(image.pk))
        except Unreadable as error:
            why = str(error)
        with forks.kept_away():
            contents.record(image.pk, found, why)
