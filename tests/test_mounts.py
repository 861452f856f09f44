"""What a service sees of the host's file systems: what was mounted when it started, and what it asked for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.servers import Redis, program, started
from tests.stack import CHECKOUT, Stack, living
from worker import cgroups, namespaces, scan_files

TMPFS = ("-t", "tmpfs", "tests")
ASKS = "from worker.namespaces import host_mounts; print(host_mounts())"


@contextmanager
def mounted(point: Path, *options: str) -> Iterator[Path]:
    """Have something mounted at `point` for the time of a `with`: what the options of mount(8) say."""
    made = [folder for folder in (point, *point.parents) if not folder.exists()]
    point.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *options, str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True)
        for folder in made:
            folder.rmdir()


def seen_by(stack: Stack, service: str) -> Path:
    """Return the root folder of a service, as a path of the host."""
    return Path(f"/proc/{stack.show('service', service)['pid']}/root")


def mount_points(stack: Stack, service: str) -> set[str]:
    rows = (seen_by(stack, service).parent / "mountinfo").read_text().splitlines()
    return {row.split()[4] for row in rows}


def btrfs(folder: Path) -> tuple[str, ...]:
    """What mount(8) needs for a btrfs, whose files show another device than the table of mounts does."""
    image = folder / "btrfs"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run([program("mkfs.btrfs"), "--quiet", str(image)], check=True)
    options = ("-t", "btrfs", "-o", "loop", str(image))
    with tempfile.TemporaryDirectory() as point:
        tried = subprocess.run(["mount", *options, point], capture_output=True, text=True, check=False)
        if tried.returncode:
            lacks = "btrfs" if "\tbtrfs\n" not in Path("/proc/filesystems").read_text() else "loop devices"
            pytest.skip(f"this host's kernel lacks {lacks}: {tried.stderr.strip()}")
        subprocess.run(["umount", point], check=True)
    return options


@pytest.fixture(params=["a file system", "a bind", "btrfs"])
def options(request: pytest.FixtureRequest, folder: Path) -> tuple[str, ...]:
    """What mount(8) needs for each kind of mount that a host may have."""
    if request.param == "a bind":
        (folder / "elsewhere").mkdir()
        return ("--bind", str(folder / "elsewhere"))
    return btrfs(folder) if request.param == "btrfs" else TMPFS


def test_a_mount_point_may_have_any_name(folder: Path) -> None:
    """A user who may mount something of his own (FUSE, user namespaces) stops nobody's start or dry run."""
    with mounted(folder / "a\r0 \u2028 \x85b\x0c", *TMPFS) as point:
        assert str(point) not in namespaces.host_mounts(), "CRIU could not name it"
        assert namespaces.is_tmpfs(str(point))
        seen = scan_files.Mounts()
        seen.add(os.getpid())
        assert str(point) in {name for found in seen.points.values() for _, name, _ in found}
        cgroups.home("memory")


def test_what_was_mounted_before_the_start_is_seen(
    stack: Stack, folder: Path, options: tuple[str, ...]
) -> None:
    """And after each restore it is the same: /home, /var or /tmp may well be file systems of their own."""
    with mounted(folder / "data", *options) as data:
        (data / "file").write_text("of the file system")
        server = Redis(folder)
        service = started(stack, server, "-C", str(data))
        for _ in range(2):
            held = server.state()
            image = stack.dump(service)
            (data / "file").write_text("changed meanwhile")
            stack.restore(image)
            assert server.state() == held
            root = seen_by(stack, service)
            assert str(data) in mount_points(stack, service)
            assert (root / data.relative_to("/") / "file").read_text() == "changed meanwhile"
            assert os.readlink(root.parent / "cwd") == str(data)


def test_a_file_system_mounted_later_does_not_disturb(stack: Stack, folder: Path) -> None:
    server = Redis(folder)
    service = started(stack, server)
    held = server.state()
    with mounted(folder / "later", *TMPFS) as later:
        assert str(later) not in mount_points(stack, service)
        stack.restore(stack.dump(service))
        assert server.state() == held
        assert str(later) not in mount_points(stack, service)
        image = stack.dump(service)
    stack.restore(image)
    assert server.state() == held


def test_a_mount_that_is_missing_is_named(stack: Stack, folder: Path, options: tuple[str, ...]) -> None:
    """Then nothing is restored; once it is back the image is as good as before."""
    server = Redis(folder)
    with mounted(folder / "data", *options) as data:
        service = started(stack, server)
        held = server.state()
        image = stack.dump(service)

    answer = stack.mhctl("service", "restore", "--from", image, check=False)
    assert answer.code == 1
    assert str(data) in answer.err
    error = stack.api("GET", "jobs?limit=1").body[0]["error"]
    assert error["code"] == "mount_missing"
    assert str(data) in error["message"]
    assert stack.show("service", service)["status"] == "dumped"

    with mounted(data, *options):
        (data / "file").write_text("of the new one")
        stack.restore(image)
        assert server.state() == held
        assert (seen_by(stack, service) / data.relative_to("/") / "file").read_text() == "of the new one"


def test_what_comes_and_goes_on_a_host_is_not_seen(stack: Stack, folder: Path) -> None:
    """The layers of container engines, and the image pool, which may be on a file system of its own."""
    engine = Path(f"/var/lib/containers/storage/overlay/{folder.name}/merged")
    pool = stack.folder / "state/images"
    server = Redis(folder)
    with mounted(engine, *TMPFS), mounted(pool, "--bind", str(pool)):
        service = started(stack, server)
        points = mount_points(stack, service)
        assert "/proc" in points
        assert not points & {str(engine), str(pool)}
        held = server.state()
        image = stack.dump(service)
    stack.restore(image)
    assert server.state() == held


@contextmanager
def overlay(point: Path, upper: Path) -> Iterator[Path]:
    """Have an overlay, whose files are written into `upper`, mounted at `point` for the time of a `with`."""
    work, lower = (upper.with_name(f"{upper.name}-{name}") for name in ("work", "lower"))
    for each in (upper, work, lower):
        each.mkdir(parents=True)
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    with mounted(point, "-t", "overlay", "-o", layers, "tests"):
        yield point


def test_an_engine_that_keeps_its_data_elsewhere_is_known_by_its_overlays(stack: Stack, folder: Path) -> None:
    """An operator's own overlay is seen, though it looks much like one of theirs."""
    docker, newer = folder / "docker", folder / "newer"
    state = folder / "k3s/containerd/io.containerd.runtime.v2.task/k8s.io/1/rootfs"
    layers = folder / "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
    server = Redis(folder)
    with ExitStack() as kept:
        theirs = [
            kept.enter_context(overlay(docker / "overlay2/1/merged", docker / "overlay2/1/diff")),
            kept.enter_context(overlay(newer / "rootfs/overlayfs/1", layers / "1/fs")),
            kept.enter_context(overlay(state, layers / "2/fs")),
            *(
                kept.enter_context(mounted(data / "containers/1/mounts/shm", *TMPFS))
                for data in (docker, newer)
            ),
        ]
        ours = [
            kept.enter_context(overlay(folder / "own/merged", folder / "own/upper")),
            kept.enter_context(mounted(docker.with_name("docker-2"), *TMPFS)),
        ]
        service = started(stack, server)
        held = server.state()
        image = stack.dump(service, "--leave-running")
        points = mount_points(stack, service)
        assert points.isdisjoint(map(str, theirs))
        assert points.issuperset(map(str, ours))
        stack.dump(service)
        stack.restore(image)
        assert server.state() == held


class NodeWithMounts(Stack):
    """A node with mounts of its own that no service can be shown as they are.

    Below /proc there is a file system, as NFS servers and lxcfs put there. Elsewhere one is below, and one
    right on, a file system that services are not shown, as it is with what autofs mounts.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.below, self.right_on = folder / "not-shown/fs", folder / "covered"
        mounts = [
            *("mount -t tmpfs tests /proc/fs", "mkdir /proc/fs/inner", "mount -t tmpfs tests /proc/fs/inner"),
            *(f"mkdir {path}" for path in (self.below.parent, self.right_on)),
            *(f"mount -t proc tests {path}" for path in (self.below.parent, self.right_on)),
            *(f"mount -t tmpfs tests {path}" for path in (self.below, self.right_on)),
        ]
        script = " && ".join([*mounts, f"exec {shlex.join(self.command)}"])
        self.command = ["unshare", "--mount", "sh", "-c", script]


@pytest.fixture
def node_with_mounts() -> Iterator[NodeWithMounts]:
    with living(NodeWithMounts, "mounts") as made:
        yield made


def test_what_is_mounted_below_a_file_system_of_the_kernels_is_not_seen(
    node_with_mounts: NodeWithMounts, folder: Path
) -> None:
    server = Redis(folder)
    service = started(node_with_mounts, server)
    held = server.state()
    node_with_mounts.restore(node_with_mounts.dump(service))
    assert server.state() == held
    points = mount_points(node_with_mounts, service)
    assert "/proc" in points and str(node_with_mounts.right_on) in points
    assert not points & {"/proc/fs", "/proc/fs/inner"}
    assert not points & {str(node_with_mounts.below), str(node_with_mounts.below.parent)}


def test_a_service_sees_what_it_asked_for(stack: Stack, folder: Path) -> None:
    """Extra binds, of folders and of files, some of them read-only; after a restore still so."""
    for name in ("source", "here", "read-only", "protected"):
        (folder / name).mkdir()
    (folder / "source/file").write_text("of the source")
    (folder / "hosts").write_text("127.0.0.1 example.test\n")
    server = Redis(folder)
    service = started(
        stack,
        server,
        *("-b", f"{folder}/source:{folder}/here"),
        *("-b", f"{folder}/source:{folder}/read-only:ro"),
        *("-b", f"{folder}/hosts:/etc/hosts:ro"),
        *("-b", f"{folder}/protected:{folder}/protected:ro"),
    )

    def look() -> None:
        root = seen_by(stack, service)
        here, read_only = (root / folder.relative_to("/") / name for name in ("here", "read-only"))
        assert (here / "file").read_text() == (read_only / "file").read_text() == "of the source"
        assert (root / "etc/hosts").read_text() == "127.0.0.1 example.test\n"
        (here / "written").write_text("by the service")
        assert (folder / "source/written").read_text() == "by the service"
        protected = root / folder.relative_to("/") / "protected"
        for path in (read_only / "written", root / "etc/hosts", protected / "written"):
            with pytest.raises(OSError, match="Read-only file system"):
                path.write_text("no")
        assert not list((folder / "here").iterdir()), "seen by the service, and by nobody else"

    look()
    for _ in range(2):
        held = server.state()
        stack.restore(stack.dump(service))
        assert server.state() == held
        look()


def test_a_worker_in_a_container_shows_its_services_what_is_mounted_there(folder: Path) -> None:
    """There the root itself is a container engine's overlay."""
    parts = [folder / name for name in ("layers", "root")]
    for part in parts:
        part.mkdir()
    layers, root = map(str, parts)
    layer = f"{layers}/io.containerd.snapshotter.v1/1"
    of_overlay = f"lowerdir=/,upperdir={layer}/fs,workdir={layer}/work"
    steps = (
        ["mount", *TMPFS, layers],
        ["mkdir", "-p", f"{layer}/fs/mounted", f"{layer}/work"],
        ["mount", "-t", "overlay", "-o", of_overlay, "tests", root],
        ["mount", "-t", "proc", "tests", f"{root}/proc"],
        ["mount", *TMPFS, f"{root}/mounted"],
        ["chroot", root, "env", "-C", str(CHECKOUT), sys.executable, "-c", ASKS],
    )
    script = " && ".join(map(shlex.join, steps))
    apart = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(apart, capture_output=True, text=True, check=True)
    assert done.stdout == "['/mounted']\n"
