"""What only a kernel of its own shows: limits by its control groups, several users, a reboot, a power cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deb.clean import Clean
from tests.deb.conftest import debian as debian  # noqa: PLC0414 - fixtures of this folder, too
from tests.deb.conftest import package as package  # noqa: PLC0414
from tests.deb.conftest import stocked as stocked  # noqa: PLC0414
from tests.stack import eventually
from tests.vm.virtual import VirtualMachine

# Answers at 7071 how many children it could fork, or how a child ended that took so much memory.
GREEDY = """
import http.server, os, time

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        word, _, number = self.path[1:].partition("/")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(globals()[word](int(number))).encode())

def fork(most):
    made = []
    try:
        while len(made) < most:
            pid = os.fork()
            if not pid:
                time.sleep(3600)
            made.append(pid)
    except BlockingIOError:
        pass
    for pid in made:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(made)

def grow(mib):
    pid = os.fork()
    if not pid:
        len(bytearray(mib << 20))
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def become(user):
    if not os.fork():
        os.setuid(user)
        time.sleep(3600)
    return user

http.server.HTTPServer(("127.0.0.1", 7071), Answer).serve_forever()
"""
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"
COUNT = ("redis-cli", "-p", "7070", "incr", "questions")
REDIS = ("redis-server", "--port", "7070", "--save", "")


def ask(machine: VirtualMachine, path: str) -> str:
    return machine.run("python3", "-c", ASK, f"http://127.0.0.1:7071/{path}").strip()


@pytest.fixture
def host(stocked: Clean, package: Path, folder: Path) -> Iterator[VirtualMachine]:
    """A host with the package set up."""
    machine = VirtualMachine(stocked, folder)
    try:
        machine.boot()
        machine.run("apt-get", "-q", "-y", "install", f"/{package.name}")
        machine.run("miehisto-setup")
        yield machine
    finally:
        machine.end()


def test_a_host_of_its_own(host: VirtualMachine) -> None:
    checks = json.loads(host.run("miehisto-manage", "check_host", "--json"))
    assert all(check["ok"] for check in checks), checks

    create = ("mhctl", "service", "create", "--name")
    host.run(*create, "greedy", "--memory", "64M", "--tasks", "10", "--", "/usr/bin/python3", "-c", GREEDY)
    for _ in range(2):
        assert ask(host, "fork/40") == "8", "its init and itself are among the ten"
        assert ask(host, "grow/20") == "0"
        assert ask(host, "grow/200") == "9", "killed"
        host.run("mhctl", "service", "dump", "greedy")
        host.run("mhctl", "service", "restore", "greedy")
    host.run("mhctl", "service", "stop", "greedy")
    assert host.run("find", "/sys/fs/cgroup", "-name", "miehisto-*", "-not", "-name", "*.service") == ""

    host.run(*create, "several", "--cap-add", "SETUID", "--", "/usr/bin/python3", "-c", GREEDY)
    assert ask(host, "become/65534") == "65534"
    host.run("mhctl", "service", "dump", "several")
    host.run("mhctl", "service", "restore", "several")
    assert host.run("pgrep", "-c", "-u", "65534", "python3") == "1\n"

    host.run(*create, "counter", "-u", "nobody", "--restore-on-boot", "--", *REDIS)
    assert eventually(lambda: host.run(*COUNT)) == "1\n"
    host.run("systemctl", "enable", "--now", "miehisto-drain")
    host.shut_down()
    host.boot()
    assert eventually(lambda: host.run(*COUNT), 240) == "2\n", "it has its memory"

    host.run("mhctl", "service", "dump", "counter", "--leave-running")
    host.pull_the_plug()
    host.boot()
    assert eventually(lambda: host.run(*COUNT), 240) == "3\n", "it is back from its last image"
    listed = json.loads(host.run("mhctl", "--json", "service", "list", "--all"))
    found = {each["name"]: each["status"] for each in listed}
    assert found == {"greedy": "stopped", "several": "exited", "counter": "running"}
