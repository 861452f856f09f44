"""Open pages without browsers: their event streams, of one session, read and thrown away by a thread."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlencode

WITHIN = 60.0  # seconds for all of them to have their first event


def streams_of(address: str) -> list[str]:
    """Return what a browser listens to on a page: its live parts, and on a service's page the log."""
    found = [f"/live/?{urlencode({'on': address})}"]
    if re.fullmatch(r"/services/[0-9a-f]{32}/", address):
        found.append(f"{address}log/")
    return found


class OpenPages:
    """As many pages as asked for, each with its streams.

    Args:
        addresses: the pages that are looked at, in turn. session: the value of the cookie.
    """

    def __init__(self, port: int, session: str, addresses: Sequence[str], count: int) -> None:
        self.events = 0
        self.lost = 0
        self._begun: set[int] = set()
        self._ready = threading.Event()
        self._ending = False
        self._streams = selectors.DefaultSelector()
        pages = [addresses[number % len(addresses)] for number in range(count)]
        wanted = [stream for address in pages for stream in streams_of(address)]
        self._count = len(wanted)
        for asked in wanted:
            stream = socket.create_connection(("127.0.0.1", port), timeout=30)
            head = f"GET {asked} HTTP/1.1\r\nHost: localhost\r\nCookie: sessionid={session}\r\n\r\n"
            stream.sendall(head.encode())
            stream.setblocking(False)
            self._streams.register(stream, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ending:
            for key, _ in self._streams.select(0.1):
                stream = key.fileobj
                assert isinstance(stream, socket.socket)
                text = stream.recv(1 << 18)
                if not text:
                    self.lost += 1
                    self._streams.unregister(stream)
                    stream.close()
                found = text.count(b"event: parts")
                self.events += found
                if found or b"event: tail" in text:
                    self._begun.add(key.fd)
            if len(self._begun) + self.lost >= self._count:
                self._ready.set()

    def wait(self) -> None:
        """Wait until each page has been told what it shows.

        Raises:
            RuntimeError: one has ended, or some wait in vain.
        """
        if not self._ready.wait(WITHIN) or self.lost:
            raise RuntimeError(f"{self.lost} of {self._count} streams ended, {len(self._begun)} began")

    def close(self) -> None:
        """Close them all."""
        self._ending = True
        self._thread.join()
        for key in list(self._streams.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._streams.close()


@contextlib.contextmanager
def opened(port: int, session: str, addresses: Sequence[str], count: int) -> Iterator[OpenPages]:
    """Open pages for the block; it begins when each of them shows what it should."""
    pages = OpenPages(port, session, addresses, count)
    try:
        pages.wait()
        time.sleep(0.5)  # the site, too, has done with opening them
        yield pages
    finally:
        pages.close()
