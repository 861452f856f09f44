"""Root's policy: what a service may be on a node, whoever has written its row or its image."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.archives import compressed, facts_of, import_file, node_in, tar_of
from tests.isolation import POLICY
from tests.servers import Redis, program, started
from tests.stack import CHECKOUT, Stack, eventually
from worker import claims, locks, manifest, policy, preflight
from worker.errors import JobFailed
from worker.paths import Paths
from worker.policy import Policy

SLEEP = ("sleep", "3600")


@contextmanager
def rules(*lines: str) -> Iterator[None]:
    """Have these lines in the policy of the tests' node."""
    POLICY.write_text("\n".join(lines))
    try:
        yield
    finally:
        POLICY.write_text("")


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
        {"env": {"LD_PRELOAD": "/tmp/x.so"}},
        {"env": {"LD_LIBRARY_PATH": "/tmp"}},
        {"env": {"GCONV_PATH": "/tmp"}},
        {"binds": ["/srv:/usr/bin"]},
        {"binds": ["/srv:/usr"]},
        {"binds": ["/srv/x:/etc/ld.so.preload"]},
        {"binds": ["/srv:/lib"]},
        {"binds": ["/srv:/"]},
    ],
)
def test_a_program_is_not_given_the_code_of_another(more: dict[str, Any]) -> None:
    refused(Policy(programs=("/bin/true",)), "programs", **more)


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


# --- a node under a policy ----------------------------------------------------------------------------


@contextmanager
def written_by_hand(stack: Stack, service: str, column: str, value: str) -> Iterator[None]:
    """Have something else in a service's row, behind the site's back."""
    change = f"UPDATE services_service SET {column} = ? WHERE id = ?"
    with closing(sqlite3.connect(stack.folder / "state/database/db.sqlite3", timeout=20)) as base:
        old = base.execute(f"SELECT {column} FROM services_service WHERE id = ?", [service]).fetchone()
        base.execute(change, [value, service])
        base.commit()
        yield
        base.execute(change, [*old, service])
        base.commit()


def error_of_last_job(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = stack.api("GET", "jobs?limit=1").body[0]["error"]
    return found


def test_a_row_that_the_site_let_through_is_refused_by_the_worker(stack: Stack, folder: Path) -> None:
    """The row is written behind the site's back, as somebody would who has taken the site over."""
    service = stack.create(*SLEEP, options=("-u", "nobody"))
    stack.mhctl("service", "stop", service)
    trace = folder / "trace"
    rows = {
        "user": "root",
        "argv": json.dumps(["touch", str(trace)]),
        "binds": json.dumps(["/root:/usr/bin"]),
        "cwd": "/root",
    }
    forbidden = ("root = false", 'programs = ["/usr/bin/sleep"]', 'directories = ["/srv"]')
    with rules(*forbidden):
        stack.mhctl("service", "start", service)
        stack.mhctl("service", "stop", service)
        for column, value in rows.items():
            with written_by_hand(stack, service, column, value):
                answer = stack.mhctl("service", "start", service, check=False)
            assert answer.code == 1
            assert str(POLICY) in answer.err
            assert error_of_last_job(stack)["code"] == "policy_refused"
        stack.mhctl("service", "start", service)
    assert not trace.exists()


def test_a_row_that_is_no_spec_is_refused(stack: Stack) -> None:
    service = stack.create(*SLEEP)
    stack.mhctl("service", "stop", service)
    for column, value in (("argv", '"sleep"'), ("env", '{"A=B": 1}'), ("binds", '["/srv/../root:/x"]')):
        with written_by_hand(stack, service, column, value):
            stack.api("POST", f"services/{service}/start?wait=30", {})
        assert error_of_last_job(stack)["code"] == "bad_spec"


def test_an_image_is_restored_only_if_the_policy_lets_it_run(stack: Stack, folder: Path) -> None:
    server = Redis(folder)
    service = started(stack, server)
    held = server.state()
    image = stack.dump(service)
    with rules("root = false"):
        assert "would run as root" in stack.mhctl("service", "restore", "--from", image, check=False).err
        # Its manifest may say what it likes: what runs in it counts.
        path = stack.folder / "state/images" / image
        facts = manifest.read(path)
        text = (path / manifest.NAME).read_text()
        lie = manifest._summed({**facts, "spec": {**facts["spec"], "user": "nobody"}})
        (path / manifest.NAME).write_text(json.dumps(lie))
        with written_by_hand(stack, service, "user", "nobody"):
            assert "would run as root" in stack.mhctl("service", "restore", "--from", image, check=False).err
        assert error_of_last_job(stack)["code"] == "policy_refused"
        (path / manifest.NAME).write_text(text)
    stack.restore(image)
    assert server.state() == held


SHARER = """
import mmap, os, sys, time
name = sys.argv[1]
held = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
os.truncate(held, 4096)
memory = mmap.mmap(held, 4096)
memory[:5] = b"first"
while memory[:5] == b"first":
    time.sleep(0.02)
print("changed to", bytes(memory[:5]).decode(), flush=True)
time.sleep(3600)
"""


def test_shared_memory_is_in_no_directory_that_a_policy_would_have_to_name(
    stack: Stack, folder: Path
) -> None:
    """PostgreSQL has such memory, shm_overview(7): its image carries it, wherever a service may work."""
    name = Path(f"/dev/shm/miehisto-{os.getpid()}")
    with rules(f'directories = ["{folder}"]'):
        service = stack.create(sys.executable, "-c", SHARER, str(name))
        try:
            eventually(lambda: name.read_bytes()[:5] == b"first")
            image = stack.dump(service)
            assert manifest.read(stack.folder / "state/images" / image)["shared_memory"] == [str(name)]
            stack.restore(image)
            with name.open("r+b") as file:
                file.write(b"other")
            assert eventually(lambda: "changed to other" in stack.log(service))
            with pytest.raises(JobFailed, match="has its data in /dev/shmx/y"):
                policy.read(POLICY).check_image({"spec": {}, "mounts": [], "shared_memory": ["/dev/shmx/y"]})
        finally:
            name.unlink(missing_ok=True)


def test_an_image_keeps_nothing_that_the_policy_forbids(stack: Stack, folder: Path) -> None:
    """What was asked for and given before root forbade it does not come back with the memory."""
    server = Redis(folder)
    service = started(stack, server, "-u", "nobody", "--cap-add", "NET_RAW", "--new-privileges")
    held = server.state()
    image = stack.dump(service)
    forbidden = {
        "capabilities = []": "would keep CAP_NET_RAW",
        "new_privileges = false": "could gain privileges",
    }
    lies = {"capabilities = []": "was dumped with CAP_NET_RAW", "new_privileges = false": "the right to gain"}
    path = stack.folder / "state/images" / image
    text = (path / manifest.NAME).read_text()
    facts = manifest.read(path)
    lie = manifest._summed({**facts, "spec": {**facts["spec"], "privileges": {}}})
    for rule, said in forbidden.items():
        with rules(rule):
            assert said in stack.mhctl("service", "restore", "--from", image, check=False).err
            (path / manifest.NAME).write_text(json.dumps(lie))
            with written_by_hand(stack, service, "privileges", "{}"):
                assert lies[rule] in stack.mhctl("service", "restore", "--from", image, check=False).err
            (path / manifest.NAME).write_text(text)
    with rules('capabilities = ["NET_RAW"]'):
        stack.restore(image)
    assert server.state() == held


def test_a_service_that_may_not_start_again_is_not_stopped(stack: Stack) -> None:
    service = stack.create(*SLEEP)
    pid = stack.show("service", service)["pid"]
    for forbidden in ("root = false", "root = nobody knows"):
        with rules(forbidden):
            assert stack.mhctl("service", "restart", service, check=False).code == 1
        assert stack.show("service", service)["pid"] == pid


def test_no_more_services_run_than_may(stack: Stack) -> None:
    with rules("services = 1"):
        first = stack.create(*SLEEP)
        refusal = stack.mhctl("service", "create", *SLEEP, check=False)
        assert "the 1 that may run at once" in refusal.err
        refused_one = error_of_last_job(stack), stack.api("GET", "jobs?limit=1").body[0]["service"]
        assert refused_one[0]["code"] == "policy_refused"
        stack.mhctl("service", "delete", refused_one[1])
        image = stack.dump(first)
        second = stack.create(*SLEEP)
        assert stack.mhctl("service", "restore", "--from", image, check=False).code == 1
        stack.mhctl("service", "restart", second)
        stack.mhctl("service", "stop", second)
        stack.restore(image)


def test_the_images_take_no_more_than_they_may(stack: Stack, folder: Path) -> None:
    server = Redis(folder)
    service = started(stack, server)
    with rules('pool = "10M"'):
        refusal = stack.mhctl("service", "dump", service, check=False)
    assert "policy allows" in refusal.err
    assert error_of_last_job(stack)["code"] == "pool_full"
    server.grow()
    with rules('pool = "100M"'):
        stack.dump(service)


@pytest.mark.parametrize("kind", ["dump", "import"])
def test_what_is_written_at_once_shares_what_the_images_may_take(folder: Path, kind: str) -> None:
    """A dump or an import that is under way has its share for itself, until it has written or has died."""
    paths = Paths(folder, folder, folder)
    paths.images.mkdir()
    mine, image = "1" * 32, "3" * 32
    lock = paths.job_lock("2" * 32) if kind == "dump" else paths.import_lock(image)
    written = paths.partial_image(image) if kind == "dump" else paths.importing(image)
    for one in (paths.job_lock(mine), lock):
        one.parent.mkdir(parents=True)
    most = 200 << 20

    def refusal(claim: int) -> str:
        lock.with_name("claim.json").write_text(json.dumps({"image": image, "bytes": claim}))
        own = paths.runtime(mine) / "claim.json"

        def check(claimed: int) -> int:
            return preflight.check_room(paths.images, sleeper.pid, most, 0, claimed)

        try:
            with claims.claimed(paths, paths.job_lock(mine), "4" * 32, most, check):
                assert 0 < json.loads(own.read_text())["bytes"] < most
        except JobFailed as failure:
            return failure.code
        finally:
            assert not own.exists()
        return ""

    with subprocess.Popen(SLEEP) as sleeper:
        try:
            assert refusal(most) == ""  # nobody is at work there any more
            with locks.held(lock):
                assert refusal(0) == ""
                assert refusal(most) == "pool_full"
                written.mkdir()
                (written / "pages-1.img").write_bytes(b"x" * 4096)
                assert refusal(4096) == ""
                assert refusal(most) == "pool_full"
        finally:
            sleeper.kill()


def test_imports_at_once_share_what_the_images_may_take(folder: Path) -> None:
    """A second one begins in the middle of the first, whose bytes are claimed and not written yet."""
    paths = node_in(folder)
    size = 30 << 20
    most = 2 * size + (24 << 20)  # each keeps 16 MiB in reserve while it is written
    archives = []
    for image in ("a" * 32, "b" * 32):
        content = {"core-1.img": b"core", "pages-1.img": bytes(size)}
        told = facts_of(content, partial(dict.update, image=image))
        archives.append(paths.archives / f"{image}.tar.zst")
        archives[-1].write_bytes(compressed(tar_of((manifest.NAME, told), *content.items())))
    second: list[JobFailed] = []

    def step(doing: str) -> None:
        if doing == "writing files":
            with pytest.raises(JobFailed) as caught:
                import_file(paths, archives[1], most=most)
            second.append(caught.value)

    import_file(paths, archives[0], most=most, step=step)
    assert [failure.code for failure in second] == ["pool_full"]
    assert "policy allows" in second[0].remedy
    # Alone there is room for it, for what is written is claimed no more.
    import_file(paths, archives[1], most=most)
    assert not list(paths.run_dir.glob("imports/*/claim.json"))


def test_an_import_takes_no_more_than_the_images_may(stack: Stack, folder: Path) -> None:
    server = Redis(folder)
    image = stack.dump(started(stack, server))
    archive = folder / "image.tar.zst"
    stack.mhctl("image", "export", image, str(archive))
    stack.mhctl("image", "delete", "--force", image)
    with rules('pool = "1M"'):
        refusal = stack.mhctl("image", "import", str(archive), check=False)
        assert error_of_last_job(stack)["code"] == "pool_full"
    assert refusal.code == 1
    assert "policy allows" in refusal.err
    assert stack.mhctl("image", "import", str(archive)).out.strip() == image


def test_an_image_that_comes_back_is_of_its_own_service(stack: Stack, folder: Path) -> None:
    """Its manifest has the path that the policy had found, the service's row the word that was asked for."""
    archive = folder / "image.tar.zst"
    with rules('programs = ["/usr/bin/sleep"]'):
        service = stack.create(*SLEEP)
        image = stack.dump(service)
    assert manifest.read(stack.folder / "state/images" / image)["spec"]["argv"] == ["/usr/bin/sleep", "3600"]
    assert stack.show("service", service)["args"] == list(SLEEP)
    stack.mhctl("image", "export", image, str(archive))
    stack.mhctl("image", "delete", "--force", image)
    stack.mhctl("image", "import", str(archive))
    stack.restore(image)


def test_no_more_services_run_than_may_though_all_start_at_once(stack: Stack) -> None:
    with rules("services = 2"):
        for _ in range(5):
            stack.api("POST", "services", {"args": list(SLEEP)})

        def ended() -> list[str]:
            jobs = stack.api("GET", "jobs?limit=5").body
            return [job["status"] for job in jobs if job["status"] in {"succeeded", "failed"}]

        assert eventually(lambda: len(ended()) == 5, 30)
    assert sorted(ended()) == ["failed"] * 3 + ["succeeded"] * 2
    assert len(stack.api("GET", "services").body) == 2


def test_nothing_runs_under_a_policy_that_cannot_be_read(stack: Stack) -> None:
    service = stack.create(*SLEEP)
    image = stack.dump(service, "--leave-running")
    with rules("root ="):
        for words in (("create", *SLEEP), ("dump", service), ("restart", service)):
            assert "cannot be relied on" in stack.mhctl("service", *words, check=False).err
            assert error_of_last_job(stack)["code"] == "policy_unreadable"
        stack.mhctl("service", "stop", service)  # what ends something is always allowed
        for words in (("start", service), ("restore", "--from", image)):
            assert "cannot be relied on" in stack.mhctl("service", *words, check=False).err
    stack.restore(image)


def test_the_check_of_a_host_shows_the_policy(stack: Stack) -> None:
    with rules("services = 7", f'programs = ["{program("sleep")}"]'):
        said = stack.mhctl("check").out
    assert "services = 7" in said
    assert str(POLICY) in said
