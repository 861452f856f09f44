"""A service made of what CRIU must bring back: threads, a child process, pipes, an open file that was
deleted, file locks, a signal handler.

Started as `many_parts.py PORT FOLDER` it answers two requests, of a line each: `state`, and `grow`, which
goes through all the parts, each of which keeps a count of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import signal
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any


class Child:
    """A child process that counts what it is told by one pipe, and tells the count by another."""

    def __init__(self) -> None:
        hear, self._say = os.pipe()
        self._hear, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._say)
            os.close(self._hear)
            count = 0
            while told := os.read(hear, 1):
                count += told == b"+"
                os.write(say, b"%d\n" % count)
            os._exit(0)
        os.close(hear)
        os.close(say)

    def ask(self, word: bytes) -> int:
        os.write(self._say, word)
        return int(os.read(self._hear, 32))


class Counter(threading.Thread):
    """A thread that counts what it finds in a queue."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.todo: queue.Queue[int] = queue.Queue()

    def run(self) -> None:
        while True:
            self.count += self.todo.get()
            self.todo.task_done()


class Parts:
    """All of them."""

    def __init__(self, folder: Path) -> None:
        self.child = Child()  # before the threads: a fork copies only the one that calls it
        self.threads = [Counter() for _ in range(3)]
        for thread in self.threads:
            thread.start()
        deleted = folder / "deleted"
        self.deleted = deleted.open("w+")
        deleted.unlink()
        self.locked = [(folder / name).open("w") for name in ("posix-lock", "flock")]
        fcntl.lockf(self.locked[0], fcntl.LOCK_EX)
        fcntl.flock(self.locked[1], fcntl.LOCK_EX)
        self.signals = 0
        self.signalled = threading.Event()
        signal.signal(signal.SIGUSR1, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.signals += 1
        self.signalled.set()

    def grow(self) -> None:
        self.child.ask(b"+")
        for thread in self.threads:
            thread.todo.put(1)
            thread.todo.join()
        self.deleted.seek(0, os.SEEK_END)
        self.deleted.write("*")
        self.deleted.flush()
        self.signalled.clear()
        os.kill(os.getpid(), signal.SIGUSR1)
        self.signalled.wait()

    def state(self) -> dict[str, Any]:
        self.deleted.seek(0)
        return {
            "child": self.child.ask(b"?"),
            "threads": [thread.count for thread in self.threads],
            "deleted file": self.deleted.read(),
            "signals": self.signals,
            "processes": [os.getpid(), self.child.pid],
        }


class Handler(socketserver.StreamRequestHandler):
    """One client."""

    def handle(self) -> None:
        for line in self.rfile:
            if line.strip() == b"grow":
                parts.grow()
            self.wfile.write(json.dumps(parts.state()).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


if __name__ == "__main__":
    parts = Parts(Path(sys.argv[2]))
    with Server(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        server.serve_forever()
