"""A node whose clock is the test's to set, and a page of it that somebody has open. Knows no fault."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from tests.faults.lab import Lab
from tests.stack import Stack, eventually

_CLOCK = Path(__file__).parents[1] / "programs/set_clock.c"
_MAKE_VISITOR = """
from datetime import timedelta
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone
from services.authentication import issue
user, browser = User.objects.create_user("visitor"), Client()
user.groups.add(Group.objects.get(name="viewer"))
browser.force_login(user)
print("visitor", issue(user, "", timezone.now() + timedelta(days=1)), browser.cookies["sessionid"].value)
"""


class Clocked(Lab):
    """A node, and an mhctl, whose wall clock can be set back; services have the host's, and so have files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._hours = 0
        self._clock = folder / "clock"
        self._tell()
        library = folder / "clock.so"
        subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, _CLOCK], check=True)
        self.environment |= {"LD_PRELOAD": str(library), "TEST_CLOCK": str(self._clock)}

    def set_back(self) -> None:
        """Set the clock back by an hour, once more, for all at the same moment."""
        self._hours += 1
        self._tell()

    def _tell(self) -> None:
        file = os.open(self._clock, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(file, struct.pack("=q", 3600 * self._hours), 0)  # in place, for it is mapped
        os.close(file)

    def now(self) -> datetime:
        """Return what the node believes it is."""
        return datetime.now(UTC) - timedelta(hours=self._hours)


class Visitor(NamedTuple):
    """Somebody who has a token for a day, and has logged in."""

    token: str
    session: str

    @classmethod
    def of(cls, node: Stack) -> Visitor:
        """Make him, who may see all of a node's."""
        said = node.manage("shell", "-c", _MAKE_VISITOR).out.splitlines()
        ((_, token, session),) = [line.split() for line in said if line.startswith("visitor ")]
        return cls(token, session)


class Window:
    """A page that is open in a browser: what it is told of changes."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer
        self._told = b""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while line := self._answer.readline():
            self._told += line

    def shows(self, word: str, within: float) -> bool:
        """Tell whether it is told of something with this word in it, within so many seconds."""
        return eventually(lambda: word.encode() in self._told, within)

    @classmethod
    @contextmanager
    def of(cls, node: Stack, visitor: Visitor, page: str) -> Iterator[Window]:
        """Keep a page open for the block."""
        connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
        connection.request("GET", f"/live/?on={page}", headers={"Cookie": f"sessionid={visitor.session}"})
        line: socket.socket = connection.sock
        answer = connection.getresponse()
        window = cls(answer)
        try:
            yield window
        finally:
            line.shutdown(socket.SHUT_RDWR)
            window._thread.join()
            answer.close()
            connection.close()
