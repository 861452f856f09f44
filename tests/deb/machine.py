"""A Debian in a folder booted by its own systemd: PID 1 of namespaces, as systemd's container interface says.

See systemd.io/CONTAINER_INTERFACE. The host's control groups, kernel settings and network stay as they are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.stack import eventually

PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}

# A hierarchy of version 2 can be mounted wherever one is; what is mounted here goes with its namespace.
_IN_GROUPS = """
set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 "$ROOT/mnt"
cd "$ROOT/mnt"
"""
_ENTER = f"""{_IN_GROUPS}
mkdir "$GROUP"
echo $$ >"$GROUP/cgroup.procs"
cd /
umount "$ROOT/mnt"
exec unshare --mount --pid --ipc --uts --net --cgroup --fork --kill-child sh -c "$BOOT"
"""
_LEAVE = f'{_IN_GROUPS} [ ! -d "$GROUP" ] || find "$GROUP" -depth -type d -exec rmdir {{}} +'
# /proc/sys is not writable, or systemd-sysctl would change the host's kernel.
_BOOT = """
set -e
hostname debian
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
cd "$ROOT"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p old
pivot_root . old
umount -l /old
rmdir /old
exec env -i container=miehisto-tests PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init
"""


class Shell(ABC):
    """A machine to type commands in; each kind has its own way into it."""

    @abstractmethod
    def way(self, words: tuple[str, ...]) -> list[str]:
        """Return the command of this host that runs one in there, as its root."""

    def done(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it; what it printed has its errors too."""
        return subprocess.run(
            self.way(words),
            env=PLAIN,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )

    def run(self, *words: str) -> str:
        """Run a command in it and return what it printed.

        Raises:
            AssertionError: it failed.
        """
        done = self.done(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}"
        return done.stdout

    def fails(self, *words: str) -> str:
        """Run a command that is to fail and return what it printed."""
        done = self.done(*words)
        assert done.returncode != 0, f"{words}\n{done.stdout[-4000:]}"
        return done.stdout


class Machine(Shell):
    """A Debian with systemd in it.

    Args:
        root: where it lies. It has no network but its own loopback.
    """

    def __init__(self, root: Path) -> None:
        self._environment = PLAIN | {
            "ROOT": str(root),
            "GROUP": f"miehisto-tests-{uuid4().hex}",
            "BOOT": _BOOT,
        }
        self._outside: subprocess.Popen[str] | None = None
        self._init = 0

    def boot(self) -> None:
        """Switch it on; returns when systemd has started all that it was to start.

        A host that does not let it skips the test, but with MUST_BOOT in the environment fails it.
        """
        self._outside = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _ENTER],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._init = eventually(self._systemd, 60)
        if not self._init:
            refuse = pytest.fail if os.environ.get("MUST_BOOT") else pytest.skip
            refuse(f"this host boots no systemd in namespaces: {self.end()}")
        # It refuses to talk for a moment, and says "degraded" when a unit, any one, has failed.
        assert eventually(lambda: self._state() in {"running", "degraded"}, 120), self._state()

    def _systemd(self) -> int:
        assert self._outside is not None
        if self._outside.poll() is not None:
            return 0
        outside = self._outside.pid
        for child in Path(f"/proc/{outside}/task/{outside}/children").read_text(encoding="ascii").split():
            if Path(f"/proc/{child}/comm").read_text(encoding="ascii") == "systemd\n":
                return int(child)
        return 0

    def _state(self) -> str:
        return self.done("systemctl", "is-system-running").stdout.strip()

    def way(self, words: tuple[str, ...]) -> list[str]:
        namespaces = ("--mount", "--pid", "--ipc", "--uts", "--net", "--cgroup", "--root", "--wd")
        return ["nsenter", "--target", str(self._init), *namespaces, *words]

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Let systemd answer nobody for the time of a `with`; all others run."""
        os.kill(self._init, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._init, signal.SIGCONT)

    def shut_down(self, verb: str) -> None:
        """Have systemd end everything, as at a shutdown, and itself.

        Args:
            verb: ``reboot`` or ``poweroff``. It must be booted again after both.
        """
        assert self._outside is not None
        self.done("systemctl", verb)
        self._outside.wait(300)
        self.end()

    def end(self) -> str:
        """Switch it off, if it is on, and take its control groups away; return what was said."""
        said = ""
        if self._outside is not None:
            with contextlib.suppress(ProcessLookupError):
                if self._outside.poll() is None and self._init:
                    os.kill(self._init, signal.SIGKILL)
                elif self._outside.poll() is None:
                    self._outside.kill()
            said = self._outside.communicate()[0]
            self._outside, self._init = None, 0
        eventually(self._groups_are_gone)
        return said

    def _groups_are_gone(self) -> bool:
        words = ["unshare", "--mount", "sh", "-c", _LEAVE]
        return subprocess.run(words, env=self._environment, capture_output=True, check=False).returncode == 0
