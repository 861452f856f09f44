"""The last step before a part's program, run by path with `python -I -S`: knows no parts, imports no package.

It puts the process where it belongs, all of it from one JSON argument: a mount namespace in which the
checkout can be entered, listening sockets where systemd would pass them, the part's user, and the wish to
end when miehistod ends. Then it becomes the program.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 0x20, 0x1000, 0x4000, 0x80000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
FIRST_LISTEN_FD = 3  # sd_listen_fds(3)

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> None:
    """Calls a C function that answers 0 when it went well. Raises OSError."""
    if getattr(libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). Raises OSError."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    call("mount", *texts, ctypes.c_ulong(flags), None if data is None else data.encode())


def show(tree: str, at: str) -> None:
    """Shows a folder's entries, read-only, at a place whose every parent can be entered.

    Each entry is bound by itself, for the folder may be closed too. What begins with a dot stays away, except
    a virtual environment: a checkout may hold keys, and the site has no use for its history.
    """
    mount("miehisto", at, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=256k")
    with os.scandir(tree) as entries:
        for entry in entries:
            place = os.path.join(at, entry.name)  # noqa: PTH118 (pathlib would double this program's time)
            if entry.name.startswith(".") and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):  # noqa: PTH110, PTH118
                continue
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), place)  # noqa: PTH115, PTH211
                continue
            if entry.is_dir():
                os.mkdir(place)  # noqa: PTH102
            elif entry.is_file():
                os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
            else:
                continue
            mount(entry.path, place, None, MS_BIND | MS_REC)
            mount("none", place, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    mount("none", at, None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def place_sockets(fds: list[int]) -> None:
    """Passes listening sockets as systemd would: from descriptor 3 on, announced to this very process."""
    # First away from the numbers they go to, lest one overwrites another.
    away = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_LISTEN_FD + 2 * len(fds)) for fd in fds]
    for fd in fds:
        os.close(fd)
    for number, fd in enumerate(away):
        os.dup2(fd, FIRST_LISTEN_FD + number, inheritable=True)
    os.environ["LISTEN_FDS"] = str(len(fds))
    os.environ["LISTEN_PID"] = str(os.getpid())


def main() -> None:
    """Becomes the program that the JSON argument describes; its keys are those of launch.Launcher.wrap."""
    wish = json.loads(sys.argv[1])
    os.umask(0o022)
    if wish["views"]:
        call("unshare", CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_SLAVE)
        for tree, at in wish["views"]:
            show(tree, at)
    if wish["listen"]:
        place_sockets(wish["listen"])
    if wish["user"]:
        uid, gid, groups = wish["user"]
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # After the change of user, which clears it (prctl(2)); before the look at the parent, which may be gone.
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != wish["parent"]:
        raise SystemExit("miehistod has ended")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and programs inherit that
    os.chdir(wish["folder"])
    os.execvp(wish["argv"][0], wish["argv"])  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    try:
        main()
    except OSError as failure:
        sys.exit(f"cannot start {json.loads(sys.argv[1])['argv'][0]}: {failure}")
