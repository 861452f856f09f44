"""The Debian package: sound by lintian's word, installed into a clean Debian, used, removed, purged."""

from __future__ import annotations

import shutil
from pathlib import Path

from mhctl import __version__
from scripts.host import install_packages
from tests.deb.clean import Clean
from tests.debian_root import run
from tests.pages import Page
from tests.stack import CHECKOUT
from tests.test_reference import LINK

OLDER = "0.0.1"

# As an upgrade under systemd does it: the parts end, services run on, the parts start.
_AN_UPGRADE = """
set -e
start() {
    miehistod >/run/miehistod.log 2>&1 &
    daemon=$!
    for _ in $(seq 1200); do grep -q ^ready /run/miehistod.log && return; sleep 0.1; done
    cat /run/miehistod.log
    exit 1
}
end() { kill $daemon; wait $daemon || true; }
start
mhctl --version
mhctl service create --name running sleep 3600
mhctl service create --name stored --restore-on-boot sleep 3601
image=$(basename "$(mhctl service drain)")
mhctl service list >/run/before
end
miehisto-manage migrate -v 0 services 0012  # an older version knows less
dpkg -i "$1"
if miehisto-manage showmigrations --plan | grep -F "[ ]"; then exit 1; fi
start
mhctl --version
eval "$2"
mhctl service list | diff /run/before -
mhctl service restore --from "$image"
mhctl service list
mhctl service delete --stop running
mhctl service delete --stop stored
end
echo upgraded
"""
PAGE = Page(CHECKOUT / "docs/install.md")


def test_lintian_finds_nothing(package: Path) -> None:
    install_packages(["lintian"])
    said = run("lintian", "--allow-root", "--fail-on", "error,warning", package)
    assert "E: " not in said and "W: " not in said


def older(package: Path, work: Path, root: Path) -> None:
    """Put the package into a root's folder /older as one of a version before it; the code is the same."""
    run("dpkg-deb", "-R", package, work / "older")
    for name in ("DEBIAN/control", "usr/lib/miehisto/mhctl/__init__.py"):
        path = work / "older" / name
        text = path.read_text(encoding="utf-8")
        assert __version__ in text
        path.write_text(text.replace(__version__, OLDER, 1), encoding="utf-8")
    (root / "older").mkdir()
    goal = root / "older" / package.name.replace(__version__, OLDER)
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", work / "older", goal)


def test_it_is_installed_upgraded_removed_and_purged(package: Path, debian: Clean, tmp_path: Path) -> None:
    (debian.root / package.name).write_bytes(package.read_bytes())
    older(package, tmp_path, debian.root)
    (debian.root / "etc/apt/apt.conf.d/98yes").write_text('APT::Get::Assume-Yes "true";\n')
    (typed,) = [text.splitlines() for _, text in PAGE.run_by if text.startswith("apt install")]
    install, set_up, look = typed
    said = debian.run("sh", "-c", f"cd /older && {install}")
    shutil.rmtree(debian.root / "older")
    assert "miehisto-setup" in said, "the operator is told what is left to be done"
    assert "not prepared" not in said

    doc = debian.root / "usr/share/doc/miehisto"
    for page in doc.rglob("*.md"):
        for name, _ in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / name).resolve() if name else page
            assert target.exists() and target.is_relative_to(doc), f"{page}: {name} is not there"

    state = debian.root / "var/lib/miehisto"
    assert (state / "database/db.sqlite3").exists() and (state / "admin_password").exists()
    assert (debian.root / "etc/systemd/system/multi-user.target.wants/miehisto.target").is_symlink()
    assert list((debian.root / "opt/miehisto/bin").glob("tini-*"))
    assert debian.run("mhctl", "--version") == f"mhctl {OLDER}\n"
    debian.run("miehistod", "--prepare")
    assert "miehisto.E" not in debian.run("miehisto-manage", "check")
    assert debian.run("miehisto-manage", "showmigrations", "--plan").count("[ ]") == 0
    # The site's user can read and start all of it.
    debian.run("setpriv", "--reuid=miehisto", "--regid=miehisto", "--clear-groups", "mhctl", "--help")

    debian.bring_criu()
    assert "dumped and restored the probe" in debian.run(*set_up.split(), alone=True)

    password = (state / "admin_password").read_text()
    said = debian.run("sh", "-c", _AN_UPGRADE, "upgrade", f"/{package.name}", look, alone=True)
    assert said.endswith("upgraded\n") and f"mhctl {__version__}\n" in said, said
    assert said.count("sleep 3600") == said.count("sleep 3601") == 1, said
    assert "dump and restore ok" in said, said
    assert (state / "admin_password").read_text() == password

    debian.run("apt-get", "-q", "-y", "remove", "miehisto")
    assert (state / "database/db.sqlite3").exists(), "only a purge removes what is kept"
    assert (debian.root / "etc/miehisto/miehisto.env").exists()
    assert not (debian.root / "usr/lib/miehisto").exists()

    (debian.root / "etc/miehisto/policy.toml").write_text("root = false\n")
    mount = "mount --bind /var/lib/miehisto /var/lib/miehisto"
    debian.run("sh", "-ec", f"{mount}\napt-get -q -y purge miehisto")
    left = [
        str(path.relative_to(debian.root))
        for path in debian.root.rglob("*miehisto*")
        if not path.name.startswith(package.name) and not path.is_char_device()
    ]
    assert left == ["var/lib/miehisto"], "a purge leaves a mount point, and the user"
    assert not any((debian.root / left[0]).iterdir())
    assert debian.run("getent", "passwd", "miehisto")
