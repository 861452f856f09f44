"""What the tests of the Debian package share: the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mhctl import __version__
from scripts.host import check_host
from tests.deb.clean import SUITE, Clean
from tests.debian_root import run
from tests.stack import CHECKOUT


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a package of this very checkout, for the release under test."""
    if check_host() != SUITE:
        return _built_elsewhere(tmp_path_factory.mktemp("elsewhere"))
    words = [sys.executable, "-B", "-m", "scripts.deb"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return _package_in(CHECKOUT / "dist")


def _built_elsewhere(folder: Path) -> Path:
    """Build the package as an operator would, in a clean Debian of its release."""
    debian = Clean(folder)
    debian.bring_criu()
    source = debian.root / "srv/miehisto"
    source.mkdir()
    listed = run("git", "-C", CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    (folder / "files").write_text(listed, encoding="utf-8")
    words: list[str | Path] = [
        "tar",
        "-C",
        CHECKOUT,
        "--null",
        "-T",
        folder / "files",
        "-cf",
        folder / "source.tar",
    ]
    run(*words)
    run("tar", "-C", source, "-xf", folder / "source.tar")
    debian.run("apt-get", "-q", "-y", "install", "make")
    debian.run("make", "-C", "/srv/miehisto", "deb")
    return _package_in(source / "dist")


def _package_in(folder: Path) -> Path:
    (found,) = folder.glob(f"miehisto_{__version__}_*.deb")
    return found


@pytest.fixture
def debian(folder: Path) -> Clean:
    """A clean Debian."""
    return Clean(folder)


@pytest.fixture
def stocked(debian: Clean, package: Path) -> Clean:
    """A clean Debian with systemd, the package's file and, in apt's cache, all that this needs."""
    (debian.root / package.name).write_bytes(package.read_bytes())
    debian.run("apt-get", "-q", "-y", "install", "--no-install-recommends", "systemd-sysv", "dbus")
    (debian.root / "usr/sbin/policy-rc.d").unlink()
    debian.run("apt-get", "-q", "-y", "install", "--download-only", f"/{package.name}")
    debian.bring_criu()
    return debian
