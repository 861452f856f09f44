"""Looks into new images after their jobs have ended, and writes what it saw. It knows no format of CRIU's."""

from __future__ import annotations

import time
from typing import Any

from images import contents
from worker import inspecting
from worker.background import Background
from worker.image_files import Unreadable
from worker.paths import Paths
from worker.users import name_users

_FORGET_EVERY = 30.0


class Reader(Background):
    """Looks into the images of one node, one at a time.

    Args:
        paths: the node's folders.
        node: the node's name.
    """

    name = "reader"

    def __init__(self, paths: Paths, node: str) -> None:
        super().__init__()
        self._paths = paths
        self._node = node
        self._forgotten = 0.0

    def turn(self) -> None:
        """Look into every image that nobody has looked into; what is being read at the end is read anew."""
        while not self.stopping.is_set():
            with self.database():
                image = contents.unread(self._node)
            if image is None:
                break
            found: dict[str, Any] = {}
            error = ""
            try:
                found = inspecting.apart(self._paths.image(image.pk))
                # Here, and not by who reads the image: he is nobody, and may ask no directory of users.
                name_users(found.get("processes"))
            except Unreadable as unreadable:
                error = str(unreadable)
            with self.database():
                contents.record(image.pk, found, error)
        if time.monotonic() - self._forgotten >= _FORGET_EVERY:
            with self.database():
                contents.forget_environments()
            self._forgotten = time.monotonic()
