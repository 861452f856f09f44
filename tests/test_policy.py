"""Root's policy: what a service may be on a node, whoever has written its row or its image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stack import CHECKOUT
from worker import policy
from worker.errors import JobFailed
from worker.policy import Policy


def refused(policy_of_root: Policy, rule: str, **spec: Any) -> str:
    """See that a rule forbids a spec, and return the sentence."""
    with pytest.raises(JobFailed) as failure:
        policy_of_root.applied({"argv": ["/bin/true"], **spec})
    assert failure.value.code == "policy_refused"
    assert f"(rule {rule!r} in " in failure.value.message
    return failure.value.message


# --- the file -----------------------------------------------------------------------------------------


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "policy.toml"
    path.touch(mode=0o644)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("roots = false", "no rule 'roots'"),
        ("root = 0", "'root' must be true or false"),
        ('users = "nobody"', "'users' must be a list of texts"),
        ("users = [33]", "'users' must be a list of texts"),
        ('programs = ["redis-server"]', "'programs' must be a list of absolute paths"),
        ('environment = ["A=b"]', "'environment' must be a list of names"),
        ('environment = ["*_PATH"]', "'environment' must be a list of names"),
        ("services = -1", "'services' must be a whole number"),
        ("tasks = true", "'tasks' must be a whole number"),
        ('memory = "much"', "'memory' must be a size"),
        ('pool = ["1G"]', "'pool' must be a whole number"),
        ("root = ", "end of document"),
        ("root = true\nroot = false", "overwrite"),
        ("\xff", "utf-8"),
    ],
)
def test_a_policy_that_is_not_understood_is_no_policy_at_all(file: Path, text: str, said: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(JobFailed) as failure:
        policy.read(file)
    assert failure.value.code == "policy_unreadable"
    assert said in failure.value.message
    assert str(file) in failure.value.message
    assert failure.value.remedy


def moved(file: Path) -> Path:
    """Return the path of a file that is not there any more."""
    file.rename(file.with_name("old"))
    return file


SPOILED: dict[str, Callable[[Path], object]] = {
    "of another user": lambda file: shutil.chown(file, "nobody"),
    "for a group to write": lambda file: [file.chmod(0o664), shutil.chown(file, group="nogroup")],  # type: ignore[func-returns-value]
    "for all to write": lambda file: file.chmod(0o646),
    "in another user's folder": lambda file: shutil.chown(file.parent, "nobody"),
    "in a folder for all to write": lambda file: file.parent.chmod(0o777),
    "a link in a circle": lambda file: os.symlink(file, moved(file)),
    "gone": moved,
    "a folder": lambda file: os.mkdir(moved(file)),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_policy_that_others_could_change_is_not_believed(file: Path, how: str) -> None:
    SPOILED[how](file)
    with pytest.raises(JobFailed) as failure:
        policy.in_force({"MIEHISTO_POLICY": str(file)})
    assert failure.value.code == "policy_unreadable"


def test_a_policy_is_read(file: Path) -> None:
    file.write_text('root = false\nmemory = "512M"\npool = "2G"\nservices = 3\ncapabilities = ["CAP_CHOWN"]')
    found = policy.read(file)
    assert found.rules() == {
        "root": False,
        "memory": 512 << 20,
        "pool": 2 << 30,
        "services": 3,
        "capabilities": ("CHOWN",),
    }


def test_miehistod_does_not_start_under_a_policy_that_it_cannot_read(file: Path) -> None:
    file.write_text("root = maybe")
    done = subprocess.run(
        [sys.executable, "-m", "miehistod.main"],
        cwd=CHECKOUT,
        env={**os.environ, "MIEHISTO_POLICY": str(file)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"miehistod: This node's policy, {file}, cannot be relied on")
    assert "remedy: " in done.stderr


# --- the rules ----------------------------------------------------------------------------------------


def test_without_rules_a_service_may_be_anything() -> None:
    spec = {"argv": ["redis-server"], "user": "root", "cwd": "/root", "binds": ["/etc:/usr"], "limits": {}}
    assert Policy().applied(spec) == spec


def test_who_a_service_may_be() -> None:
    no_root = Policy(root=False)
    for user in ("root", "0", "", "00"):
        assert "run as root" in refused(no_root, "root", user=user)
    assert no_root.applied({"argv": ["/bin/true"], "user": "nobody"})
    refused(no_root, "groups", user="nobody", group="root")
    refused(no_root, "groups", user="nobody", group="0")

    some = Policy(users=("nobody", "4711"), groups=("games",))
    for user in ("root", "daemon", "4712"):
        refused(some, "users", user=user)
    for user in ("nobody", "65534", "4711"):
        assert some.applied({"argv": ["/bin/true"], "user": user, "group": "games"})
    refused(some, "groups", user="nobody", group="daemon")


def test_which_programs_a_service_may_run(folder: Path) -> None:
    tools = folder / "tools"
    tools.mkdir()
    (tools / "sleep").symlink_to("/usr/bin/sleep")
    (tools / "id").symlink_to("/usr/bin/id")
    some = Policy(programs=("/bin/sleep", "/bin/true"))  # /bin itself may be a link

    assert some.applied({"argv": ["sleep", "1"]})["argv"] == ["/usr/bin/sleep", "1"]
    assert some.applied({"argv": [str(tools / "sleep"), "1"]})["argv"] == [str(tools / "sleep"), "1"]
    assert some.applied({"argv": ["./sleep"], "cwd": str(tools)})["argv"] == ["./sleep"]
    for word in ("id", "/usr/bin/id", str(tools / "id"), "/usr/bin/../bin/id"):
        assert "would run /usr/bin/id" in refused(some, "programs", argv=[word])
    # What is found first on the PATH is what would be run.
    (tools / "sleep").unlink()
    shutil.copy("/usr/bin/id", tools / "sleep")
    path = f"{tools}:/usr/bin"
    assert f"would run {tools}/sleep" in refused(some, "programs", argv=["sleep"], env={"PATH": path})


def test_a_program_that_could_be_exchanged_before_it_runs_is_refused(folder: Path) -> None:
    """Between the look and the start a user could put something else where the name leads."""
    his = folder / "his"
    his.mkdir()
    (his / "sleep").symlink_to("/usr/bin/sleep")
    (folder / "link").symlink_to(his)
    shutil.chown(his, "nobody")
    some = Policy(programs=("/usr/bin/sleep",))
    for word in (his / "sleep", folder / "link/sleep"):
        assert f"user nobody can change {his}" in refused(some, "programs", argv=[str(word)])
    his.chmod(0o777)
    shutil.chown(his, "root")
    assert f"others than root can change {his}" in refused(some, "programs", argv=[str(his / "sleep")])
    # Unless root says that what lies there may be run.
    shutil.copy("/usr/bin/sleep", his / "copy")
    assert Policy(programs=(str(his),)).applied({"argv": [str(his / "copy")]})


@pytest.mark.parametrize(
    "more",
    [
        {"binds": ["/srv:/usr/bin"]},
        {"binds": ["/srv:/usr"]},
        {"binds": ["/srv/x:/etc/ld.so.preload"]},
        {"binds": ["/srv:/lib"]},
        {"binds": ["/srv:/"]},
    ],
)
def test_a_program_is_not_given_the_code_of_another(more: dict[str, Any]) -> None:
    refused(Policy(programs=("/bin/true",)), "programs", **more)


def test_which_variables_a_service_may_set(file: Path) -> None:
    """A policy that names programs lets nothing be set by which one of them could run another's code."""
    harmless = {"LANG": "C", "LC_ALL": "C", "TZ": "UTC"}
    loading = ("BASH_ENV", "BASH_FUNC_ls%%", "PYTHONPATH", "LD_PRELOAD", "PATH", "HOME", "NEVER_SEEN")
    file.write_text('programs = ["/usr/bin/true"]')
    some = policy.read(file)
    assert some.applied({"argv": ["true"], "env": harmless})
    for name in loading:
        assert repr(name) in refused(some, "environment", env={**harmless, name: "/tmp/x"})

    file.write_text('programs = ["/usr/bin/true"]\nenvironment = ["PATH", "PG*"]')
    some = policy.read(file)
    assert some.applied({"argv": ["true"], "env": {"PATH": "/usr/bin", "PGPORT": "1", "PG": "2"}})
    for name in ("PATHS", "P", "LANG"):
        refused(some, "environment", env={name: "x"})
    refused(Policy(environment=()), "environment", env={"A": "b"})


def test_where_a_service_may_work_and_what_it_may_be_shown(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in/data").mkdir()
    (folder / "in/out").symlink_to("/root")
    (folder / "in/his").mkdir()
    (folder / "in/his/data").mkdir()
    shutil.chown(folder / "in/his", "nobody")
    some = Policy(directories=(str(folder / "in"),))

    assert some.applied({"argv": ["x"], "cwd": "/"})
    assert some.applied({"argv": ["x"], "cwd": str(folder / "in/data")})
    for cwd in (str(folder), "/root", str(folder / "in/out"), str(folder / "in/data/../..")):
        refused(some, "directories", cwd=cwd)
    assert some.applied({"argv": ["x"], "binds": [f"{folder}/in/his:/data"]})
    for source in ("/root", f"{folder}/in/out", f"{folder}/in/missing"):
        refused(some, "directories", binds=[f"{source}:/data"])
    said = refused(some, "directories", binds=[f"{folder}/in/his/data:/data:ro"])
    assert f"user nobody can change {folder}/in/his" in said
    # An image names what is mounted once more, apart from its spec.
    facts = {"spec": {"argv": ["x"]}, "mounts": [["/dev", "/dev"], ["/data", "/root"]]}
    with pytest.raises(JobFailed, match="shows /root at /data"):
        some.check_image(facts)


def test_how_much_a_service_may_have() -> None:
    some = Policy(memory=100, tasks=10)
    assert some.applied({"argv": ["x"]})["limits"] == {"memory": 100, "tasks": 10}
    asked = {"memory": 50, "open_files": 7}
    assert some.applied({"argv": ["x"], "limits": asked})["limits"] == {
        "memory": 50,
        "tasks": 10,
        "open_files": 7,
    }
    refused(some, "memory", limits={"memory": 101})


def test_what_a_service_may_keep() -> None:
    some = Policy(capabilities=("NET_RAW",), new_privileges=False)
    assert some.applied({"argv": ["x"], "privileges": {"cap_add": ["NET_RAW"]}})
    refused(some, "capabilities", privileges={"cap_add": ["NET_RAW", "SYS_ADMIN"]})
    refused(some, "new_privileges", privileges={"new_privileges": True})
