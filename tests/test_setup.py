"""Set-up: what it reads from apt, which CRIU it takes, what it links, that a second run changes nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from scripts import host, links
from scripts.apt_sources import AptSource, for_suite, host_sources
from scripts.command import SetupError
from scripts.criu import find_criu
from scripts.elf import library_closure
from scripts.fetch import fetch_packages
from scripts.host import as_user, check_host
from tests.isolation import FOLDER, ORIGINAL_ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent

ONE_LINE = """\
# deb http://mirror.invalid/debian bookworm main
deb http://mirror.invalid/debian bookworm main contrib # Debian itself
deb-src http://mirror.invalid/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/other.gpg] https://other.invalid/apt stable nonsense
"""
DEB822 = """\
Types: deb deb-src
# a comment inside a paragraph
URIs: http://mirror.invalid/debian
Suites: trixie trixie-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY865UxYJKwYBBAHaRw8BAQdAd7Z0srwuhlB6JKFkcf4HU4SSS
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://off.invalid/debian
Suites: trixie
Components: main
Enabled: no
"""


def test_the_mirror_is_taken_from_one_line_sources_without_a_keyring(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    sources = host_sources(tmp_path)
    assert sources == [
        AptSource("http://mirror.invalid/debian", "bookworm", ("main", "contrib")),
        AptSource("https://other.invalid/apt", "stable", ("nonsense",), "/usr/share/keyrings/other.gpg"),
    ]
    (forky,) = for_suite(sources, "bookworm", "forky")
    assert forky.as_line(forky.signed_by) == "deb http://mirror.invalid/debian forky main"
    assert for_suite(sources, "trixie", "forky") == []


def test_the_mirror_is_taken_from_deb822_sources_with_an_inline_key(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "debian.sources").write_text(DEB822)
    (parts / "old.sources.disabled").write_text(DEB822)
    sources = host_sources(tmp_path)
    assert [source.suite for source in sources] == ["trixie", "trixie-updates"]
    key = sources[0].signed_by.splitlines()
    assert key[0] == "-----BEGIN PGP PUBLIC KEY BLOCK-----"
    assert key[1] == ""
    assert key[-1] == "-----END PGP PUBLIC KEY BLOCK-----"
    (sid,) = for_suite(sources, "trixie", "sid")
    assert sid.as_line("/key.asc") == "deb [signed-by=/key.asc] http://mirror.invalid/debian sid main"


def test_this_hosts_own_sources_name_a_mirror() -> None:
    assert for_suite(host_sources(), check_host(), "forky")


def _archive(folder: Path, suite: str, package: str) -> str:
    """Make an archive with one package of no content, and return its address for apt."""
    tree = folder / "tree/DEBIAN"
    tree.mkdir(parents=True)
    control = f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a test\n"
    (tree / "control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", tree.parent, folder / "package.deb"], check=True)
    content = (folder / "package.deb").read_bytes()
    index = folder / f"dists/{suite}/main/binary-all/Packages"
    index.parent.mkdir(parents=True)
    digest = hashlib.sha256(content).hexdigest()
    index.write_text(f"{control}Filename: package.deb\nSize: {len(content)}\nSHA256: {digest}\n")
    listed = (
        f" {hashlib.sha256(index.read_bytes()).hexdigest()} {index.stat().st_size} main/binary-all/Packages"
    )
    (folder / f"dists/{suite}/Release").write_text(
        f"Suite: {suite}\nArchitectures: all\nComponents: main\nSHA256:\n{listed}\n"
    )
    return f"copy:{folder}"


def test_the_archive_of_somebody_else_is_not_taken_for_debians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Browsers and tools come from archives that call their suite like Debian, and their component main."""
    archives = (
        ("browser", "stable", "stable"),
        ("criu", "bookworm", "forky"),
        ("a-tool", "bookworm", "forky"),
    )
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    for package, suite, has in archives:
        uri = _archive(tmp_path / package, has, package)
        (parts / f"{package}.list").write_text(f"deb [trusted=yes] {uri} {suite} main\n")
    (tmp_path / "apt.conf").write_text('APT::Default-Release "bookworm";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))  # a host's own choice does no harm either
    work = tmp_path / "work"
    work.mkdir()

    sources = for_suite(host_sources(tmp_path), "bookworm", "forky")
    assert [Path(source.uri).name for source in sources] == ["a-tool", "browser", "criu"]
    fetch_packages(sources, ["criu"], work)
    assert [path.name for path in (work / "cache/archives").glob("*.deb")] == ["criu_1_all.deb"]


def test_the_archive_with_debians_keyring_is_tried_first(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(
        "deb [signed-by=/usr/share/keyrings/browser.gpg] https://browser.invalid stable main\n"
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.invalid bookworm main\n"
    )
    found = for_suite(host_sources(tmp_path), "bookworm", "forky")
    assert [source.uri for source in found] == ["http://mirror.invalid", "https://browser.invalid"]


def test_the_library_closure_is_what_the_loader_loads() -> None:
    program = Path(shutil.which("nft") or "/usr/sbin/nft")
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    loaded = {Path(name): Path(path).parent for name, path in re.findall(r"(\S+) => (\S+)", said)}
    found = library_closure(program, sorted(set(loaded.values())))
    # ldd lists the loader as a path of its own; a library may name it too.
    assert {Path(name) for name in found if not name.startswith("ld-linux")} == set(loaded)


def test_a_library_that_no_package_brought_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"library lib\S+, which nft needs"):
        library_closure(Path(shutil.which("nft") or "/usr/sbin/nft"), [tmp_path])


def _fake_criu(path: Path, version: str) -> Path:
    """Make a program that only tells a version, with a pycriu beside it as in set-up's own prefix."""
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho Version: {version}\n")
    path.chmod(0o755)
    package = path.parent.parent / "python/pycriu"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    return path


def test_a_criu_that_passes_the_probe_is_used_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tmp_path / "prefix"
    named = _fake_criu(tmp_path / "named/bin/criu", "1.0")
    on_path = _fake_criu(tmp_path / "on_path/bin/criu", "2.0")
    _fake_criu(prefix / "criu-3.0/bin/criu", "3.0")
    monkeypatch.setenv("MIEHISTO_CRIU", str(named))
    monkeypatch.setenv("PATH", f"{on_path.parent}:{os.environ['PATH']}")
    asked = []

    def probe(binary: Path, pycriu: Path) -> str:
        asked.append((binary, pycriu))
        return "" if binary == on_path else "it cannot dump a socket"

    found = find_criu(prefix, "bookworm", probe)

    assert found.binary == on_path
    assert asked == [(named, tmp_path / "named/python"), (on_path, tmp_path / "on_path/python")]
    assert (prefix / "bin/criu").readlink() == on_path
    assert f"{named} (1.0): it cannot dump a socket" in capsys.readouterr().out


@pytest.fixture
def apt_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt of the test's own, which knows no archive; its locks are nobody else's."""
    root = tmp_path / "root"
    for folder in ("etc/apt", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg"):
        (root / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    (tmp_path / "apt.conf").write_text(
        f'Dir "{root}/"; Dir::State::status "{root}/var/lib/dpkg/status"; APT::Sandbox::User "root";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setattr(host, "_POLICY", tmp_path / "policy-rc.d")
    return root


LOCKS = ("var/lib/apt/lists/lock", "var/lib/dpkg/lock-frontend")


@pytest.mark.parametrize("lock", LOCKS)
def test_set_up_waits_while_another_program_uses_apt(
    apt_root: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    """As unattended-upgrades does on a machine that has just booted."""
    heard = []
    with (apt_root / lock).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)

        def let_go(line: str) -> None:
            heard.append(line)
            fcntl.lockf(file, fcntl.LOCK_UN)

        monkeypatch.setattr(host, "say", let_go)
        with pytest.raises(SetupError, match="apt cannot install no-such-package"):
            host.install_packages(["no-such-package"])
    assert len(heard) == 1
    assert f"{lock}. It is held by process {os.getpid()}" in heard[0]


@pytest.mark.parametrize("lock", LOCKS)
def test_set_up_says_who_does_not_let_go_of_apt(
    apt_root: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.setattr(host, "LOCK_TIMEOUT", 0)
    with (apt_root / lock).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match=rf"Another program .*\n.*held by process {os.getpid()} "):
            host.install_packages(["no-such-package"])


@pytest.mark.parametrize("lock", LOCKS)
def test_set_up_waits_for_apt_where_python_is_missing_too(apt_root: Path, lock: str) -> None:
    without_python = "mount --bind /dev/null /usr/bin/python3 && exec scripts/setup"
    with (apt_root / lock).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        set_up = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", without_python], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        with set_up.stdout as said:  # type: ignore[union-attr]
            assert "installing Debian's python3" in said.readline()
            assert "waiting     for another program" in said.readline()
            fcntl.lockf(file, fcntl.LOCK_UN)
            left = said.read()
    assert set_up.wait() == 1
    assert "apt cannot install it" in left and "Unable to locate package python3" in left
    assert "waiting" not in left


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Return a folder like a checkout's .venv/bin, with the three commands."""
    folder = tmp_path / "checkout/.venv/bin"
    folder.mkdir(parents=True)
    for name in links.COMMANDS:
        (folder / name).write_text("#!/bin/sh\n")
    return folder


def test_install_links_the_commands_and_uninstall_removes_them(built: Path, tmp_path: Path) -> None:
    goal = tmp_path / "usr/local/bin"
    links.install(built, goal)
    links.install(built, goal)
    assert {path.name: path.readlink() for path in goal.iterdir()} == {
        name: built / name for name in links.COMMANDS
    }
    assert sorted(links.uninstall(goal)) == sorted(links.COMMANDS)
    assert list(goal.iterdir()) == []


def test_install_refuses_a_foreign_file_and_then_links_nothing(built: Path, tmp_path: Path) -> None:
    goal = tmp_path / "bin"
    goal.mkdir()
    (goal / "runmh").write_text("somebody else's")
    with pytest.raises(SetupError, match=r"runmh is not Miehistö's"):
        links.install(built, goal)
    assert links.uninstall(goal) == []
    assert [path.name for path in goal.iterdir()] == ["runmh"]
    assert (goal / "runmh").read_text() == "somebody else's"


def test_another_system_is_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "os-release"
    other.write_text('ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04 LTS"\n')
    with pytest.raises(SetupError, match=r"This is Ubuntu 24\.04 LTS; set-up serves Debian 12 and 13 only"):
        check_host(other)


def test_set_up_without_root_says_so_in_one_sentence() -> None:
    copy = FOLDER / "unprivileged"
    shutil.copytree(ROOT / "scripts", copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    user = ORIGINAL_ENVIRONMENT.get("MIEHISTO_USER", "miehisto")
    done = subprocess.run(
        as_user(user, [copy / "scripts/setup"]),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.defpath},
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "set-up stopped: Set-up installs packages and a user, so it must run as root: run `sudo make setup`."
    ]
    assert done.stderr == ""


def _fingerprint() -> dict[str, tuple[int, int]]:
    """Return inode and time of change of everything that set-up could write."""
    prefix = Path(ORIGINAL_ENVIRONMENT.get("MIEHISTO_PREFIX", "/opt/miehisto"))
    places = [ROOT, ROOT / ".venv", *(ROOT / ".venv/lib").glob("python3*/site-packages"), ROOT / ".venv/bin"]
    paths = [path for place in places for path in place.iterdir() if path.name != "__pycache__"]
    paths += [*prefix.rglob("*"), Path("/etc/passwd"), Path("/etc/group"), Path("/var/lib/dpkg/status")]
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in paths if path.is_file()}


def _set_up() -> str:
    """Run the real set-up of this checkout and return what it printed."""
    done = subprocess.run(
        [ROOT / "scripts/setup", "--dev"],
        env=ORIGINAL_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_second_set_up_is_quick_and_changes_nothing() -> None:
    _set_up()
    before = _fingerprint()
    start = time.monotonic()
    said = _set_up()
    took = time.monotonic() - start
    assert took < 15, said  # the first one takes half a minute
    assert _fingerprint() == before


def test_a_containers_image_has_what_set_up_installs_in_a_layer_of_its_own() -> None:
    found = re.search(r"--no-install-recommends \\\n +([a-z0-9 -]+) \\\n", (ROOT / "Dockerfile").read_text())
    assert found
    assert found[1].split() == sorted({*host.RUNTIME_PACKAGES, "python3", "tini"})


def test_the_lock_files_pin_hashes_and_name_no_index() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        pinned = re.findall(r"^[a-z].*==.*$", text, flags=re.MULTILINE)
        assert pinned
        assert all(line.endswith("\\") for line in pinned), f"{name}: a package without hashes"


@pytest.mark.parametrize("own", ["#!/bin/sh\nexit 0\n", ""])
def test_a_set_up_that_was_killed_keeps_no_daemon_from_starting_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    policy = tmp_path / "policy-rc.d"
    if own:
        policy.write_text(own)
    monkeypatch.setattr(host, "_POLICY", policy)
    with host._no_daemon_starts():
        assert "exit 101" in policy.read_text()
        left = {path: path.read_text() for path in tmp_path.iterdir()}
    assert (policy.read_text() if policy.exists() else "") == own
    for path in tmp_path.iterdir():
        path.unlink()
    for path, text in left.items():
        path.write_text(text)
    host.install_packages(["bash"])
    assert (policy.read_text() if policy.exists() else "") == own
    assert len(list(tmp_path.iterdir())) == bool(own)
