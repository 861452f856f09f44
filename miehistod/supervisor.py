"""Keeps processes running: restart with back-off, giving up, an orderly end; knows no part by name.

Only a part's own process is signalled, never its group: a worker's children may be supervisors of services,
in sessions of their own, and those go on. What a dead part leaves behind in its own session is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LONGEST_LINE = 8192
KEPT_LINES = 12


@dataclass(frozen=True)
class PartSpec:
    """A process to keep running.

    Attributes:
        stop_last: it is told to end only when the others have ended, for they need it until then.
    """

    name: str
    argv: list[str]
    env: dict[str, str] | None = None
    pass_fds: tuple[int, ...] = ()
    stop_last: bool = False


@dataclass(frozen=True)
class Timing:
    """All in seconds; tests shrink them.

    Attributes:
        first_pause, longest_pause: before a dead part is started again; each death in a row doubles it.
        calm: after living so long a part's next death counts as the first again.
        deaths, window: so many deaths within so long are too many.
        term: how long parts may take to end by themselves; last: what the stop_last ones get after that.
    """

    first_pause: float = 0.5
    longest_pause: float = 10.0
    calm: float = 60.0
    deaths: int = 5
    window: float = 60.0
    term: float = 6.0
    last: float = 1.0


class GaveUp(Exception):
    """A part died too often; the text names it and how it died.

    Args:
        said: its last lines of output.
    """

    def __init__(self, message: str, said: list[str]) -> None:
        super().__init__(message)
        self.said = said


@dataclass
class Part:
    """A part as it is now."""

    spec: PartSpec
    process: subprocess.Popen[bytes] | None = None
    said: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    deaths: deque[float] = field(default_factory=deque)
    starts: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running process, None between two."""
        return self.process.pid if self.process is not None else None


class Supervisor:
    """Starts parts and keeps them running until told to stop.

    Args:
        say: takes each line of output, the part's name already before it.
    """

    def __init__(self, say: Callable[[str], None], timing: Timing | None = None) -> None:
        self.say = say
        self.timing = timing or Timing()
        self.parts: dict[str, Part] = {}
        self._stopping = asyncio.Event()
        self._gave_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, spec: PartSpec) -> Part:
        """Starts a part and returns at once."""
        part = Part(spec)
        self.parts[spec.name] = part
        part.task = asyncio.create_task(self._keep(part))
        part.task.add_done_callback(self._tell_fault)
        return part

    async def wait(self) -> None:
        """Waits for ever, or until a part has died too often.

        Raises:
            GaveUp: one has. Anything else: a fault of ours, by which a part is kept running no more.
        """
        await asyncio.shield(self._gave_up)

    async def stop(self) -> None:
        """Ends all parts: SIGTERM, then SIGKILL for the slow ones. Returns when all have ended."""
        self._stopping.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timing.term
        first = [part for part in self.parts.values() if not part.spec.stop_last]
        last = [part for part in self.parts.values() if part.spec.stop_last]
        await self._end(first, deadline)
        await self._end(last, loop.time() + self.timing.last)

    async def _end(self, parts: list[Part], deadline: float) -> None:
        tasks = [part.task for part in parts if part.task is not None]
        if not tasks:
            return
        self._signal(parts, signal.SIGTERM)
        _, living = await asyncio.wait(tasks, timeout=max(deadline - asyncio.get_running_loop().time(), 0.0))
        if living:
            slow = [part for part in parts if part.task in living]
            self.say(f"miehistod | ending by force: {', '.join(part.spec.name for part in slow)}")
            self._signal(slow, signal.SIGKILL)
            await asyncio.wait(living)

    def _signal(self, parts: list[Part], number: signal.Signals) -> None:
        for part in parts:
            if part.process is not None:
                part.process.send_signal(number)  # never to a PID that was reaped: Popen looks first

    async def _keep(self, part: Part) -> None:
        timing = self.timing
        pause = timing.first_pause
        while not self._stopping.is_set():
            began = time.monotonic()
            how = await self._run_once(part)
            if self._stopping.is_set():
                return
            now = time.monotonic()
            part.deaths.append(now)
            while part.deaths and now - part.deaths[0] > timing.window:
                part.deaths.popleft()
            if len(part.deaths) >= timing.deaths:
                self._give_up(part, how)
                return
            if now - began >= timing.calm:
                pause = timing.first_pause
            self.say(f"miehistod | {part.spec.name} {how}; starting it again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(pause * 2, timing.longest_pause)

    def _give_up(self, part: Part, how: str) -> None:
        if self._gave_up.done():
            return
        often = f"{len(part.deaths)} times within {self.timing.window:g} s"
        text = f"{part.spec.name} died {often}, the last time it {how}"
        self._gave_up.set_exception(GaveUp(text, list(part.said)))

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        if not (task.cancelled() or self._gave_up.done()) and (fault := task.exception()):
            self._gave_up.set_exception(fault)

    async def _run_once(self, part: Part) -> str:
        """Runs the part's process to its end. Returns how it ended, "was killed by SIGKILL"."""
        reader, writer = os.pipe()
        try:
            part.process = subprocess.Popen(
                part.spec.argv,
                env=part.spec.env,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                pass_fds=part.spec.pass_fds,
                start_new_session=True,  # so that a terminal's Ctrl-C reaches miehistod alone
            )
        except OSError as error:
            os.close(reader)
            return f"cannot be started: {error}"
        finally:
            os.close(writer)
        part.starts += 1
        output = Output(reader, lambda line: self._hear(part, line))
        try:
            await _ended(part.process.pid)
        finally:
            status = part.process.wait()
            end_session(part.process.pid)
            output.close()
            part.process = None
        return (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        )

    def _hear(self, part: Part, line: str) -> None:
        part.said.append(line)
        self.say(f"{part.spec.name:<9} | {line}")


class Output:
    """Reads a process's output as it comes and cuts it into lines."""

    def __init__(self, fd: int, hear: Callable[[str], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._hear = hear
        self._rest = b""
        self._open = True
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._detach()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._hear(_visible(line))
        return True

    def _detach(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._fd)

    def close(self) -> None:
        """Takes what has been written so far; a descendant that still holds the pipe is not waited for."""
        while self._read():
            pass
        self._detach()
        os.close(self._fd)
        if self._rest:
            self._hear(_visible(self._rest))


def _visible(line: bytes) -> str:
    """Returns a line with its control characters spelled out: no stranger's words may steer a terminal."""
    text = line.decode("utf-8", "backslashreplace").rstrip("\r")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


async def _ended(pid: int) -> None:
    """Waits for the end of a child that nobody has reaped yet."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    fd = os.pidfd_open(pid)
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def end_session(leader: int) -> None:
    """Kills what a dead part left in its session; services and CRIU have sessions of their own."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The fields after the command's name, which may hold anything but is in brackets: proc(5).
            session = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[3])
            if session == leader:
                os.kill(int(entry.name), signal.SIGKILL)
