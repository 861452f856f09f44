"""A service that evaluates what it is sent, line by line, and answers in JSON: for looking out of it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable

kept: list[int] = []


def fds(pid: object = "self") -> list[str]:
    """Return the descriptors of a process, without the one that lists them."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue
        found.append(number)
    return found


def attempt(what: Callable[[], object]) -> object:
    """Return what a call gives, or the name of its exception."""
    try:
        return what()
    except OSError as error:
        return type(error).__name__


def run(*words: str) -> str:
    """Return what a program prints."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def end_others() -> int:
    """Kill every process but init and this one; return how many there were."""
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getpid()}
    for pid in others:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(others)


server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = server.accept()
    with connection, connection.makefile("rwb") as lines:
        for line in lines:
            try:
                answer = eval(line.decode())
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()
