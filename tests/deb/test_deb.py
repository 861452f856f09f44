"""The Debian package: sound by lintian's word, installed into a clean Debian, used, removed, purged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhctl import __version__
from scripts.host import check_host, install_packages
from tests.debian_root import apt, bootstrap, forbid_starts, kept, run
from tests.stack import CHECKOUT

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

_A_NODE = """
miehistod >/run/miehistod.log 2>&1 &
for _ in $(seq 600); do grep -q ^ready /run/miehistod.log && break; sleep 0.1; done
service=$(mhctl service create --restore-on-boot sleep 3600) &&
    image=$(basename "$(mhctl service drain)") &&
    mhctl service restore --from "$image" &&
    mhctl service list &&
    mhctl service delete --stop "$service" >/dev/null || cat /run/miehistod.log
kill $!
wait
"""


@pytest.fixture(scope="module")
def package() -> Path:
    """Return a package of this very checkout."""
    words = [sys.executable, "-B", "-m", "scripts.deb"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (CHECKOUT / "dist").glob(f"miehisto_{__version__}_*.deb")
    return found


class Clean:
    """A clean Debian of this host's release.

    Args:
        folder: where it shall lie.
    """

    def __init__(self, folder: Path) -> None:
        suite = check_host()
        self.root = folder / "root"
        below = kept(f"debian-{suite}", lambda made: _make(suite, made))
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
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}"
        return done.stdout


def _make(suite: str, folder: Path) -> None:
    root = folder / "root"
    bootstrap(suite, root)
    forbid_starts(root)
    apt(root, "update")


@pytest.fixture
def debian(folder: Path) -> Iterator[Clean]:
    """A clean Debian with the package's file in it."""
    folder.chmod(0o755)
    yield Clean(folder)


def test_lintian_finds_nothing(package: Path) -> None:
    install_packages(["lintian"])
    said = run("lintian", "--allow-root", "--fail-on", "error,warning", package)
    assert "E: " not in said and "W: " not in said


def test_it_is_installed_used_removed_and_purged(package: Path, debian: Clean) -> None:
    (debian.root / package.name).write_bytes(package.read_bytes())
    said = debian.run("apt-get", "-q", "-y", "install", "--no-install-recommends", f"/{package.name}")
    assert "miehisto-setup" in said, "the operator is told what is left to be done"
    assert "not prepared" not in said

    state = debian.root / "var/lib/miehisto"
    assert (state / "database/db.sqlite3").exists() and (state / "admin_password").exists()
    assert (debian.root / "etc/systemd/system/multi-user.target.wants/miehisto.target").is_symlink()
    assert list((debian.root / "opt/miehisto/bin").glob("tini-*"))
    assert debian.run("mhctl", "--version") == f"mhctl {__version__}\n"
    debian.run("miehistod", "--prepare")
    assert "miehisto.E" not in debian.run("miehisto-manage", "check")
    assert debian.run("miehisto-manage", "showmigrations", "--plan").count("[ ]") == 0
    # The site's user can read and start all of it.
    debian.run("setpriv", "--reuid=miehisto", "--regid=miehisto", "--clear-groups", "mhctl", "--help")

    criu = Path("/opt/miehisto/bin/criu").resolve()
    if criu.is_relative_to("/opt/miehisto"):  # as if it had been fetched already
        tree = criu.parent.parent
        shutil.copytree(tree, debian.root / tree.relative_to("/"), symlinks=True)
    else:  # this release's own one works on this kernel
        debian.run("apt-get", "-q", "-y", "install", "--no-install-recommends", "criu", "python3-pycriu")
    assert "dumped and restored the probe" in debian.run("miehisto-setup", alone=True)
    said = debian.run("sh", "-c", _A_NODE, alone=True)
    assert said.count("sleep 3600") == 1 and "OBJECT_ID" in said, said

    password = (state / "admin_password").read_text()
    debian.run("apt-get", "-q", "-y", "install", "--reinstall", f"/{package.name}")
    assert (state / "admin_password").read_text() == password

    debian.run("apt-get", "-q", "-y", "remove", "miehisto")
    assert (state / "database/db.sqlite3").exists(), "only a purge removes what is kept"
    assert (debian.root / "etc/miehisto/miehisto.env").exists()
    assert not (debian.root / "usr/lib/miehisto").exists()

    debian.run("apt-get", "-q", "-y", "purge", "miehisto")
    left = [
        str(path.relative_to(debian.root))
        for path in debian.root.rglob("*miehisto*")
        if not path.name.startswith(package.name) and not path.is_char_device()
    ]
    assert left == [], "a purge leaves nothing but the user"
    assert debian.run("getent", "passwd", "miehisto")
