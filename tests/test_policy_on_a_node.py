"""Root's policy on a real node: what the worker refuses, whoever has written a row or an image."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.archives import compressed, facts_of, import_file, node_in, tar_of
from tests.isolation import POLICY
from tests.policies import error_of_last_job, rules
from tests.servers import Redis, program, started
from tests.stack import Stack, eventually
from worker import claims, locks, manifest, policy, preflight
from worker.errors import JobFailed
from worker.paths import Paths

SLEEP = ("sleep", "3600")


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


def test_a_script_that_is_allowed_is_not_given_anothers_code(stack: Stack, folder: Path) -> None:
    """Bash runs the file that BASH_ENV names, and of two programs the one whose folder PATH names first."""
    script, trace, evil = folder / "scripts/start.sh", folder / "trace", folder / "evil"
    for made in (script.parent, evil):
        made.mkdir()
    script.write_text("#!/bin/bash\nsleep 3600\n")
    (evil / "sleep").write_text(f"#!/bin/sh\n: >{trace}\nexec /usr/bin/sleep 3600\n")
    for file in (script, evil / "sleep"):
        file.chmod(0o755)
    attacks = ({"BASH_ENV": str(evil / "sleep")}, {"PATH": f"{evil}:/usr/bin:/bin"})
    service = stack.create(str(script))
    stack.mhctl("service", "stop", service)

    for variables in attacks:
        with written_by_hand(stack, service, "env", json.dumps(variables)):
            stack.mhctl("service", "start", service)
            eventually(trace.exists)  # so it is an attack
            stack.mhctl("service", "stop", service)
            trace.unlink()
            with rules(f'programs = ["{script.parent}"]'):
                answer = stack.mhctl("service", "start", service, check=False)
            assert "(rule 'environment' in " in answer.err
        assert error_of_last_job(stack)["code"] == "policy_refused"
    with rules(f'programs = ["{script.parent}"]'):
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
