"""Services of users who aren't root, with and without CAP_SYS_RESOURCE.

Without it (most unprivileged containers) the kernel lets CRIU look only at processes of CRIU's own user and
group. Then CRIU runs as the service's, and what has several is refused before anything is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Redis, program, started
from tests.stack import Stack, living
from worker.criu import has_sys_resource


class WeakNode(Stack):
    """A node from which CAP_SYS_RESOURCE was taken away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        drop = ("--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "--ambient-caps=-sys_resource")
        self.command = ["setpriv", *drop, "--", *self.command]


@pytest.fixture(scope="module")
def weak_node() -> Iterator[WeakNode]:
    with living(WeakNode, "weak") as made:
        yield made


@pytest.fixture
def strong(stack: Stack) -> Stack:
    """A node with CAP_SYS_RESOURCE, where the host has it to give."""
    if not has_sys_resource():
        pytest.skip("this host lacks CAP_SYS_RESOURCE, so no CRIU that has it can be tried here")
    return stack


@pytest.fixture
def weak(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A node without CAP_SYS_RESOURCE: on a host that lacks it that is any."""
    made: Stack = request.getfixturevalue("weak_node" if has_sys_resource() else "stack")
    yield made
    made.clear()


@pytest.fixture(params=["strong", "weak"])
def node_of_each_kind(request: pytest.FixtureRequest) -> Stack:
    found: Stack = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("account", ["nobody:games", "12345:54321", "root:games"])
def test_a_service_of_one_user_is_dumped_on_any_host(
    node_of_each_kind: Stack, folder: Path, account: str
) -> None:
    node = node_of_each_kind
    server = Redis(folder)
    service = started(node, server, "-u", account)

    image = node.dump(service, "--leave-running")
    held = server.state()
    server.grow()
    node.dump(service)
    node.restore(image)
    assert server.state() == held

    # What the image holds is root's, whoever's memory it is.
    path = node.folder / "state/images" / image
    assert {(entry.stat().st_uid, entry.stat().st_mode & 0o777) for entry in path.iterdir()} == {(0, 0o600)}
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o700)


def of_several_users(node: Stack, server: Redis) -> str:
    """Start the server beside a process of another user, and return the service's id."""
    other = f"{program('setpriv')} --reuid=nobody --regid=nogroup --clear-groups -- sleep 3600"
    service = node.create("sh", "-c", f'{other} & exec "$@"', "sh", *server.command)
    server.grow()
    return service


def test_a_service_of_several_users_is_dumped_with_a_capability(strong: Stack, folder: Path) -> None:
    server = Redis(folder)
    service = of_several_users(strong, server)
    held = server.state()
    strong.mhctl("service", "check", service)
    strong.restore(strong.dump(service))
    assert server.state() == held
    server.grow()


def test_a_service_of_several_users_is_refused_without_it(weak: Stack, folder: Path) -> None:
    """And never notices."""
    server = Redis(folder)
    service = of_several_users(weak, server)
    held = server.state()
    for verb in ("check", "dump"):
        answer = weak.mhctl("service", verb, service, check=False)
        assert answer.code == 1
        assert "CAP_SYS_RESOURCE" in answer.out + answer.err
    job = weak.api("GET", "jobs?limit=1").body[0]
    assert job["error"]["code"] == "needs_sys_resource"
    assert job["step"] == "looking before freezing"
    assert weak.mhctl("image", "list", "--json").out.strip() == "[]"
    assert weak.show("service", service)["status"] == "running"
    assert server.state() == held
    server.grow()
