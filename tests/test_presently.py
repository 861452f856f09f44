"""What the site tells of running services: what they do now, and what they used in the last hour."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from services import loads
from services.models import Node, ServiceLoad, ServiceSample
from tests.rows import running_service
from tests.servers import PROGRAMS, Redis, connected, started
from tests.stack import Stack, eventually
from worker.loads import Meter

BUSY = """\
import os, socket
memory = bytearray(30 << 20)
server = socket.create_server(("127.0.0.1", 0))
parent = os.fork()
if parent:
    print(server.getsockname()[1], flush=True)
while True:
    pass
"""


def test_a_running_service_is_shown_from_inside(stack: Stack, folder: Path) -> None:
    command = (
        "/usr/bin/python3",
        str(PROGRAMS / "constructs.py"),
        str(folder),
        "deleted",
        "fifo",
        "tcp_connection",
    )
    service = stack.create(*command, "unix_pair", "threads", options=("--name", "mixed"))
    eventually(lambda: "ready" in stack.log(service).splitlines())
    seen = stack.api("GET", "services/mixed/now").body

    init, main = seen["processes"]
    assert (init["inside"], init["ppid"], main["ppid"]) == (1, 0, init["pid"])
    assert main["pid"] == stack.show("service", service)["pid"]
    assert main["args"][:2] == list(command[:2])
    assert (main["threads"], main["uid"], main["user"], main["state"]) == (4, 0, "root", "sleeping")
    assert main["memory"] > 1 << 20
    files = {(each["kind"], each["path"], each["deleted"]) for each in seen["files"]}
    assert {("fifo", f"{folder}/fifo", False), ("file", f"{folder}/deleted", True)} <= files
    sockets = sorted((each["family"], each["state"]) for each in seen["sockets"])
    assert sockets == [
        *[("tcp", "established")] * 2,
        ("tcp", "listening"),
        *[("unix", "established")] * 2,
    ]

    told = stack.mhctl("service", "top", "mixed").out
    assert told.splitlines()[0].split() == ["PID", "USER", "STATE", "THREADS", "CPU", "MEMORY", "ARGS"]
    assert any(
        line.startswith(f"{main['pid']:<5} root") and "constructs.py" in line for line in told.splitlines()
    )
    assert re.search(r"^tcp +listening +\S+:\d+$", told, re.MULTILINE)
    assert json.loads(stack.mhctl("service", "top", "mixed", "--json").out)["counts"]["processes"] == 2

    stack.dump("mixed")
    refused = stack.api("GET", "services/mixed/now")
    assert (refused.status, refused.body["error"]["code"]) == (409, "service_not_running")


def test_the_load_of_a_service_is_sampled(stack: Stack, folder: Path) -> None:
    server = Redis(folder)
    service = started(stack, server)
    with connected(server.port) as client:
        client.ask("SETRANGE large 30000000 x")
    # Its first sample may be of the moment before it listened.
    found = eventually(
        lambda: (
            (told := stack.api("GET", f"services/{service}/samples").body)["now"]
            and told["now"]["listening"]
            and told
        ),
        40,
    )
    assert found["now"]["listening"] == [f"127.0.0.1:{server.port}"]
    assert found["now"]["processes"] == 2
    assert len(found["samples"]) >= 1
    assert found["samples"][-1]["memory"] == found["now"]["memory"]
    told = stack.mhctl("service", "top").out.splitlines()
    assert told[0].split() == ["OBJECT_ID", "PID", "CPU", "MEMORY", "PROCESSES", "PORTS", "NAME"]
    assert told[1].split()[0] == service
    assert str(server.port) in told[1].split()
    assert stack.api("GET", "loads").body[service] == found["now"]


def test_cpu_memory_and_ports_are_those_of_the_whole_tree() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            port = int(process.stdout.readline())
            meter = Meter()
            first = meter.measure({"busy": process.pid, "gone": 2**22 - 1})
            assert set(first) == {"busy"}
            assert first["busy"].cpu is None

            def used() -> float:
                os.sched_yield()
                return meter.measure({"busy": process.pid})["busy"].cpu or 0.0

            assert eventually(lambda: used() > 0.1)
            now = meter.measure({"busy": process.pid})["busy"]
            assert (now.processes, now.listening) == (2, [f"127.0.0.1:{port}"])
            assert 20 << 20 < now.memory < 200 << 20
            # Another tree under the same key begins anew.
            assert meter.measure({"busy": os.getpid()})["busy"].cpu is None
        finally:
            subprocess.run(["pkill", "-P", str(process.pid)], check=False)
            process.kill()


@pytest.mark.django_db(transaction=True)
def test_an_hour_of_samples_is_kept() -> None:
    service, node = running_service("web"), Node.objects.local()
    load = {"cpu": 0.5, "memory": 7, "processes": 2, "listening": ["127.0.0.1:80"]}
    loads.record(node.name, {service.pk: load, "0" * 32: load})
    ServiceSample.objects.update(at=timezone.now() - timedelta(minutes=61))
    loads.record(node.name, {service.pk: {**load, "cpu": None}})

    told = loads.samples(service)
    assert [each["cpu"] for each in told["samples"]] == [None]
    assert told["now"] and told["now"]["listening"] == ["127.0.0.1:80"]
    assert loads.running(node.name) == {service.pk: (service.pid, service.supervisor_pid)}

    # What is old says nothing about now, and a deleted service takes its figures with it.
    ServiceLoad.objects.update(at=timezone.now() - timedelta(minutes=1))
    assert loads.samples(service)["now"] is None
    assert loads.all_loads() == {}
    service.delete()
    assert not ServiceSample.objects.exists()
