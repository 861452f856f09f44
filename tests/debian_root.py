"""Debian in a folder, for tests that need a clean one: made by debootstrap from this host's mirror."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from scripts.apt_sources import for_suite, host_sources
from scripts.host import check_host, install_packages

CACHE = Path(os.environ.get("MIEHISTO_TEST_CACHE", "/var/cache/miehisto-tests"))
"""What takes long to make is kept here from one run to the next."""
_NO_STARTS = "#!/bin/sh\nexit 101\n"


def run(*words: str | Path, timeout: float = 600, **env: str) -> str:
    """Return what a program printed.

    Raises:
        AssertionError: it failed.
    """
    done = subprocess.run(
        words,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, which `make` fills at the first call on a machine."""
    goal = CACHE / name
    if goal.exists():
        return goal
    partial = CACHE / f".{name}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        make(partial)
        partial.rename(goal)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return goal


def bootstrap(suite: str, root: Path) -> None:
    """Make a small Debian with this host's certificates and apt settings, so that it gets where that does."""
    install_packages(["debootstrap"])
    source = next(iter(for_suite(host_sources(), check_host(), suite)), None)
    assert source is not None, "/etc/apt names no Debian mirror"
    run("debootstrap", "--variant=minbase", "--include=ca-certificates", suite, root, source.uri)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    dates = run("apt-config", "dump", "Acquire::Check-Valid-Until")
    (root / "etc/apt/apt.conf.d/99host").write_text(dates)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")


def forbid_starts(root: Path) -> None:
    """Let no package start its daemon, as invoke-rc.d(8) documents."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text(_NO_STARTS)
    policy.chmod(0o755)


def apt(root: Path, *words: str) -> str:
    """Run apt-get in a Debian that lies in a folder."""
    return run("chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", *words)
