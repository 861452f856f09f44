"""What this host can and cannot do, as lines that an operator can act on. Knows no rows."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

from worker import cgroups, criu, namespaces, policy, probe
from worker.errors import JobFailed
from worker.paths import Paths


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: a word for it.
        ok: whether it is as it should be.
        needed: whether the node is unfit without it; otherwise only something is slower or refused.
        detail: what was found.
        remedy: what to do if it is not ok.
    """

    name: str
    ok: bool
    needed: bool
    detail: str
    remedy: str


def capabilities(criu_binary: str) -> dict[str, bool]:
    """Return what differs from host to host, quickly: nothing is dumped for it."""
    return {
        "sys_resource": criu.has_sys_resource(),
        "run_is_tmpfs": namespaces.is_tmpfs("/run"),
        "dirty_tracking": _criu_feature(criu_binary, "mem_dirty_track"),
        "limits_memory": cgroups.home("memory") is not None,
        "limits_tasks": cgroups.home("tasks") is not None,
    }


def pool(paths: Paths) -> dict[str, int]:
    """Return the bytes of the file system that holds the images, whole and free to root; {} if unknown."""
    try:
        found = os.statvfs(paths.images)
    except OSError:
        return {}
    return {"pool_size": found.f_blocks * found.f_frsize, "pool_free": found.f_bfree * found.f_frsize}


def _criu_feature(criu_binary: str, name: str) -> bool:
    try:
        asked = subprocess.run(
            [criu_binary, "check", "--feature", name],
            env=criu.ENVIRONMENT,
            capture_output=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return asked.returncode == 0


def rules() -> dict[str, object]:
    """Return what root lets services be on this node, or why nobody can tell."""
    try:
        found = policy.in_force()
    except JobFailed as failure:
        return {"error": failure.message}
    return {"file": found.file, "rules": found.rules()}


def check(paths: Paths, criu_binary: str, tini: str) -> list[Check]:
    """Look at everything that a dump and a restore need; a probe process is really dumped and restored."""
    found = [_is_root(), _has_criu(criu_binary), _has_tini(tini)]
    if all(item.ok for item in found):
        found.append(_probe(criu_binary, tini))
    can = capabilities(criu_binary)
    return [
        *found,
        _pool(paths),
        private_folders(paths),
        _policy(),
        *(_limits(name) for name in ("memory", "tasks")),
        Check(
            "firewall",
            shutil.which("nft") is not None,
            False,
            "nft, with which connections are held while a service is away",
            "Install it (apt-get install nftables).",
        ),
        Check(
            "CAP_SYS_RESOURCE",
            can["sys_resource"],
            False,
            "needed to dump a service whose processes have several users",
            "Give the worker CAP_SYS_RESOURCE; services of one user are dumped without it.",
        ),
        Check(
            "tmpfs on /run",
            can["run_is_tmpfs"],
            False,
            "where CRIU keeps what it has found out about the kernel",
            "Mount a tmpfs on /run; Miehistö gives CRIU one of its own meanwhile.",
        ),
        Check(
            "dirty tracking",
            can["dirty_tracking"],
            False,
            "CONFIG_MEM_SOFT_DIRTY, which a dump in rounds would need",
            "Nothing needs it yet.",
        ),
    ]


def _is_root() -> Check:
    remedy = "Run miehistod, or this command, as root."
    return Check("root", os.geteuid() == 0, True, f"user id {os.geteuid()}", remedy)


def _has_criu(binary: str) -> Check:
    try:
        return Check("CRIU", True, True, f"{criu.version(binary)} at {binary}", "")
    except JobFailed as failure:
        return Check("CRIU", False, True, failure.message, failure.remedy)


def _has_tini(tini: str) -> Check:
    good = bool(tini) and os.access(tini, os.X_OK)
    return Check("tini", good, True, tini or "none found", "Run `make setup`, or name one in MIEHISTO_TINI.")


def _probe(criu_binary: str, tini: str) -> Check:
    try:
        seconds = probe.run(criu_binary, tini)
    except JobFailed as failure:
        detail = " ".join([failure.message, *failure.lines[-3:]])
        return Check("dump and restore", False, True, detail, failure.remedy)
    return Check("dump and restore", True, True, f"a probe was dumped and restored in {seconds:.2f} s", "")


def _limits(name: str) -> Check:
    place = cgroups.home(name)
    detail = f"in {place.folder}, version {place.version}" if place else "no control group can be made for it"
    remedy = (
        "Mount control groups with memory and pids where the worker may write (a container: privileged, with"
        " a control group namespace of its own)."
    )
    return Check(f"limits of {name}", place is not None, False, detail, remedy)


def _policy() -> Check:
    try:
        found = policy.in_force()
    except JobFailed as failure:
        return Check("policy", False, True, failure.message, failure.remedy)
    if not found.file:
        return Check("policy", True, True, f"no {policy.DEFAULT}: services may be anything", "")
    said = ", ".join(f"{name} = {json.dumps(value)}" for name, value in found.rules().items())
    return Check("policy", True, True, f"{found.file}: {said or 'nothing is forbidden'}", "")


def _pool(paths: Paths) -> Check:
    try:
        free = os.statvfs(paths.images)
    except OSError as error:
        remedy = "Start miehistod, which makes it, or look at MIEHISTO_STATE_DIR."
        return Check("image pool", False, True, f"{paths.images}: {error.strerror}", remedy)
    gibibytes = free.f_bavail * free.f_frsize / 2**30
    writable = os.access(Path(paths.images), os.W_OK)
    return Check(
        "image pool",
        writable and gibibytes > 0.1,
        True,
        f"{gibibytes:.1f} GiB free in {paths.images}",
        "Delete images that are no longer needed, or enlarge the file system.",
    )


def private_folders(paths: Paths) -> Check:
    """Tell whether only root can reach what holds memory and environments: images, archives, specs."""
    open_to_others = []
    for folder in (paths.images, paths.archives, paths.state_dir / "services"):
        try:
            found = folder.stat()
        except FileNotFoundError:
            continue
        if found.st_uid != 0 or stat.S_IMODE(found.st_mode) & 0o077:
            open_to_others.append(f"{folder} (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o})")
    return Check(
        "private folders",
        not open_to_others,
        False,
        f"others may read what only root should: {', '.join(open_to_others)}"
        if open_to_others
        else "only root reads images, archives and specs",
        "Restart miehistod, which mends it; take the passwords in those images for known.",
    )
