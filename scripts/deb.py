"""`make deb`: a Debian package for the release that this host runs; knows nothing of where it is installed.

The pinned requirements lie in an environment of the package's own, for Debian has other versions of most; so
the package is bound to the release's Python, and is built once a release.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import sysconfig
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from mhctl import __version__
from scripts import install
from scripts.command import SetupError, run, say
from scripts.host import check_host
from scripts.python_env import COMMANDS, PACKAGES

ROOT = Path(__file__).resolve().parent.parent
PACKAGING = ROOT / "packaging/deb"
DIST = ROOT / "dist"
HOME = Path("/usr/lib/miehisto")
VENV = HOME / "venv"
ENTRIES = {
    "miehistod": "miehistod.main:main",
    "mhctl": "mhctl.main:command",
    "runmh": "worker.runmh.main:main",
}
SCRIPTS = {
    "miehisto-setup": (
        f'#!/bin/sh\nset -e\ncd {HOME}\nset -- /usr/bin/python3 -B -m scripts.setup_package "$@"\n'
        'exec /usr/bin/python3 -B scripts/with_settings.py "$@"\n'
    ),
    install.MANAGE: install.manage_text(HOME, VENV),
}
DOCS = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "deploy/grafana.json", "docs")


def build(work: Path) -> Path:
    """Build the package and return its path.

    Args:
        work: an empty folder for what goes into it.

    Raises:
        SetupError: pip or dpkg-deb refuses, or this environment's Python is not Debian's.
    """
    if Path(sys.base_prefix) != Path("/usr"):
        raise SetupError("The package needs Debian's own Python: make .venv anew with /usr/bin/python3.")
    _code(work)
    _environment(work)
    _commands(work)
    _system(work)
    _normalise(work)
    _control(work)
    DIST.mkdir(exist_ok=True)
    goal = DIST / f"miehisto_{__version__}_{_architecture()}.deb"
    words: list[str | Path] = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z3", "--build", work, goal]
    run(words, env={"SOURCE_DATE_EPOCH": str(_moment())}, otherwise="dpkg-deb builds no package.")
    return goal


def _below(work: Path, path: Path) -> Path:
    return install.below(work, path)


def _architecture() -> str:
    return run(["dpkg", "--print-architecture"], otherwise="dpkg does not run.").strip()


def _moment() -> int:
    """Return the seconds since the epoch that files and the changelog carry: the last change's."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given) if given else int((ROOT / "CHANGELOG.md").stat().st_mtime)


def _code(work: Path) -> None:
    home = _below(work, HOME)
    junk = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, "scripts", "static", "templates"):
        shutil.copytree(ROOT / name, home / name, ignore=junk)
    for name in (
        "audit",
        "demo",
        "lock",
        "setup",
        "deb.py",
        "install.py",
        "licences.py",
        "links.py",
        "manpages.py",
        "reference.py",
        "screenshots.py",
    ):
        (home / "scripts" / name).unlink()
    shutil.copy2(ROOT / "manage.py", home)


def _environment(work: Path) -> None:
    venv = _below(work, VENV)
    packages = venv / f"lib/python{sysconfig.get_python_version()}/site-packages"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    pinned: list[str | Path] = [
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--requirement",
        ROOT / "requirements.txt",
    ]
    words: list[str | Path] = [*pip, "--no-compile", *pinned, "--target", packages]
    run(words, otherwise="pip cannot install the requirements.")
    shutil.rmtree(packages / "bin", ignore_errors=True)  # their first lines name a path of this build
    # Nothing shows these, and they would load programs from a stranger's server.
    for page in (packages / "ninja/templates/ninja").glob("*_cdn.html"):
        page.unlink()
    (packages / "miehisto.pth").write_text(f"{HOME}\n")
    # CRIU and the pycriu of its version come with miehisto-setup.
    (packages / "pycriu").symlink_to("/opt/miehisto/pycriu")
    (venv / "bin").mkdir()
    (venv / "bin/python3").symlink_to("../../../../bin/python3")
    (venv / "bin/python").symlink_to("python3")
    (venv / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {sys.version.split()[0]}\n"
    )


def _commands(work: Path) -> None:
    folder = _below(work, VENV / "bin")
    places = {name: Path("/usr/sbin" if name == "miehistod" else "/usr/bin") for name in COMMANDS}
    for name, place in places.items():
        module, _, function = ENTRIES[name].partition(":")
        text = (
            f"#!{VENV}/bin/python3\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        )
        (folder / name).write_text(text)
        _below(work, place).mkdir(exist_ok=True)
        (_below(work, place) / name).symlink_to(f"../lib/miehisto/venv/bin/{name}")
    for name, text in SCRIPTS.items():
        (_below(work, Path("/usr/sbin")) / name).write_text(text)


def _system(work: Path) -> None:
    # Each release's lintian wants its own; with Debian's merged /usr both are one folder.
    place = "lib/systemd/system" if check_host() == "bookworm" else "usr/lib/systemd/system"
    units = work / place
    units.mkdir(parents=True)
    for name, text in install.unit_texts(Path("/usr/bin")).items():
        (units / name).write_text(text.replace("/usr/bin/miehistod", "/usr/sbin/miehistod"))
    config = work / install.CONFIG
    config.mkdir(parents=True)
    shutil.copy2(install.SETTINGS, config)
    doc = work / "usr/share/doc/miehisto"
    (doc / "examples").mkdir(parents=True)
    shutil.copy2(install.POLICY, doc / "examples/policy.toml")
    for name in DOCS:
        path = ROOT / name
        (doc / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, doc / name)
    (doc / "LICENSE").symlink_to("copyright")  # a page links to it; a second copy lintian would not have
    licence = "".join(f" {line or '.'}\n" for line in (ROOT / "LICENSE").read_text().strip().splitlines()[4:])
    text = (PACKAGING / "copyright").read_text().replace("@LICENCE@\n", licence)
    (doc / "copyright").write_text(text)
    at = format_datetime(datetime.fromtimestamp(_moment(), UTC))
    changes = (
        f"miehisto ({__version__}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n"
        f" -- Miehistö maintainers <miehisto@localhost.localdomain>  {at}\n"
    )
    (doc / "changelog.gz").write_bytes(gzip.compress(changes.encode(), mtime=0))
    _manuals(work)
    overrides = work / "usr/share/lintian/overrides/miehisto"
    overrides.parent.mkdir(parents=True)
    shutil.copy2(PACKAGING / "lintian-overrides", overrides)


def _manuals(work: Path) -> None:
    # In a process of its own: this one runs before Django has settings.
    program = "from scripts.manpages import write; import sys, pathlib; write(pathlib.Path(sys.argv[1]))"
    words: list[str | Path] = [sys.executable, "-B", "-c", program, work / "usr/share/man"]
    environment = {"DJANGO_SETTINGS_MODULE": "miehisto_web.settings", "DATABASE_URL": "sqlite:///:memory:"}
    run(words, cwd=ROOT, env=environment, otherwise="The manual pages cannot be made.")


def _normalise(work: Path) -> None:
    """Set modes, whatever the umask and pip left."""
    runnable = {_below(work, VENV / "bin"), work / "usr/sbin", work / "usr/bin"}
    for path in work.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent in runnable else 0o644)
    (work / install.CONFIG / install.SETTINGS.name).chmod(0o600)
    work.chmod(0o755)


def _control(work: Path) -> None:
    folder = work / "DEBIAN"
    size = sum(path.lstat().st_size for path in work.rglob("*") if path.is_file()) // 1024
    folder.mkdir()
    major, minor = sys.version_info[:2]
    facts = {"VERSION": __version__, "ARCH": _architecture(), "SIZE": str(size)}
    facts |= {"PYTHON": f"{major}.{minor}", "NEXT_PYTHON": f"{major}.{minor + 1}"}
    text = (PACKAGING / "control").read_text()
    for name, value in facts.items():
        text = text.replace(f"@{name}@", value)
    (folder / "control").write_text(text)
    (folder / "conffiles").write_text(f"/{install.CONFIG / install.SETTINGS.name}\n")
    for name in ("postinst", "prerm", "postrm"):
        shutil.copy2(PACKAGING / name, folder)
        (folder / name).chmod(0o755)
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(work)}\n"
        for path in sorted(work.rglob("*"))
        if path.is_file() and not path.is_symlink() and folder not in path.parents
    ]
    (folder / "md5sums").write_text("".join(sums))


def main() -> int:
    """Build the package; the exit status is 0, or 1 after a sentence that says why not."""
    work = ROOT / "build/deb"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        say(f"{build(work)} is built.")
    except (SetupError, OSError) as error:
        say(f"cannot build the package: {error}")
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
