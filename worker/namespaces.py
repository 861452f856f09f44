"""The namespaces that a service lives in, and the host's file systems that it sees. Knows nothing of CRIU.

The order of the steps is what CRIU can dump: a root that is private (a shared one would let later
mounts of the host appear in the service, and every dump would fail with "unreachable sharing"), a bind of
each file system by itself, a fresh /proc, and pivot_root.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
_MS_RDONLY = 0x1
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_NOEXEC = 0x8
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MS_SLAVE = 0x80000
_MNT_DETACH = 2
TMP = "/tmp"  # noqa: S108 - a service's own, or a mount point
KERNEL_PROBE = "/run/criu.kdat"
"""Where CRIU looks for what it has found out about the kernel."""
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

# File systems that show the kernel rather than files, and that a service needs nothing of.
_SKIPPED_TYPES = {
    "proc", "nsfs", "autofs", "binfmt_misc", "debugfs", "tracefs", "securityfs", "bpf", "pstore", "efivarfs",
    "configfs", "fusectl", "rpc_pipefs", "mqueue", "cgroup", "selinuxfs", "fuse.gvfsd-fuse", "fuse.portal",
}  # fmt: skip
# What container engines and log-in sessions mount comes and goes; a service that saw it could not be
# restored. These are the places where it is by default.
_SKIPPED_FOLDERS = (
    "/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/lxc",
    "/var/lib/lxd", "/var/lib/incus", "/run/docker", "/run/containerd", "/run/containers", "/run/runc",
    "/run/netns", "/run/user", "/run/credentials",
)  # fmt: skip
# Or it has the name of its engine in its path.
_ENGINES_MARKS = ("/io.containerd.", "/kubernetes.io~")

_libc = ctypes.CDLL(None, use_errno=True)


def lines_of(path: str) -> list[str]:
    """Return the lines of a file of /proc; names in it may hold what else a line could end with.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        text = file.read().rstrip("\n")
    return text.split("\n") if text else []


class _Mount:
    """A row of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    __slots__ = ("identity", "options", "parent", "point", "type")

    def __init__(self, row: str) -> None:
        fields, _, rest = row.partition(" - ")
        self.identity, self.parent, _, _, point, *_ = fields.split(" ")
        self.point = unescaped(point)
        self.type, _, self.options = rest.split(" ", 2)

    def is_on_top(self) -> bool:
        """Tell whether this mount is what a look at its point meets: not hidden by another, and reachable.

        The device would not tell: btrfs shows each subvolume's files with a device of its own (btrfs(5)).
        """
        try:
            os.stat(self.point)  # what a user has mounted for himself alone (FUSE) keeps root out
            descriptor = os.open(self.point, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            with open(f"/proc/self/fdinfo/{descriptor}", encoding="utf-8") as file:
                return any(line.split() == ["mnt_id:", self.identity] for line in file)
        finally:
            os.close(descriptor)


def _mounts() -> list[_Mount]:
    return [_Mount(row) for row in lines_of("/proc/self/mountinfo")]


def _engines_folders(mounts: Iterable[_Mount]) -> Iterator[str]:
    """Yield the folders where container engines mount, wherever they keep their data, by what is there now.

    The root of a container is an overlay: DATA/DRIVER/ID/merged with its written layer in DATA/DRIVER/ID/diff
    (Docker, Podman, CRI-O), or DATA/rootfs/DRIVER/ID with its layers in containerd's folders (Docker). Beside
    that are containers' /dev/shm and volumes.
    """
    for mount in mounts:
        if mount.type != "overlay" or mount.point == "/":  # in a container the root itself is one
            continue
        options = (option.partition("=") for option in mount.options.split(","))
        upper = next((unescaped(value) for name, _, value in options if name == "upperdir"), "")
        container, name = os.path.split(mount.point)
        driver, identity = os.path.split(container)
        data = os.path.dirname(driver)
        if name == "merged" and upper.split("/")[-2:] == [identity, "diff"] and driver != "/":
            yield from (driver, f"{driver}-containers", f"{data}/containers", f"{data}/volumes")
        elif any(mark in upper for mark in _ENGINES_MARKS):
            yield from (mount.point, f"{data}/containers", f"{data}/volumes")


def host_mounts(skip: Iterable[str] = ()) -> list[str]:
    """Return the mount points below / that a service started now shall see, parents before children.

    Args:
        skip: folders of our own whose mounts stay out, such as the image pool.
    """
    mounts = {mount.identity: mount for mount in _mounts()}
    folders = {*_SKIPPED_FOLDERS, *skip, *_engines_folders(mounts.values())}

    def skipped(mount: _Mount) -> bool:
        return (
            mount.type in _SKIPPED_TYPES
            or _has_odd_name(mount.point)
            or any(mark in mount.point for mark in _ENGINES_MARKS)
            or any(mount.point == folder or mount.point.startswith(folder + "/") for folder in folders)
        )

    def has_its_folder(mount: _Mount) -> bool:
        """Tell whether the service has the folder to bind it on: not where that is of a skipped mount."""
        if mount.parent == mount.identity:  # as a root's can be
            return True
        above = mounts.get(mount.parent)
        # What lies on the very point of an autofs, say, takes its place.
        if above and above.point == mount.point:
            return has_its_folder(above)
        return above is None or (not skipped(above) and has_its_folder(above))

    return sorted(
        mount.point
        for mount in mounts.values()
        if mount.point != "/" and not skipped(mount) and mount.is_on_top() and has_its_folder(mount)
    )


def _has_odd_name(point: str) -> bool:
    """Tell whether CRIU's `mnt[POINT]:KEY` could not carry this name."""
    return any(character in point for character in "[]:\n") or not point.isprintable()


def unescaped(field: str) -> str:
    """Return a field of mountinfo without its octal escapes (proc_pid_mountinfo(5))."""
    if "\\" not in field:
        return field
    raw = field.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1")
    return raw.decode("utf-8", "surrogateescape")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name (unshare(2)).

    Raises:
        OSError: no right to.
    """
    _check(_libc.unshare(flags), "unshare")


def make_private() -> None:
    """Cut the present mount namespace off from what is mounted on the host from now on."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)


def follow_host() -> None:
    """Let mounts of the host appear in the present namespace, but none of ours appear on the host."""
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)


def is_tmpfs(point: str) -> bool:
    """Tell whether the mount point `point` is a tmpfs; a plain folder of a larger file system is not."""
    return any(
        mount.point == point and mount.type in {"tmpfs", "ramfs"} and mount.is_on_top() for mount in _mounts()
    )


def bind(source: str, target: str) -> None:
    """Show the file or the one file system at `source` also at `target` (mount(2), MS_BIND)."""
    _mount(source, target, None, _MS_BIND)


def cover_with_tmpfs(target: str) -> None:
    """Mount an empty tmpfs over the folder `target`."""
    _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")


def keep_probe(probe: int) -> None:
    """Cover /run with a tmpfs that holds CRIU's kernel probe, read from the descriptor `probe`."""
    cover_with_tmpfs("/run")
    with open(KERNEL_PROBE, "wb") as file:
        file.write(os.pread(probe, os.fstat(probe).st_size, 0))


def lay_root(
    root: str, mounts: Sequence[str], binds: Sequence[tuple[str, str, bool]], private_tmp: int = 0
) -> None:
    """Build a service's view of the host on the empty folder `root` and make it `/`.

    To be called by PID 1 of a new PID namespace, in a new mount namespace.

    Args:
        root: an empty folder of the host.
        mounts: mount points of the host to show at the same place, parents first.
        binds: (source, target, read-only) of what the operator wants to be shown besides.
        private_tmp: bytes that an empty /tmp of the service's own may hold; 0 for the host's.

    Raises:
        OSError: a step failed; its text names the step and the path.
    """
    make_private()
    bind("/", root)
    for point in mounts:
        bind(point, root + point)
    if private_tmp:
        options = f"mode=1777,size={private_tmp}"
        _mount("tmpfs", root + TMP, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    for source, target, read_only in binds:
        bind(source, root + target)
        if read_only:
            _mount(None, root + target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    _mount("proc", root + "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _enter(root)


def lay_bare_root(root: str, shown: Sequence[str], private: Sequence[str]) -> None:
    """Make an empty root on the folder `root`, with some of the host in it to be read, and make it `/`.

    To be called in a new mount namespace and a new PID namespace, for a program of root's: the folders on the
    way to what is shown are for root alone, as is what it makes.

    Args:
        root: a folder of the host that nothing of what follows is in.
        shown: files and folders of the host, links as they are. Sockets in them can be connected to.
        private: folders that are empty, for root alone, can be written to, and are gone at the end.

    Raises:
        OSError: a step failed; its text names the step and the path.
    """
    make_private()
    cover_with_tmpfs(root)
    os.umask(0o077)
    for path in shown:
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            open(target, "x").close()
        bind(path, target)
        same = os.statvfs(target).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        _mount(None, target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | same)
    for path in private:
        os.makedirs(root + path, exist_ok=True)
        _mount("tmpfs", root + path, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=700")
    os.makedirs(root + "/proc")
    # Root may write to /proc/sys without any capability.
    _mount("proc", root + "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY)
    _mount(None, root, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    _enter(root)


def _enter(root: str) -> None:
    os.chdir(root)
    _check(_libc.syscall(_SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2 of the old root")
    os.chdir("/")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    result = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _check(result, f"mount {source or ''} on {target}")


def _check(result: int, step: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
