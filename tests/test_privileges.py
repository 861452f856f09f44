"""What a service cannot do and cannot see, and that it is so once more after a restore."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.servers import PROGRAMS, Server, connected, program, started
from tests.stack import Stack
from worker.criu import has_sys_resource

OF_ROOT = {
    "chown", "dac_override", "fowner", "fsetid", "kill", "net_bind_service", "setgid", "setuid", "sys_chroot",
}  # fmt: skip
NUMBERS = {
    "chown": 0, "dac_override": 1, "fowner": 3, "fsetid": 4, "kill": 5, "setgid": 6, "setuid": 7,
    "net_bind_service": 10, "net_raw": 13, "sys_chroot": 18,
}  # fmt: skip


class Prisoner(Server):
    """A service that does what it is told to and says what it sees."""

    @property
    def command(self) -> list[str]:
        return [program("python3"), "-c", (PROGRAMS / "prisoner.py").read_text(), str(self.port)]

    def ask(self, code: str) -> Any:
        """Return what an expression of Python gives inside the service."""
        with connected(self.port) as client:
            return json.loads(client.ask(code))

    def state(self) -> dict[str, Any]:
        return {"kept": self.ask("kept")}

    def grow(self) -> None:
        held = self.state()["kept"]
        self.ask("kept.append(len(kept))")
        assert self.state()["kept"] == [*held, len(held)]

    def status(self) -> dict[str, str]:
        """Return what the kernel says of its privileges."""
        names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Uid", "Gid", "Groups")
        lines = self.ask("open('/proc/self/status').read()").splitlines()
        rows = dict(line.split(":", 1) for line in lines)
        return {name: rows[name].strip() for name in names}


def mask(names: set[str]) -> str:
    return f"{sum(1 << NUMBERS[name] for name in names):016x}"


CASES: dict[str, tuple[tuple[str, ...], set[str], set[str], str]] = {
    # options: what its programs can ever have, what it has, no new privileges
    "root": ((), OF_ROOT, OF_ROOT, "1"),
    "a user": (("-u", "nobody"), set(), set(), "1"),
    "a user with a port": (
        ("-u", "nobody", "--cap-add", "NET_BIND_SERVICE"),
        {"net_bind_service"},
        {"net_bind_service"},
        "1",
    ),
    "root without files": (
        ("--cap-drop", "dac_override", "--cap-add", "CAP_NET_RAW"),
        OF_ROOT - {"dac_override"} | {"net_raw"},
        OF_ROOT - {"dac_override"} | {"net_raw"},
        "1",
    ),
    "root without rights": (("--cap-drop", "ALL"), set(), set(), "1"),
    "a user with sudo": (("-u", "nobody", "--new-privileges"), OF_ROOT, set(), "0"),
}


@pytest.mark.parametrize("who", CASES)
def test_a_service_has_the_privileges_that_its_spec_asks_for(stack: Stack, folder: Path, who: str) -> None:
    options, bounding, effective, no_new = CASES[who]
    prisoner = Prisoner(folder)
    service = started(stack, prisoner, *options)

    found = prisoner.status()
    assert found["CapBnd"] == mask(bounding)
    assert found["CapEff"] == found["CapPrm"] == mask(effective)
    ambient = effective if "-u" in options else set()
    assert found["CapAmb"] == found["CapInh"] == mask(ambient)
    assert found["NoNewPrivs"] == no_new

    held = prisoner.state()
    stack.restore(stack.dump(service))
    assert prisoner.state() == held
    assert prisoner.status() == found
    # And so do the programs that it runs from now on.
    child = (
        "__import__('subprocess').run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout"
    )
    rows = dict(line.split(":", 1) for line in prisoner.ask(child).splitlines())
    assert {name: rows[name].strip() for name in found} == found


def test_a_setuid_program_gives_no_rights(stack: Stack, folder: Path) -> None:
    """`su` and the like run as whoever calls them, before and after a restore, unless the spec asks."""
    tool = folder / "id"
    tool.write_bytes(Path(program("id")).read_bytes())
    tool.chmod(0o4755)
    asked = f"run({str(tool)!r}, '-u')"
    prisoner = Prisoner(folder)
    service = started(stack, prisoner, "-u", "nobody")
    nobody = prisoner.ask("os.getuid()")
    assert int(prisoner.ask(asked)) == nobody
    stack.restore(stack.dump(service))
    assert int(prisoner.ask(asked)) == nobody
    stack.mhctl("service", "delete", "--stop", service)
    started(stack, prisoner, "-u", "nobody", "--new-privileges")
    assert int(prisoner.ask(asked)) == 0


def test_an_unknown_capability_is_refused(stack: Stack) -> None:
    answer = stack.mhctl("service", "create", "--cap-add", "FLY", "--", "sleep", "9", check=False)
    assert answer.code == 1
    assert "cannot give the service CAP_FLY" in answer.err
    if not has_sys_resource():
        answer = stack.mhctl(
            "service", "create", "--cap-add", "SYS_RESOURCE", "--", "sleep", "9", check=False
        )
        assert "cannot give the service CAP_SYS_RESOURCE" in answer.err


def test_a_service_sees_nothing_of_miehistod(stack: Stack, folder: Path) -> None:
    """Neither its environment, with the password of a database perhaps, nor its files and sockets."""
    prisoner = Prisoner(folder)
    service = started(stack, prisoner, "-u", "nobody", "-e", "OWN=1")
    for _ in range(2):
        assert set(prisoner.ask("dict(os.environ)")) <= {
            "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_CTYPE", "OWN",
        }  # fmt: skip
        # Its standard streams, its own two sockets, and the folder that is just being listed.
        links = prisoner.ask("{n: os.readlink('/proc/self/fd/' + n) for n in fds()}")
        assert links["0"] == "/dev/null"
        assert links["1"] == links["2"]
        assert links["1"].startswith("pipe:")
        assert {link.partition(":")[0] for number, link in links.items() if int(number) > 2} == {"socket"}
        assert len(links) == 5
        assert set(prisoner.ask("{n: 0 for n in fds(1)}")) == {"0", "1", "2"}, "of its init"
        stack.restore(stack.dump(service))
    shown = stack.show("service", service)
    # Its supervisor's could be read by others if it weren't root's.
    for variable in Path(f"/proc/{shown['ppid']}/environ").read_bytes().split(b"\0"):
        assert variable.partition(b"=")[0] in {b"", b"PATH", b"LANG", b"LC_CTYPE"}
    assert os.stat(f"/proc/{shown['ppid']}/environ").st_uid == 0
    # Nor what the node keeps.
    for path in ("state/images", "state/services", "state/database", "run/services", "run/redis"):
        with_error = f"attempt(lambda: os.listdir({str(stack.folder / path)!r}))"
        assert prisoner.ask(with_error) == "PermissionError"
    token = f"attempt(lambda: open({str(stack.folder / 'run/token')!r}).read())"
    assert prisoner.ask(token) == "PermissionError"


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_tmp_of_its_own_is_dumped_with_it(stack: Stack, folder: Path, user: str) -> None:
    prisoner = Prisoner(folder)
    service = started(stack, prisoner, "-u", user, "--private-tmp", "4M")
    assert prisoner.ask("os.listdir('/tmp')") == []
    prisoner.ask("open('/tmp/note', 'w').write('mine')")
    prisoner.ask("open('/tmp/large', 'wb').write(bytes(3 << 20))")
    for _ in range(2):
        stack.restore(stack.dump(service))
        assert prisoner.ask("open('/tmp/note').read()") == "mine"
        assert prisoner.ask("os.stat('/tmp/large').st_size") == 3 << 20
        assert prisoner.ask("oct(os.stat('/tmp').st_mode)") == "0o41777"
        assert prisoner.ask("attempt(lambda: open('/tmp/more', 'wb', 0).write(bytes(2 << 20)))") != 2 << 20
        prisoner.ask("os.unlink('/tmp/more')")
    assert not Path("/tmp/note").exists()


def test_nothing_is_bound_into_a_tmp_of_its_own(stack: Stack, folder: Path) -> None:
    words = ("--private-tmp", "4M", "-b", f"{folder}:/tmp/x", "--", "sleep", "9")
    answer = stack.mhctl("service", "create", *words, check=False)
    assert answer.code == 2
    assert "own /tmp" in answer.err
