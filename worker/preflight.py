"""What is looked at before anything is frozen or restored, so that a job that cannot work changes nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import carry, cgroups, criu, held, manifest, namespaces, process, sockdiag
from worker import spec as specs
from worker.carry import Data
from worker.criu import Account, has_sys_resource
from worker.errors import JobFailed
from worker.paths import Paths
from worker.places import on_host
from worker.policy import Policy
from worker.runmh.launch import binds_of
from worker.runmh.privileges import numbers
from worker.supervision import Running

# Room that the pool keeps beside the memory itself, for CRIU's other files and the manifest.
_RESERVE = 16 * 1024 * 1024
_FILES, _FILES_EACH = 64, 16


def account_for_dump(init: int) -> Account | None:
    """Return the user and group that CRIU must run as to dump the tree of `init`; None for root's own.

    Without CAP_SYS_RESOURCE prlimit(2) wants that all ids of the two processes are the same.

    Raises:
        JobFailed: this host lacks CAP_SYS_RESOURCE and the tree has several, so CRIU would fail.
    """
    if has_sys_resource():
        return None
    accounts: set[Account] = set()
    for pid in process.tree(init):
        status = process.status(pid)
        if status:
            accounts.update(
                Account(int(uid), int(gid))
                for uid, gid in zip(status["Uid"].split(), status["Gid"].split(), strict=True)
            )
    if accounts <= {Account(0, 0)}:
        return None
    if len(accounts) == 1:
        return accounts.pop()
    found = ", ".join(f"{uid}:{gid}" for uid, gid in sorted(accounts))
    raise JobFailed(
        "needs_sys_resource",
        f"The service's processes belong to several users or groups ({found}), and this host lacks"
        " CAP_SYS_RESOURCE, without which CRIU cannot dump them.",
        "Give the worker CAP_SYS_RESOURCE, or let the whole service run as one user and group.",
    )


def check_insides(image: Path, policy: Policy) -> None:
    """Check what the processes in an image are, whatever its manifest says of them.

    Raises:
        JobFailed: root's policy forbids it, or the image is damaged.
    """
    if not policy.restricts_insides:
        return
    for path in sorted(image.glob("core-*.img")):
        try:
            owners = [entry["thread_core"]["creds"] for entry in criu.entries(path)]
            if not owners:
                raise ValueError("it is empty")  # of whom CRIU makes something of it nobody knows who it is
            accounts = {
                (owner[user], group)
                for owner in owners
                for user in ("uid", "euid", "suid")
                for group in (owner["gid"], owner["egid"], owner["sgid"], *owner.get("groups", []))
            }
            # The bounding set is what they could have; what they have may be more, if they made it smaller.
            sets = [owner[kind] for owner in owners for kind in ("cap_prm", "cap_inh", "cap_bnd")]
            capabilities = frozenset[int]().union(*(numbers(low | high << 32) for low, high in sets))
            may_gain = not all(owner.get("no_new_privs") for owner in owners)
        except Exception as error:  # pycriu says in many ways that a file is not what it should be
            raise manifest.damaged(image, [f"{path.name}: {type(error).__name__}"]) from None
        policy.check_process(accounts, capabilities, may_gain=may_gain)


def check_limits(limits: dict[str, int]) -> None:
    """Refuse limits that this host has no means to set: a service that is not limited is none that is.

    Raises:
        JobFailed: names what is missing.
    """
    missing = cgroups.missing(limits)
    if missing:
        raise JobFailed(
            "limit_unavailable",
            f"This host cannot limit the {' and the '.join(missing)} of a service: it has no control group"
            " for that which the worker could use.",
            "Ask for no limit, or mount control groups with memory and pids where the worker may write (a"
            " container: privileged, with a control group namespace of its own).",
        )


def check_data(
    paths: Paths, service_id: str, running: Running, asked: Sequence[str], policy: Policy
) -> tuple[Data, int]:
    """Return what of the disk belongs to a service, and the bytes of it that its image will hold.

    Args:
        asked: what is to be carried besides what the service's spec names.

    Raises:
        JobFailed: a path may not be looked at, or is not there.
    """
    spec = specs.read(paths.spec(service_id))
    carried = carry.outermost([*spec.get("carry", []), *asked])
    policy.check_data([on_host(running.mounts, path) for path in carried])
    owner = int(process.status(running.init.pid).get("Uid", "0").split()[0])
    size = 0
    for path in dict.fromkeys([*spec.get("data", []), *carried]):
        found = carry.check(running, path, owner, forbidden=paths)
        size += found if path in carried else 0
    return Data(spec.get("data", []), carried, owner), size


def check_room(pool: Path, init: int, most: int | None = None, data: int = 0, claimed: int = 0) -> int:
    """Refuse a dump that the pool has no room for.

    Args:
        most: bytes that all images together may take, by root's policy.
        data: bytes that are carried.
        claimed: bytes that other dumps and imports under way will need.

    Returns:
        The bytes that the dump may need.

    Raises:
        JobFailed: less is free, or allowed, than the service's memory, its deleted files that are still open,
            and its data may need.
    """
    available = room_in(pool, most) - claimed
    pids = list(process.tree(init))
    # CRIU writes some files for all, and some for each process.
    inodes = os.statvfs(pool)
    if inodes.f_files and inodes.f_favail < _FILES + _FILES_EACH * len(pids):
        raise JobFailed(
            "pool_full",
            f"The file system of the image pool can take only {inodes.f_favail} more files.",
            "Delete images that are no longer needed (mhctl image list), or other small files there.",
        )
    beside = _RESERVE + data + sum(held.deleted(pids).values())
    # The quick sum counts shared memory once a process; the exact one is asked for only if it matters.
    quickly = beside + sum(map(_resident, pids))
    if available >= quickly:
        return quickly
    needed = beside + sum(map(memory, pids))
    if available < needed:
        raise no_room("dump", available, needed, pool, most)
    return needed


def no_room(what: str, available: int, needed: int, pool: Path, most: int | None) -> JobFailed:
    """Return the failure that says that something does not fit into the image pool.

    Args:
        what: what was asked for.
        available, needed: bytes.
        pool, most: as for `room_in`.
    """
    return JobFailed(
        "pool_full",
        f"The image pool has {max(available, 0) / 2**20:.0f} MiB free;"
        f" this {what} needs about {needed / 2**20:.0f} MiB.",
        "Delete images that are no longer needed (mhctl image list),"
        f" or enlarge the file system of {pool}"
        + ("." if most is None else f" and the {most / 2**20:.0f} MiB that this node's policy allows."),
    )


def room_in(pool: Path, most: int | None) -> int:
    """Return the bytes that may still be written into the image pool.

    Args:
        most: bytes that all images together may take, by root's policy; None for no such rule.
    """
    free = os.statvfs(pool)
    available = free.f_bavail * free.f_frsize
    return available if most is None else min(available, most - size_of(pool))


def size_of(pool: Path) -> int:
    """Return the bytes that the files of a pool take on its disk, those of unfinished images too."""
    taken = 0
    for folder, _, files in os.walk(pool):
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # an image that is deleted meanwhile
                taken += os.lstat(f"{folder}/{name}").st_blocks * 512
    return taken


def _resident(pid: int) -> int:
    status = process.status(pid)
    return sum(int(status.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssShmem", "VmSwap"))


def memory(pid: int) -> int:
    """Return the bytes of memory of `pid` that an image would hold, shared memory divided among its users.

    CRIU writes the private pages of each process, those too that a child still shares with its parent.
    """
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    wanted = ("Anonymous:", "Pss_Shmem:", "Swap:")
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith(wanted))


def check_mounts(facts: dict[str, Any]) -> None:
    """Refuse a restore on a host where a file system or folder that the service saw is missing.

    Args:
        facts: the image's manifest.

    Raises:
        JobFailed: names what is missing.
    """
    missing = []
    # Not by os.path.ismount: it doesn't know a bind of a folder from the folder.
    mounted = set(namespaces.host_mounts())
    asked_for = {target for _, target, _ in binds_of(facts["spec"])}
    for target, source in facts["mounts"]:
        if target not in asked_for and source not in mounted:
            missing.append(f"{source}: no file system is mounted there")
        elif not Path(source).exists():
            missing.append(f"{source}: does not exist")
    if missing:
        raise JobFailed(
            "mount_missing",
            f"The service saw a file system that this host does not have now: {missing[0]}"
            + (f", and {len(missing) - 1} more." if len(missing) > 1 else "."),
            "Mount it again, then restore.",
            missing,
        )


def holder_of_port(port: int) -> str:
    """Return who listens on TCP or UDP `port` of this host, such as ``nginx (PID 812)``; empty if nobody."""
    listeners = {each.inode for each in sockdiag.inet(listening_only=True) if each.port == port}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if listeners else ():
        if listeners & process.sockets(pid):
            return f"{process.status(pid).get('Name', '?')} (PID {pid})"
    return ""
