"""A service whose memory is followed from outside, whatever happens to it: is it what it must be?"""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Sequence
from typing import Any

from tests.faults.campaign import Broken
from tests.refusals import PROGRAM
from tests.stack import Reply, Stack, eventually, free_port
from worker import cgroups

Memory = tuple[str, int]
"""A word that the process chose when it was started, and how often it has answered since."""

WITHIN = 120.0
ANSWERS_WITHIN = 15.0


class Line:
    """A client's connection that stays, and the word of the process that it was made with."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWERS_WITHIN)
        self._answers = self._socket.makefile("rb")
        self.word, _ = self.answer()

    def answer(self) -> Memory:
        """Return the next answer.

        Raises:
            OSError: the connection has ended, or nothing comes.
        """
        word, _, count = self._answers.readline().decode().strip().partition(" ")
        if not count:
            raise ConnectionResetError("it hung up")
        return word, int(count)

    def ask(self) -> Memory:
        """Ask, and return the answer; raises as `answer` does."""
        self._socket.sendall(b"\n")
        return self.answer()

    def has_ended(self) -> bool:
        """Tell whether the client has been told by now that nobody is there."""
        self._socket.settimeout(0)
        try:
            return self._socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._socket.settimeout(ANSWERS_WITHIN)

    def close(self) -> None:
        """Hang up."""
        self._answers.close()
        self._socket.close()


class Kept:
    """One service (programs/witness.py) and what its memory must hold; every other one has limits.

    Args:
        mebibytes: so much memory it holds.
        user: whom it runs as; what is root's only admins may start.
        line: a client is connected to it all the time.
        wishes: further arguments of the program.
        carry: its images carry this data of its.
    """

    made = itertools.count()

    def __init__(
        self,
        node: Stack,
        mebibytes: int = 1,
        user: str = "root",
        *,
        line: bool = False,
        wishes: Sequence[str] = (),
        carry: Sequence[str] = (),
    ) -> None:
        self.node = node
        self.port = free_port()
        self.mebibytes = mebibytes
        self.memory: Memory | None = None
        self.images: dict[str, Memory] = {}
        self.line_port = free_port() if line else 0
        self.line: Line | None = None
        self.went_on = 0  # so often that connection was found to
        words = [sys.executable, "-S", str(PROGRAM), str(self.port), f"memory={mebibytes}"]
        words += [f"line={self.line_port}"] if line else []
        words += wishes
        limits = {"memory": mebibytes + 192 << 20, "tasks": 64} if next(self.made) % 2 else {}
        able = {name: number for name, number in limits.items() if name not in cgroups.missing(limits)}
        asked = {"args": words, "user": user, "carry": list(carry), "limits": able}
        job = self.do("POST", "services", asked)
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
        if verb in {"dump", "copy", "stop"}:
            self._connect()
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
        if now == state != "running":
            return
        if now == "dumped":
            self.resume(str(self.row()["image"]))
        elif now != "running":
            self.memory = None
            self.do("POST", f"services/{self.id}/start")
            self.must_answer()
        self._connect()
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
            word, _, count = connection.makefile().read().strip().partition(" ")
        if not count.isdigit():
            raise ConnectionResetError("it hung up")
        return word, int(count)

    def must_answer(self) -> None:
        """Fail unless it answers, from the very memory that it must have by now."""
        try:
            found = eventually(self.answer, ANSWERS_WITHIN)
        except OSError as error:
            raise Broken(f"service {self.id[:8]} is LOST: it runs, yet does not answer: {error}") from None
        if self.memory is not None and found != (self.memory[0], self.memory[1] + 1):
            before = self.memory
            self.memory = found
            raise Broken(f"its memory is LOST: it answered {found} after {before}")
        self.memory = found

    def line_must_hold(self, *, awaited: bool) -> None:
        """Fail unless the client that was connected still is; or was told, if the process has ended for good.

        Args:
            awaited: the service is an image that waits for its clients.
        """
        if self.line is None:
            return
        name, line = f"service {self.id[:8]}: the connection of a client", self.line
        if self.memory and self.row()["status"] == "running" and self.memory[0] == line.word:
            try:
                found = line.ask()
            except OSError as error:
                self.hang_up()
                raise Broken(f"{name} is LOST, though its process goes on: {error}") from None
            if found != (line.word, self.memory[1] + 1):
                raise Broken(f"{name} has answered {found} after {self.memory}")
            self.memory = found
            self.went_on += 1
        elif awaited:
            if line.has_ended():
                self.hang_up()
                raise Broken(f"{name} has ended, though an image waits for it")
        else:
            try:
                found = line.ask()
            except TimeoutError:
                raise Broken(f"{name} is silent: nobody tells it that its service has ended") from None
            except OSError:
                return
            finally:
                self.hang_up()
            raise Broken(f"{name} has answered {found}, though its process has ended")

    def _connect(self) -> None:
        """Be the client of a running service, if it shall have one."""
        if self.line_port and self.line is None:
            self.line = Line(self.line_port)
            assert self.memory
            self.memory = self.line.word, self.memory[1] + 1

    def hang_up(self) -> None:
        """Be its client no longer."""
        if self.line is not None:
            self.line.close()
            self.line = None

    def forget_images(self, *, but: str | None = None) -> None:
        """Delete its images, but for one."""
        for image in self.node.api("GET", "images").body:
            if image["service"] == self.id and image["object_id"] != but:
                self.do("DELETE", f"images/{image['object_id']}?force=1")
                self.images.pop(image["object_id"], None)

    def delete(self) -> None:
        """Delete it with all its images."""
        self.hang_up()
        self.do("DELETE", f"services/{self.id}?stop=1")
        self.forget_images()
