"""Container engines to compare with: Debian's packages in a folder of their own, and the place they run in.

Nothing is installed: Debian 12's crun was built without CRIU, and an engine that is installed brings units
and settings along that the host did not have before. Knows no containers and times nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from scripts.apt_sources import for_suite, host_sources
from scripts.command import SetupError
from scripts.command import run as command
from scripts.fetch import fetch_packages
from scripts.host import library_folder, os_release
from worker import namespaces

# Debian 13, on 12 as well. Its crun opens libcriu, which starts the `criu` that is first on PATH.
SUITE = "trixie"
PACKAGES = ("podman", "crun", "runc", "libcriu2")
PROGRAMS = ("podman", "conmon", "crun", "runc")
IMAGE = "localhost/miehisto-bench:latest"

# All that the engines start lies below a control group of this name, so that nothing else is ever ended.
GROUP = f"miehisto-bench-{os.getpid()}"
_GROUPS = Path("/sys/fs/cgroup")
# Folders that the engines make and nobody can move; they are emptied by the containers' removal.
_STATE = (Path("/run/crun"), Path("/run/runc"))

# Not needed by a server, and half of the standard library's size.
_LEFT_OUT = shutil.ignore_patterns(
    "test", "idlelib", "tkinter", "config-*", "ensurepip", "lib2to3", "dist-packages", "site-packages"
)

_STORAGE = """[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""
# runc and crun cannot raise a limit without CAP_SYS_RESOURCE, nor count processes without a controller.
_CONTAINERS = """[containers]
default_ulimits = ["nofile={files}:{files}"]
pids_limit = 0
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
conmon_path = ["{folder}/bin/conmon"]
conmon_env_vars = ["PATH={path}"]
helper_binaries_dir = ["{packages}/usr/lib/podman"]
tmp_dir = "{folder}/tmp"
static_dir = "{folder}/static"
volume_path = "{folder}/volumes"
[network]
network_config_dir = "{folder}/networks"
[engine.runtimes]
crun = ["{folder}/bin/crun"]
runc = ["{folder}/bin/runc"]
"""
# CRIU cannot restore a container's version 1 groups below those of version 2; podman has no option for it.
_CRUN = """#!/bin/sh
for word; do
    shift
    set -- "$@" "$word"
    case $word in checkpoint | restore) set -- "$@" --manage-cgroups-mode=ignore ;; esac
done
exec {program} "$@"
"""


def has_mixed_groups() -> bool:
    """Tell whether control groups of version 1 and 2 stand side by side, which crun refuses."""
    return not (_GROUPS / "cgroup.procs").exists() and (_GROUPS / "unified/cgroup.procs").exists()


def keep_kernel_probe(criu: str) -> str:
    """Let CRIU keep its kernel probe in the calling thread's own mount namespace; say so unless it can."""
    if namespaces.is_tmpfs("/run"):
        return ""
    namespaces.cover_with_tmpfs("/run")
    subprocess.run([criu, "check"], capture_output=True, check=False)
    return (
        "This host's /run is no tmpfs, so CRIU would probe the kernel at each call, 30 to 50 ms: "
        "bare CRIU and the engines were given a tmpfs there. Miehistö helps itself."
    )


def enter() -> str:
    """Take the calling thread to where the engines can work; say what that is unless it is the host."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.make_private()
    if not has_mixed_groups():
        return ""
    namespaces.bind(str(_GROUPS / "unified"), str(_GROUPS))
    return (
        "This host has control groups of version 1 and 2 side by side, which crun refuses: "
        "the engines saw version 2 only, and crun got `--manage-cgroups-mode=ignore`."
    )


class Engines:
    """The programs, their settings, and a root file system with the Python that runs this.

    Args:
        folder: an empty one; all that the engines write lies in it.
        criu: the CRIU that they shall use.
        mixed_groups: what `has_mixed_groups` said before the thread entered.
    Raises:
        SetupError: the packages can't be had.
    """

    def __init__(self, folder: Path, criu: str, *, mixed_groups: bool) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.root = folder / "rootfs"
        for name in ("bin", "home/.config/containers", "temporary"):
            (folder / name).mkdir(parents=True)
        path = f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.environment = {
            "PATH": path,
            "LANG": "C.UTF-8",
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "temporary"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }
        packages = _unpack(folder / "packages")
        for name in PROGRAMS:
            (self.programs / name).symlink_to(_program(packages, name))
        (self.programs / "criu").symlink_to(criu)
        files = os.sysconf("SC_OPEN_MAX")
        settings = _CONTAINERS.format(folder=folder, files=files, path=path, packages=packages)
        (folder / "containers.conf").write_text(settings)
        (folder / "storage.conf").write_text(_STORAGE.format(folder=folder))
        policy = folder / "home/.config/containers/policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.versions = {name: self._version(name) for name in ("podman", "crun", "runc")}
        if mixed_groups:
            (self.programs / "crun").unlink()
            (self.programs / "crun").write_text(_CRUN.format(program=_program(packages, "crun")))
            (self.programs / "crun").chmod(0o755)
        _copy_python(self.root)

    def call(self, *words: str, log: Path | None = None) -> str:
        """Run an engine and return what it prints.

        Args:
            log: where the engine writes its errors. Its output goes nowhere then: a container inherits it,
                and CRIU dumps no descriptor of a file that lies outside.
        Raises:
            RuntimeError: it failed, with its own last words.
        """
        into = subprocess.PIPE if log is None else subprocess.DEVNULL
        done = subprocess.run(
            words,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=into,
            stderr=into,
            text=True,
            check=False,
            # Ctrl-C waits until the engine and CRIU below it have done what they are at.
            start_new_session=True,
        )
        if done.returncode:
            said = done.stderr if log is None else log.read_text() if log.exists() else ""
            raise RuntimeError(f"{Path(words[0]).name}: {_why(said) or done.returncode}")
        return (done.stdout or "").strip()

    def import_image(self) -> None:
        """Make the root file system an image of podman's own store; no registry is asked.

        podman keeps two caches for all images of a host; they are hidden from it for the time of this one.
        """
        archive = self.folder / "rootfs.tar"
        command(["tar", "-C", self.root, "-cf", archive, "."], otherwise="The image can't be packed.")
        hide = 'mount -t tmpfs none /var/cache && mount -t tmpfs none /var/lib && exec "$@"'
        try:
            self.call(
                *("unshare", "--mount", "sh", "-c", hide, "sh"),
                *("podman", "import", "--quiet", str(archive), IMAGE),
            )
        finally:
            archive.unlink()

    def _version(self, name: str) -> str:
        said = self.call(name, "--version")
        found = re.search(r"version (\d+(?:\.\d+)*)", said)
        return found[1] if found else ""


def last_error(log: Path) -> str:
    """Return the last thing that CRIU calls an error in its log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    # This one only says that the process has no CAP_SYS_RESOURCE.
    errors = [line for line in lines if "Error (" in line and "RLIMIT_NOFILE" not in line]
    # The very last one says that all has failed.
    return next((line for line in reversed(errors) if "FAILED" not in line), "")


def _why(said: str) -> str:
    """Return an engine's last words, or CRIU's where the engine names its log."""
    named = re.search(r"/\S+\.log", said)
    return (named and last_error(Path(named[0]))) or said.strip().rpartition("\n")[2][-300:]


class Leftovers:
    """What a run of the engines may leave outside its folder. Make it before, `remove` them after."""

    def __init__(self) -> None:
        self._there = {path for path in _STATE if path.exists()}

    def remove(self) -> None:
        """End what still runs in the engines' groups, and take the groups and the empty folders away."""
        for top in [_GROUPS / GROUP, *_GROUPS.glob(f"*/{GROUP}")]:
            if (top / "cgroup.kill").exists():
                (top / "cgroup.kill").write_text("1")
            folders = [Path(name) for name, _, _ in os.walk(top, topdown=False)]
            for folder in folders:
                _remove_group(folder)
        for path in set(_STATE) - self._there:
            with contextlib.suppress(OSError):
                path.rmdir()


def _remove_group(folder: Path) -> None:
    """Remove an empty control group; it is busy until the last process in it has gone."""
    for _ in range(100):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.02)
        else:
            return


def _unpack(work: Path) -> Path:
    """Fetch the packages, make the programs use the libraries beside them, and return where they lie."""
    release = os_release(Path("/etc/os-release").read_text())
    sources = for_suite(host_sources(), release.get("VERSION_CODENAME", ""), SUITE)
    if not sources:
        raise SetupError("/etc/apt names no Debian mirror, so the engines' packages can't be fetched.")
    work.mkdir()
    root = fetch_packages(sources, PACKAGES, work)
    for name in ("cache", "lists"):
        shutil.rmtree(work / name)
    libraries = library_folder(root)
    loader = next(libraries.glob("ld-linux*"))
    for name in PROGRAMS:
        patch: list[str | Path] = ["patchelf", "--set-interpreter", loader, "--force-rpath", "--set-rpath"]
        command([*patch, libraries, _program(root, name)], otherwise=f"{name} can't be pointed at libraries.")
    return root


def _program(packages: Path, name: str) -> Path:
    """Return where the packages keep a program."""
    return next(path for folder in ("bin", "sbin") if (path := packages / "usr" / folder / name).exists())


def _copy_python(root: Path) -> None:
    """Copy to `root` what a Python server needs: the interpreter, its library, theirs, and files to serve."""
    for name in ("proc", "sys", "dev", "etc", "run", "tmp"):
        (root / name).mkdir(parents=True)
    library = Path(sysconfig.get_path("stdlib"))
    python = interpreter()
    shutil.copytree(library, _below(root, library), ignore=_LEFT_OUT)
    shutil.copytree("/usr/share/common-licenses", root / "usr/share/common-licenses")
    files = {python}
    for program in (python, *library.glob("lib-dynload/*.so")):
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        files |= {Path(name) for name in re.findall(r"(/\S+) \(0x", listed)}
    for file in files:
        target = _below(root, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)


def interpreter() -> Path:
    """Return the Python that this one's virtual environment was made from."""
    return Path(sys.executable).resolve()


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
