"""Runs the commands of a page of docs as a reader would, and compares what they print with what it shows.

A ``console`` block holds commands after ``$ `` and what they print. Ids, process ids, sizes and times may
differ from the page's; an id or a process id that a page has shown stands for the real one in its later
commands. ``…`` stands for anything, and as a line for any lines. A block after ``<!-- file: PATH -->`` is
that file. An ``sh`` block is typed by another test, named in ``<!-- run by: COMMAND -->`` before it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.stack import CHECKOUT

_BLOCK = re.compile(r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
_ID = r"[0-9a-f]{32}"
_TIME = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?: ?[+-]\d\d:?\d\d|Z)?"
_AMOUNT = r"\d+(?:\.\d+)? ?(?:[KMG]i?B|bytes|ms|s)\b"
_LOOSE = (
    (_ID, f"({_ID})"),
    (_TIME, _TIME),
    (_AMOUNT, _AMOUNT),
    (r"\b\d{4,}\b", r"(\d+)"),
    (r"\d+\.\d+", r"\d+\.\d+"),
    (r"…", r".*"),
    (r" +", r" +"),
)
_ANY_OF_THEM = re.compile("|".join(f"(?P<_{number}>{shown})" for number, (shown, _) in enumerate(_LOOSE)))
_END = "the end of a command of a page"
_NOBODY_S = 64999
"""The user and group number of who types: nobody has it, and no file is his but what he makes."""
# Asks `_Root` to run a command as root; the rest of the line, its redirections above all, stays the typist's.
_SUDO = """import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as root:
    root.connect(os.environ["SUDO_SOCKET"])
    asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(root, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    root.sendall(asked)
    sys.exit(int(root.recv(4) or b"1"))
"""


class Step(NamedTuple):
    """A command, and the lines that it prints."""

    command: str
    shown: list[str]


class Page:
    """A page of docs.

    Attributes:
        run_by: the command of the test that runs a block, and the block's text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, str] = {}
        self.steps: list[Step] = []
        self.run_by: list[tuple[str, str]] = []
        for block in _BLOCK.finditer(path.read_text(encoding="utf-8")):
            note = block["note"] or ""
            if note.startswith("file: "):
                self.files[note.removeprefix("file: ")] = block["text"]
            elif block["kind"] == "sh":
                how, _, command = note.partition(": ")
                assert how == "run by", f"{path.name}: this does not say what runs it: {block[0]}"
                self.run_by.append((command, block["text"]))
            elif block["kind"] == "console":
                self.steps += _steps(block["text"])


def _steps(text: str) -> list[Step]:
    found: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], []))
        elif found and found[-1].command.endswith("\\") and not found[-1].shown:
            found[-1] = Step(f"{found[-1].command}\n{line}", [])
        else:
            found[-1].shown.append(line.rstrip())
    return found


class _Root(threading.Thread):
    """Runs what `sudo` asks for, in files that whoever asks has opened himself.

    Args:
        path: the socket to listen on.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(str(path), family=socket.AF_UNIX)
        path.chmod(0o666)

    def run(self) -> None:
        """Serve everybody, until `close`."""
        while True:
            try:
                asking, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(asking,), daemon=True).start()

    def _serve(self, asking: socket.socket) -> None:
        with asking:
            self._run(asking)

    def _run(self, asking: socket.socket) -> None:
        size, files, _, _ = socket.recv_fds(asking, 4, 3)
        text = asking.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
        words, folder, environment = json.loads(text)
        try:
            stdin, stdout, stderr = files
            done = subprocess.run(
                words, cwd=folder, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, check=False
            )
            code = done.returncode
        except OSError:
            code = 127
        finally:
            for file in files:
                os.close(file)
        asking.sendall(str(code % 256).encode())

    def close(self) -> None:
        """Serve nobody any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Reader:
    """Somebody who types a page's commands into a shell: no root, but may `sudo`.

    Args:
        folder: where he is, and has commands of the node under test.
        environment: of the shell.
        places: what the page writes, and what it is here, such as paths and ports.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], places: Mapping[str, str]) -> None:
        self.places = dict(places)
        commands = folder / "bin"
        commands.mkdir()
        programs = {"mhctl": "mhctl.main", "miehistod": "miehistod.main"}
        for name, module in programs.items():
            program = f"import sys; from {module} import main; sys.exit(main())"
            _script(commands / name, f'PYTHONPATH={CHECKOUT} exec {sys.executable} -c "{program}" "$@"')
        # As `make install` makes it, but for this host's settings.
        manage = f"{sys.executable} {CHECKOUT}/manage.py"
        _script(
            commands / "miehisto-manage",
            f'if [ "$1" = --run ]; then shift; else set -- {manage} "$@"; fi; exec "$@"',
        )
        _script(commands / "sudo", f'exec {sys.executable} -I -S {commands}/sudo.py "$@"')
        (commands / "sudo.py").write_text(_SUDO, encoding="utf-8")
        self._root = _Root(folder / "sudo.socket")
        self._root.start()
        home = folder / "home"
        home.mkdir()
        os.chown(home, _NOBODY_S, _NOBODY_S)
        own = {
            "PATH": f"{commands}:{environment['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "HOME": str(home),
            "SUDO_SOCKET": str(folder / "sudo.socket"),
        }
        user = [f"--reuid={_NOBODY_S}", f"--regid={_NOBODY_S}", "--clear-groups"]
        self._shell = subprocess.Popen(
            ["setpriv", *user, "bash", "--norc", "--noprofile"],
            cwd=home,
            env={**environment, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def leave(self) -> None:
        """End the shell."""
        self._shell.communicate("exit\n", timeout=30)
        self._root.close()

    def here(self, text: str) -> str:
        """Return a text of the page with what it stands for here."""
        known = sorted(self.places, key=len, reverse=True)
        return re.sub(
            "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in known), lambda m: self.places[m[0]], text
        )

    def type(self, command: str) -> tuple[str, int]:
        """Run a command in the shell and return what it printed, and its exit code."""
        assert self._shell.stdin and self._shell.stdout
        # The commands read nothing of what is typed after them.
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '\\n%s %d\\n' '{_END}' $?\n")
        self._shell.stdin.flush()
        printed: list[str] = []
        for line in self._shell.stdout:
            if line.startswith(_END):
                return "".join(printed).rstrip("\n"), int(line.rpartition(" ")[2])
            printed.append(line)
        raise AssertionError(f"the shell has ended: {''.join(printed)}")

    def follow(self, page: Page) -> None:
        """Do all that a page says; what its commands print must be what it shows."""
        for name, text in page.files.items():
            path = Path(self.here(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.here(text), encoding="utf-8")
        for step in page.steps:
            printed, code = self._type_until_it_works(self.here(step.command))
            shown = "\n".join(step.shown).strip("\n")
            told = (
                f"{page.path.name}\n$ {step.command}\nshown:\n{shown}\nprinted:\n{printed}\nexit code: {code}"
            )
            self._compare(shown, printed, told)
            fails = re.search(r"^(mhctl: (?!warning)|curl: |miehistod: |manage\.py: )", shown, re.M)
            assert bool(code) is bool(fails), told

    def _type_until_it_works(self, command: str) -> tuple[str, int]:
        """Do as a remedy says that wants a second's patience; another one is the page's own to show."""
        printed, code = self.type(command)
        deadline = time.monotonic() + 20
        while code and "Ask again in a second" in printed and time.monotonic() < deadline:
            time.sleep(0.2)
            printed, code = self.type(command)
        return printed, code

    def _compare(self, shown: str, printed: str, told: str) -> None:
        names: list[str] = []
        pattern = ""
        for line in self.here(shown).split("\n"):
            if line.strip() == "…":
                pattern += r"(?:.*\n)*"
                continue
            pattern += _pattern(line, names) + r" *\n"
        found = re.fullmatch(pattern, printed + "\n")
        assert found, told
        self.places |= dict(zip(names, found.groups(), strict=True))


def _pattern(line: str, names: list[str]) -> str:
    """Return an expression for a line that is shown; what its groups stand for is added to `names`."""
    done, pattern = 0, ""
    for found in _ANY_OF_THEM.finditer(line):
        loose = _LOOSE[int((found.lastgroup or "_0")[1:])][1]
        if loose.startswith("("):
            names.append(found[0])
        pattern += re.escape(line[done : found.start()]) + loose
        done = found.end()
    return pattern + re.escape(line[done:])


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
