"""Programs in a row, each reading what the one before it writes. Knows nothing of what they do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from worker import alone, keyring
from worker.errors import JobFailed

_CHECKOUT = Path(__file__).parent.parent
_WITH_KEYRING = (*alone.APART, sys.executable, "-m", keyring.__name__)
_MOST_SAID = 4096
_LAST_BREATH = 5.0
"""Seconds that a program may take to end when nobody reads or writes it any more."""


class Program(NamedTuple):
    """One program of a row.

    Attributes:
        words: its name and arguments.
        package: the Debian package that has it.
        unprivileged: it runs alone and without rights, for it parses what a stranger has made.
        keyring: it does that, too, but with root's keyring for GnuPG, and so as root without capabilities.
        secret: what it finds in a file whose name is put after its words; empty for no such file.
    """

    words: Sequence[str]
    package: str
    unprivileged: bool = False
    keyring: bool = False
    secret: bytes = b""


class Row:
    """Programs that run.

    Attributes:
        end: the pipe into the first program, or out of the last.
    """

    def __init__(self, programs: Sequence[Program], *, stdin: Any, stdout: Any) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `finish`
        self._running: list[tuple[Program, subprocess.Popen[bytes]]] = []
        feed = stdin
        try:
            for number, program in enumerate(programs):
                last = number == len(programs) - 1
                made = self._launch(program, feed, stdout if last else subprocess.PIPE)
                if number and feed is not None:
                    feed.close()  # it is the next program's now; its end is seen by nobody else
                self._running.append((program, made))
                feed = made.stdout
        except BaseException:
            self.kill()
            raise
        first, last_made = self._running[0][1], self._running[-1][1]
        end = first.stdin if stdin == subprocess.PIPE else last_made.stdout
        assert end is not None
        self.end: IO[bytes] = end

    def _launch(self, program: Program, stdin: Any, stdout: Any) -> subprocess.Popen[bytes]:
        before = _WITH_KEYRING if program.keyring else alone.WITHOUT_RIGHTS if program.unprivileged else ()
        words = [*before, *program.words]
        # None of ours, but where GnuPG has its keys.
        kept = ("HOME", "GNUPGHOME") if program.keyring else ()
        environment = alone.ENVIRONMENT | {name: os.environ[name] for name in kept if name in os.environ}
        if shutil.which(program.words[0], path=environment["PATH"]) is None:
            raise JobFailed(
                "program_missing",
                f"The program {program.words[0]} is not on this node.",
                f"Install it (apt-get install {program.package}).",
            )
        with ExitStack() as held:
            handed: tuple[int, ...] = ()
            if program.secret:
                memory = held.enter_context(os.fdopen(os.memfd_create("secret"), "wb"))
                memory.write(program.secret)
                memory.flush()
                handed = (memory.fileno(),)
                words.append(f"/proc/self/fd/{memory.fileno()}")
            return subprocess.Popen(
                words,
                stdin=stdin,
                stdout=stdout,
                stderr=self._said,
                cwd=_CHECKOUT if program.keyring else "/",
                env=environment,
                pass_fds=handed,
                start_new_session=True,  # without a terminal nobody is asked for a passphrase
            )

    def finish(self) -> list[str]:
        """Close the pipe and wait for the programs; return what those said that failed, [] if none did."""
        _close(self.end)
        failed = [program for program, made in self._running if made.wait() != 0]
        lines = self.said() if failed else []
        self._said.close()
        return lines or [f"{program.words[0]}: it failed without a word" for program in failed]

    def kill(self) -> list[str]:
        """End the programs, whatever they do; return what they had said."""
        for _, made in self._running:
            for pipe in (made.stdin, made.stdout):
                if pipe is not None:
                    _close(pipe)
        for _, made in self._running:
            try:
                made.wait(_LAST_BREATH)
            except subprocess.TimeoutExpired:
                made.kill()
                made.wait()
        lines = self.said()
        self._said.close()
        return lines

    def said(self) -> list[str]:
        """Return what the programs wrote to their standard error, line by line."""
        if self._said.closed:
            return []
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _MOST_SAID))
        return self._said.read(_MOST_SAID).decode(errors="replace").splitlines()


def _close(pipe: IO[bytes]) -> None:
    with suppress(BrokenPipeError):  # whoever read has ended, and has said why
        pipe.close()


@contextmanager
def into(file: int, programs: Sequence[Program]) -> Iterator[Row]:
    """Run programs whose last writes to the descriptor `file`, for the block, which writes to `end`.

    The block calls `finish` when it has written all; if it fails before, the programs are ended.
    """
    row = Row(programs, stdin=subprocess.PIPE, stdout=file)
    try:
        yield row
    except BaseException:
        row.kill()
        raise


@contextmanager
def out_of(file: int, programs: Sequence[Program]) -> Iterator[Row]:
    """Run programs whose first reads the descriptor `file`, for the block, which reads from `end`."""
    row = Row(programs, stdin=file, stdout=subprocess.PIPE)
    try:
        yield row
    except BaseException:
        row.kill()
        raise
