"""Programs in a row, each reading what the one before it writes. Knows nothing of what they do."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple

from worker.errors import JobFailed
from worker.runmh.launch import DEFAULT_PATH

_MOST_SAID = 4096
_LAST_BREATH = 5.0
"""Seconds that a program may take to end when nobody reads or writes it any more."""


class Program(NamedTuple):
    """One program of a row.

    Attributes:
        words: its name and arguments.
        package: the Debian package that has it.
        unprivileged: it runs as nobody, for it parses what a stranger has made and needs no file.
    """

    words: Sequence[str]
    package: str
    unprivileged: bool = False


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
        nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
        # None of ours: who runs as nobody could read the site's secrets in it.
        ours = {name: os.environ[name] for name in ("HOME", "GNUPGHOME") if name in os.environ}
        try:
            return subprocess.Popen(
                list(program.words),
                stdin=stdin,
                stdout=stdout,
                stderr=self._said,
                cwd="/",
                env={"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", **ours},
                start_new_session=True,  # without a terminal nobody is asked for a passphrase
                **(nobody if program.unprivileged else {}),
            )
        except FileNotFoundError:
            raise JobFailed(
                "program_missing",
                f"The program {program.words[0]} is not on this node.",
                f"Install it (apt-get install {program.package}).",
            ) from None

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
