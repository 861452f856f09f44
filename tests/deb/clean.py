"""A clean Debian in a folder: commands run in it, on its own, as if it were the host's root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from scripts.host import check_host
from tests.debian_root import apt, bootstrap, forbid_starts, kept, run

SUITE = os.environ.get("DEBIAN_SUITE") or check_host()
"""The Debian release that the package is built for and installed into: this host's, unless told otherwise."""

# What is mounted is seen by this process tree alone. CRIU wants a root that is a mount, so no chroot will do.
_INSIDE = """
set -e
[ -z "$ALONE" ] || ip link set lo up
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
for place in sys dev; do mount --rbind "/$place" "$ROOT/$place"; done
mount -t tmpfs tmpfs "$ROOT/run"
mkdir -p "$ROOT/old"
cd "$ROOT"
pivot_root . old
umount -l /old
rmdir /old
exec "$@"
"""


class Clean:
    """A clean Debian of the release under test.

    Args:
        folder: where it shall lie.
    """

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.root = folder / "root"
        below = kept(f"debian-{SUITE}", _make)
        run("cp", "--archive", "--reflink=auto", below / "root", self.root)

    def run(self, *words: str, alone: bool = False) -> str:
        """Run a command in it and return what it printed, its errors too.

        Args:
            alone: without the host's network, where port and firewall may be taken.
        """
        unshare = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            *(["--net", "--ipc"] if alone else []),
        ]
        done = subprocess.run(
            [*unshare, "sh", "-c", _INSIDE, "inside", *words],
            env={
                "ROOT": str(self.root),
                "ALONE": "yes" if alone else "",
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "DEBIAN_FRONTEND": "noninteractive",
                **{name: text for name, text in os.environ.items() if name.lower().endswith("_proxy")},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}"
        return done.stdout

    def bring_criu(self) -> None:
        """Put the host's CRIU into it, as if it had been fetched; or Debian's, if the host uses that."""
        criu = Path("/opt/miehisto/bin/criu").resolve()
        if criu.is_relative_to("/opt/miehisto"):
            tree = criu.parent.parent
            shutil.copytree(tree, self.root / tree.relative_to("/"), symlinks=True)
        else:  # the release's own one works on this kernel
            self.run("apt-get", "-q", "-y", "install", "--no-install-recommends", "criu", "python3-pycriu")


def _make(folder: Path) -> None:
    root = folder / "root"
    bootstrap(SUITE, root)
    forbid_starts(root)
    apt(root, "update")
