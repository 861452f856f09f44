"""Where a service asks systemd for a scope, and what comes of it where none answers as it should.

tests/deb/test_systemd.py has the scopes of a systemd that runs.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker import units
from worker.runmh import scope

STARTED = {"SYSTEMD_EXEC_PID": "7"}


@pytest.mark.parametrize(
    ("groups", "environ", "unit"),
    [
        ("0::/system.slice/miehisto-worker.service", STARTED, "miehisto-worker.service"),
        ("4:memory:/x.service\n1:name=systemd:/system.slice/own.service\n0::/", STARTED, "own.service"),
        ("0::/system.slice/miehisto-worker.service", {}, ""),  # a shell of somebody's there
        ("0::/user.slice/user-0.slice/session-3.scope", STARTED, ""),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/own.service", STARTED, ""),
        ("0::/docker/7f3a", STARTED, ""),
        ("4:memory:/system.slice/own.service\n0::/", STARTED, ""),
        ("", STARTED, ""),
    ],
)
def test_only_a_unit_of_the_systems_own_systemd_has_scopes(
    groups: str, environ: dict[str, str], unit: str
) -> None:
    assert units.unit_of(groups, environ) == unit


@contextmanager
def answering(folder: Path, answers: list[bytes], stays: float = 0.0) -> Iterator[Path]:
    """Listen as systemd does, and answer whatever comes with these words."""
    path = folder / "private"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                for answer in answers:
                    line.recv(65536)
                    line.sendall(answer)
                time.sleep(stays)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


WELCOME = b"OK 0123456789abcdef0123456789abcdef\r\n"
REFUSED = (
    # An error, answer to the first call, without arguments: byte order, kind, flags, version, length of the
    # body, serial, length of the fields; the fields 4 and 5, a text and a number.
    b"l\x03\x01\x01" + bytes(4) + b"\x01\0\0\0" + b"\x1c\0\0\0"
    b"\x04\x01s\0" + b"\x08\0\0\0no.words\0" + bytes(7) + b"\x05\x01u\0" + b"\x01\0\0\0"
)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([b"REJECTED EXTERNAL\r\n"], "it answers REJECTED EXTERNAL"),
        ([b""], "it has hung up"),
        ([WELCOME], "it has hung up|Broken pipe|reset"),
        ([WELCOME, b"HTTP/1.1 400 Bad Request\r\n\r\n"], "it speaks no D-Bus"),
        ([WELCOME, REFUSED.replace(b"\x01s", b"\x01?")], "it speaks no D-Bus"),
        ([WELCOME, REFUSED], r"no\.words \(no\.words\)"),
    ],
)
def test_who_is_no_systemd_makes_no_scope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[bytes], said: str
) -> None:
    with answering(tmp_path, answers) as path:
        monkeypatch.setattr(scope, "SYSTEMD", str(path))
        with pytest.raises(scope.NoScope, match=said):
            scope.enter("0" * 32, [os.getpid()], "own.service", "")


def test_a_systemd_that_hangs_is_waited_for_no_longer_than_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "PATIENCE", 0.2)
    for answers in ([], [WELCOME]):
        with answering(tmp_path, answers, stays=1.0) as path:
            monkeypatch.setattr(scope, "SYSTEMD", str(path))
            began = time.monotonic()
            with pytest.raises(scope.NoScope, match=r"in time|timed out"):
                scope.enter("0" * 32, [os.getpid()], "own.service", "")
            assert time.monotonic() - began < 0.9
        path.unlink()


def test_a_host_without_systemd_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "SYSTEMD", str(tmp_path / "nothing"))
    with pytest.raises(scope.NoScope, match="No such file or directory"):
        scope.follow("0" * 32, "own.service")
