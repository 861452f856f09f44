"""The Debian package: sound by lintian's word, installed into a clean Debian, used, removed, purged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhctl import __version__
from scripts.host import check_host, install_packages
from tests.debian_root import apt, bootstrap, forbid_starts, kept, run
from tests.stack import CHECKOUT

# What is mounted is seen by this process tree alone.
_INSIDE = """
set -e
mount --make-rprivate /
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/run"
exec chroot "$ROOT" "$@"
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

    def run(self, *words: str) -> str:
        """Run a command in it and return what it printed, its errors too."""
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _INSIDE, "inside", *words],
            env={
                "ROOT": str(self.root),
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
