"""The host's part of the set-up: is it served, its Debian packages, the site's user; knows no CRIU."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.command import SetupError, run, say, succeeds

RELEASES = {"12": "bookworm", "13": "trixie"}
MACHINES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
OLDEST_PYTHON = (3, 11)
LOCK_TIMEOUT = 300.0
"""Seconds to wait for a program that holds apt's lock, as unattended-upgrades does for minutes."""
_LOCKED = "Could not get lock"

RUNTIME_PACKAGES = (
    "age",
    "ca-certificates",  # pip trusts this file on Debian
    "nftables",
    "passwd",
    "patchelf",
    "python3-venv",
    "redis-server",
    "util-linux",
    "zstd",
)
TEST_PACKAGES = (
    "btrfs-progs",
    "chromium",
    "curl",
    "gcc",
    "git",
    "libc6-dev",
    "lintian",
    "memcached",
    "nodejs",
    "postgresql",
    "procps",
    "systemd",  # systemd-analyze, which needs no systemd that runs
)

# Packages that start a daemon of their own when they are installed. miehistod starts a private Redis, and the
# tests start private servers, so a daemon that this host did not run before must not appear.
_DAEMONS = {
    "redis-server": ("redis-server",),
    "memcached": ("memcached",),
    "postgresql": ("postgresql",),
    "nftables": (),
}
_POLICY = Path("/usr/sbin/policy-rc.d")
_OUR_POLICY = "#!/bin/sh\n# Written for the time of one apt-get by Miehisto's set-up.\nexit 101\n"


def check_host(release_file: Path = Path("/etc/os-release")) -> str:
    """Return the release's code name, or say why this machine is not served.

    Args:
        release_file: names the system, see os-release(5).
    Raises:
        SetupError: not root, not Debian 12 or 13, another processor, Python too old.
    """
    if os.geteuid() != 0:
        raise SetupError(
            "Set-up installs packages and a user, so it must run as root: run `sudo make setup`."
        )
    release = os_release(release_file.read_text() if release_file.exists() else "")
    version = release.get("VERSION_ID", "").split(".")[0]
    if release.get("ID") != "debian" or version not in RELEASES:
        name = release.get("PRETTY_NAME", "an unknown system")
        raise SetupError(
            f"This is {name}; set-up serves Debian 12 and 13 only: use one of them (a container will do)."
        )
    if platform.machine() not in MACHINES:
        raise SetupError(f"The processor is {platform.machine()}; set-up serves x86_64 and aarch64 only.")
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"Python is {platform.python_version()}, not 3.11 or newer: run `apt-get install python3`."
        )
    return RELEASES[version]


def os_release(text: str) -> dict[str, str]:
    """Return the fields of an os-release(5) file, unquoted."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, value in pairs}


def library_folder(root: Path) -> Path:
    """Return the folder below `root` where Debian keeps this processor's libraries."""
    return root / "usr/lib" / MACHINES[platform.machine()]


def missing_packages(names: Iterable[str]) -> list[str]:
    """Return those of the packages that are not installed, by dpkg's word."""
    wanted = list(names)
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev} ${Package}\n"]
    installed = set()
    for line in run(query, otherwise="dpkg cannot list the installed packages.").splitlines():
        state, _, name = line.partition(" ")
        if state.startswith("ii"):
            installed.add(name.strip())
    return [name for name in wanted if name not in installed]


def install_packages(names: Iterable[str]) -> list[str]:
    """Install those of the packages that are missing and return their names; no daemon is started or enabled.

    Raises:
        SetupError: the registry can't be reached, apt refuses, or another program does not let go of it.
    """
    missing = missing_packages(names)
    _take_policy_back()  # of a set-up that was killed: until then no package could start its daemon
    if missing:
        listed = " ".join(missing)
        _apt_get(
            "update",
            "-q",
            otherwise="apt cannot reach the package registry: check /etc/apt and the network.",
        )
        with _no_daemon_starts():
            _apt_get(
                "install",
                "-q",
                "-y",
                "--no-install-recommends",
                *missing,
                otherwise=f"apt cannot install {listed}: check that the mirror can be reached "
                f"(`apt-get update`), then run `apt-get install {listed}`.",
            )
        for daemon in (daemon for name in missing for daemon in _DAEMONS.get(name, ())):
            _keep_from_boot(daemon)
    return missing


def _apt_get(*words: str, otherwise: str) -> None:
    """Run apt-get as `run` does, and wait while another program has apt in its hands.

    apt's own DPkg::Lock::Timeout does not hold for the lock of its lists.
    """
    deadline, waits = time.monotonic() + LOCK_TIMEOUT, False
    while True:
        try:
            run(["apt-get", *words], env={"DEBIAN_FRONTEND": "noninteractive"}, otherwise=otherwise)
        except SetupError as error:
            locked = next((line.strip() for line in str(error).splitlines() if _LOCKED in line), "")
            if not locked:
                raise
            if time.monotonic() > deadline:
                raise SetupError(
                    f"Another program has used apt for {LOCK_TIMEOUT:.0f} s: wait until it has ended, then "
                    f"run the set-up again.\n    {locked}"
                ) from None
            if not waits:
                say(f"  waiting     for another program to leave apt alone: {locked}")
            waits = True
            time.sleep(1)
        else:
            return


@contextmanager
def _no_daemon_starts() -> Iterator[None]:
    """Keep packages from starting daemons, as invoke-rc.d(8) documents; an operator's own policy stays."""
    if _POLICY.exists():
        _POLICY.rename(_kept_policy())
    try:
        _POLICY.write_text(_OUR_POLICY)
        _POLICY.chmod(0o755)
        yield
    finally:
        _take_policy_back()


def _kept_policy() -> Path:
    return _POLICY.with_name("policy-rc.d.before-miehisto")


def _take_policy_back() -> None:
    """Remove our policy, if it is there, and put the operator's own back in its place."""
    if _POLICY.exists() and _POLICY.read_text(errors="replace") == _OUR_POLICY:
        _POLICY.unlink()
    if _kept_policy().exists() and not _POLICY.exists():
        _kept_policy().rename(_POLICY)


def _keep_from_boot(daemon: str) -> None:
    """Undo what the package just did for the next boot."""
    if shutil.which("systemctl"):
        succeeds(["systemctl", "disable", "--quiet", daemon])
    elif shutil.which("update-rc.d"):
        succeeds(["update-rc.d", daemon, "disable"])


def ensure_user(name: str) -> bool:
    """Create the unprivileged system user that the site runs as; return whether it was missing."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        useradd = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        run([*useradd, "--shell", "/usr/sbin/nologin", name], otherwise=f"Cannot create the user {name}.")
        return True
    return False


def as_user(name: str, argv: Iterable[str | Path]) -> list[str | Path]:
    """Return the command that runs `argv` as the user, with no group but its own."""
    return ["setpriv", f"--reuid={name}", f"--regid={name}", "--clear-groups", "--", *argv]
