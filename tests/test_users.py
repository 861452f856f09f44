"""Services of users who aren't root, with and without CAP_SYS_RESOURCE.

Without it (most unprivileged containers) the kernel lets CRIU look only at processes of CRIU's own user and
group. Then CRIU runs as the service's, and what has several is refused before anything is frozen.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import Redis, program, started
from tests.stack import Stack
from worker.criu import has_sys_resource


@pytest.mark.parametrize("account", ["nobody:games", "12345:54321", "root:games"])
def test_a_service_of_one_user_is_dumped_on_any_host(stack: Stack, folder: Path, account: str) -> None:
    server = Redis(folder)
    service = started(stack, server, "-u", account)

    image = stack.dump(service, "--leave-running")
    held = server.state()
    server.grow()
    stack.dump(service)
    stack.restore(image)
    assert server.state() == held

    # What the image holds is root's, whoever's memory it is.
    path = stack.folder / "state/images" / image
    assert {(entry.stat().st_uid, entry.stat().st_mode & 0o777) for entry in path.iterdir()} == {(0, 0o600)}
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o700)


def test_a_service_of_several_users_needs_a_capability(stack: Stack, folder: Path) -> None:
    """CAP_SYS_RESOURCE; where it is missing the dump is refused and the service never notices."""
    server = Redis(folder)
    other = f"{program('setpriv')} --reuid=nobody --regid=nogroup --clear-groups -- sleep 3600"
    service = stack.create("sh", "-c", f'{other} & exec "$@"', "sh", *server.command)
    server.grow()
    held = server.state()

    answer = stack.mhctl("service", "dump", service, check=False)
    job = stack.api("GET", "jobs?limit=1").body[0]
    if has_sys_resource():
        assert answer.code == 0
        stack.restore(Path(answer.out.strip()).name)
    else:
        assert answer.code == 1
        assert "CAP_SYS_RESOURCE" in answer.err
        assert job["error"]["code"] == "needs_sys_resource"
        assert job["step"] == "looking before freezing"
        assert stack.mhctl("image", "list", "--json").out.strip() == "[]"
        assert stack.show("service", service)["status"] == "running"
    assert server.state() == held
    server.grow()
