"""A service whose memory is followed from outside, whatever happens to it: is it what it must be?"""

from __future__ import annotations

import socket
import sys
from typing import Any

from tests.faults.campaign import Broken
from tests.refusals import PROGRAM
from tests.stack import Reply, Stack, eventually, free_port

Memory = tuple[str, int]
"""A word that the process chose when it was started, and how often it has answered since."""

WITHIN = 120.0


class Kept:
    """One service (programs/witness.py) and what its memory must hold.

    Args:
        mebibytes: so much memory it holds.
        user: whom it runs as; what is root's only admins may start.
    """

    def __init__(self, node: Stack, mebibytes: int = 1, user: str = "root") -> None:
        self.node = node
        self.port = free_port()
        self.mebibytes = mebibytes
        self.memory: Memory | None = None
        self.images: dict[str, Memory] = {}
        words = [sys.executable, "-S", str(PROGRAM), str(self.port), f"memory={mebibytes}"]
        job = self.do("POST", "services", {"args": words, "user": user})
        self.id: str = job["service"]
        self.must_answer()

    # --- what is asked of it --------------------------------------------------------------------

    def do(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Ask for a job, wait for its end, and return it; it must succeed."""
        job = self.ask(method, path, body)
        return self.wait(job["object_id"])

    def wait(self, job_id: str) -> dict[str, Any]:
        """Wait for a job, which must succeed."""
        reply = self.node.api("GET", f"jobs/{job_id}?wait={WITHIN:g}")
        if reply.body.get("status") != "succeeded":
            raise Broken(f"the job {reply.body.get('kind')} did not succeed: {reply.body.get('error')}")
        job: dict[str, Any] = reply.body
        return job

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Ask for a job and return it as it is queued."""
        reply: Reply = self.node.api(method, path, body)
        if reply.status not in {200, 202}:
            raise Broken(f"{method} {path} was refused: {reply.body}")
        job: dict[str, Any] = reply.body
        return job

    def begin(self, verb: str) -> dict[str, Any]:
        """Ask for dump, copy (a dump that leaves it running), restore, start or stop, and return the job."""
        match verb:
            case "dump" | "copy":
                job = self.ask("POST", f"services/{self.id}/dump", {"leave_running": verb == "copy"})
                assert self.memory
                self.images[job["image"]] = self.memory
            case "restore":
                job = self.ask("POST", f"images/{self.row()['image']}/restore")
            case _:
                job = self.ask("POST", f"services/{self.id}/{verb}")
        return job

    def bring_to(self, state: str) -> None:
        """Bring it into a state that can be worked from: running, dumped or stopped."""
        now = self.row()["status"]
        if now == state:
            return
        if now == "dumped":
            self.resume(str(self.row()["image"]))
        elif now != "running":
            self.memory = None
            self.do("POST", f"services/{self.id}/start")
            self.must_answer()
        if state == "dumped":
            self.wait(self.begin("dump")["object_id"])
        elif state == "stopped":
            self.do("POST", f"services/{self.id}/stop")

    def resume(self, image: str) -> None:
        """Restore it from an image: its memory must be what it was when that was made."""
        self.do("POST", f"images/{image}/restore")
        self.memory = self.images[image]
        self.must_answer()

    # --- what is seen of it ---------------------------------------------------------------------

    def row(self) -> dict[str, Any]:
        """Return the service as the API shows it."""
        reply = self.node.api("GET", f"services/{self.id}")
        if reply.status != 200:
            raise Broken(f"its row is LOST: {reply}")
        row: dict[str, Any] = reply.body
        return row

    def answer(self) -> Memory:
        """Ask the service itself.

        Raises:
            OSError: nobody answers.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            word, _, count = connection.makefile().read().partition(" ")
        if not count.isdigit():
            raise ConnectionResetError("it hung up")
        return word, int(count)

    def must_answer(self) -> None:
        """Fail unless it answers, from the very memory that it must have by now."""
        try:
            found = eventually(self.answer, 15)
        except OSError as error:
            raise Broken(f"service {self.id[:8]} is LOST: it runs, yet does not answer: {error}") from None
        if self.memory is not None and found != (self.memory[0], self.memory[1] + 1):
            before = self.memory
            self.memory = found
            raise Broken(f"its memory is LOST: it answered {found} after {before}")
        self.memory = found

    def forget_images(self, *, but: str | None = None) -> None:
        """Delete its images, but for one."""
        for image in self.node.api("GET", "images").body:
            if image["service"] == self.id and image["object_id"] != but:
                self.do("DELETE", f"images/{image['object_id']}?force=1")
                self.images.pop(image["object_id"], None)

    def delete(self) -> None:
        """Delete it with all its images."""
        self.do("DELETE", f"services/{self.id}?stop=1")
        self.forget_images()
