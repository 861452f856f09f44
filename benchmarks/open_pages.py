"""Open pages without browsers: their event streams, of one session, read and thrown away by a thread."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlencode

WITHIN = 60.0  # seconds for all of them to have their first event


class OpenPages:
    """As many pages as asked for, each with its stream; a service's page hears its log by it, too.

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
        self._count = count
        for number in range(count):
            stream = socket.create_connection(("127.0.0.1", port), timeout=30)
            asked = urlencode({"on": addresses[number % len(addresses)]})
            head = f"GET /live/?{asked} HTTP/1.1\r\nHost: localhost\r\nCookie: sessionid={session}\r\n\r\n"
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
                if found:
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
