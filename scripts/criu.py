"""Finds a CRIU that really dumps and restores here, or fetches one; of the worker it knows the probe only."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.apt_sources import for_suite, host_sources
from scripts.command import SetupError, digest, run, say
from scripts.elf import library_closure
from scripts.fetch import fetch_packages
from scripts.host import library_folder

# The first newer suites whose CRIU may work on a kernel that the host's own CRIU does not know.
SUITES = ("forky", "sid")
KDAT = Path("/run/criu.kdat")

Probe = Callable[[Path, Path], str]
"""Takes a criu and the folder that holds its pycriu; returns "" or why the dump-and-restore probe failed."""


@dataclass(frozen=True)
class Criu:
    """A CRIU that passed the probe: the binary, and the folder in which the pycriu of its version lies."""

    binary: Path
    pycriu_folder: Path
    version: str


def criu_version(binary: Path) -> str:
    """Return the version that the binary names, for example "4.2.1".

    Raises:
        SetupError: it does not run.
    """
    said = run([binary, "--version"], otherwise=f"{binary} does not run.")
    match = re.search(r"^Version:\s*v?(\S+)", said, flags=re.MULTILINE)
    if match is None:
        raise SetupError(f"{binary} does not tell its version.")
    return match[1]


def find_criu(prefix: Path, codename: str, probe: Probe) -> Criu:
    """Return the first CRIU that passes the probe, and point PREFIX/bin/criu at it.

    In this order: $MIEHISTO_CRIU, `criu` on PATH, what lies below the prefix already, and then those of newer
    Debian suites, fetched into the prefix. A CRIU that works is used as it is.

    Raises:
        SetupError: none passes; it says of each one why.
    """
    refused: list[str] = []
    for candidate in _candidates(prefix, codename, refused):
        name, pycriu = str(candidate), None
        try:
            version = criu_version(candidate)
            name = f"{candidate} ({version})"
            pycriu = pycriu_folder(candidate, version, prefix, codename)
            _forget_kernel_probe()
            reason = probe(candidate, pycriu)
        except SetupError as error:
            reason = str(error)
        if not reason and pycriu is not None:
            _forget_kernel_probe()
            point(prefix / "bin/criu", candidate)
            return Criu(candidate, pycriu, version)
        if pycriu is not None and pycriu.parent == prefix and pycriu.name.startswith("pycriu-"):
            shutil.rmtree(pycriu)
        refused.append(f"{name}: {reason}")
        say(f"  refused     {name}: {reason}")
    listed = "".join(f"\n  {line}" for line in refused)
    raise SetupError(
        "No CRIU can dump and restore a process on this host; name one that can by MIEHISTO_CRIU=PATH, "
        f"or use a kernel and privileges that CRIU can work with.{listed}"
    )


def inputs_digest(prefix: Path) -> str:
    """Return a digest of what the choice hangs on: the kernel, the settings, and the files named."""
    named = (os.environ.get("MIEHISTO_CRIU", ""), shutil.which("criu") or "", str(prefix / "bin/criu"))
    facts = [os.uname().release, *named]
    for name in named:
        path = Path(name)
        if name and path.exists():
            status = path.stat()
            facts.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
    return digest(*facts)


def _candidates(prefix: Path, codename: str, refused: list[str]) -> Iterator[Path]:
    """Yield the binaries to try, each once; one is only fetched when those before it were refused."""
    named, on_path = os.environ.get("MIEHISTO_CRIU"), shutil.which("criu")
    kept = sorted(prefix.glob("criu-*/bin/criu"), key=lambda path: path.stat().st_mtime, reverse=True)
    seen: set[Path] = set()
    for path in [*(Path(name) for name in (named, on_path) if name), *kept]:
        real = path.resolve()
        if real not in seen:
            seen.add(real)
            # A link into our own prefix is followed, so that PREFIX/bin/criu never comes to point at itself.
            yield real if real.is_relative_to(prefix.resolve()) else path
    for suite in SUITES:
        try:
            binary = _fetch_criu(prefix, codename, suite)
        except SetupError as error:
            refused.append(f"suite {suite}: {error}")
            continue
        if binary.resolve() not in seen:
            seen.add(binary.resolve())
            yield binary


def _fetch_criu(prefix: Path, codename: str, suite: str) -> Path:
    """Fetch the suite's CRIU and its pycriu into PREFIX/criu-VERSION and return the binary."""
    sources = for_suite(host_sources(), codename, suite)
    if not sources:
        raise SetupError(
            f"/etc/apt names no Debian mirror for {codename}/main, so its other suites can't be read."
        )
    say(f"  fetching    criu from the suite {suite}")
    for leftover in prefix.glob(".fetch-*"):
        # Of a set-up that was killed; no other one runs now, setup_host.py holds a lock.
        shutil.rmtree(leftover)
    # Beside the goal, so that the last step is a rename: an interrupted set-up leaves nothing half done.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=prefix) as folder:
        root = fetch_packages(sources, ["criu", "python3-pycriu"], Path(folder))
        tree = Path(folder) / "tree"
        lay_out(root, tree)
        version = criu_version(_runnable(tree))
        goal = prefix / f"criu-{version}"
        if _complete(goal, version):
            # It was tried before this one was fetched, and other processes may be running it.
            return goal / "bin/criu"
        _set_interpreter(tree, goal)
        if goal.exists():
            goal.rename(Path(folder) / "replaced")
        tree.rename(goal)
    return goal / "bin/criu"


def _complete(tree: Path, version: str) -> bool:
    """Tell whether a CRIU of this version, with its pycriu, lies there already and starts."""
    try:
        return criu_version(tree / "bin/criu") == version and (tree / "python/pycriu/__init__.py").exists()
    except SetupError:
        return False


def lay_out(root: Path, tree: Path) -> None:
    """Copy what CRIU needs, and nothing else, out of unpacked packages: bin/criu, lib/, python/pycriu.

    Raises:
        SetupError: the packages lack the binary, pycriu, or a library.
    """
    binary = next(
        (root / place for place in ("usr/sbin/criu", "usr/bin/criu") if (root / place).exists()), None
    )
    pycriu = next(
        (path for path in root.glob("usr/lib/python3*/dist-packages/pycriu") if path.is_dir()), None
    )
    if binary is None or pycriu is None:
        raise SetupError(f"The fetched packages hold no {'criu' if binary is None else 'pycriu'}.")
    for folder in ("bin", "lib", "python"):
        (tree / folder).mkdir(parents=True)
    shutil.copy2(binary, tree / "bin/criu")
    for name, path in library_closure(binary, [library_folder(root)]).items():
        shutil.copy2(path.resolve(), tree / "lib" / name)
    loader = _loader(binary)
    if not (tree / "lib" / loader).exists():
        shutil.copy2((library_folder(root) / loader).resolve(), tree / "lib" / loader)
    shutil.copytree(pycriu, tree / "python/pycriu", ignore=shutil.ignore_patterns("__pycache__"))


def _loader(binary: Path) -> str:
    """Return the file name of the loader that the binary asks for."""
    return Path(
        run(["patchelf", "--print-interpreter", binary], otherwise=f"{binary} is no program.").strip()
    ).name


def _set_interpreter(tree: Path, goal: Path) -> None:
    """Make the binary in `tree` use its own loader and libraries, as if `tree` lay at `goal` already."""
    loader = goal / "lib" / _loader(tree / "bin/criu")
    patch: list[str | Path] = [
        "patchelf",
        "--set-interpreter",
        loader,
        "--force-rpath",
        "--set-rpath",
        goal / "lib",
    ]
    run([*patch, tree / "bin/criu"], otherwise="patchelf cannot point criu at its own libraries.")


def _runnable(tree: Path) -> Path:
    """Return a small script that runs the copied criu where it lies, to ask its version before the move."""
    script = tree.parent / "criu-here"
    loader = tree / "lib" / _loader(tree / "bin/criu")
    script.write_text(f'#!/bin/sh\nexec "{loader}" --library-path "{tree}/lib" "{tree}/bin/criu" "$@"\n')
    script.chmod(0o755)
    return script


def pycriu_folder(binary: Path, version: str, prefix: Path, codename: str) -> Path:
    """Return the folder that holds the pycriu of the binary's version.

    Raises:
        SetupError: no pycriu of that version can be had.
    """
    beside = binary.resolve().parent.parent / "python"
    fetched = prefix / f"pycriu-{version}"
    for folder in (beside, fetched):
        if (folder / "pycriu/__init__.py").exists():
            return folder
    for folder in _system_pycriu(binary):
        if _package_version("python3-pycriu") == version or folder.is_relative_to("/usr/local"):
            return folder
    mirrors = host_sources()
    with tempfile.TemporaryDirectory(prefix="miehisto-pycriu-") as work:
        for suite in (codename, f"{codename}-backports", *SUITES):
            place = Path(work) / suite
            place.mkdir()
            try:
                root = fetch_packages(for_suite(mirrors, codename, suite), ["python3-pycriu"], place)
            except SetupError:
                continue
            if list(place.glob(f"cache/archives/python3-pycriu_*{version}-*.deb")):
                found = next(root.glob("usr/lib/python3*/dist-packages/pycriu"))
                partial = prefix / f".pycriu-{version}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(found, partial / "pycriu")
                shutil.rmtree(fetched, ignore_errors=True)
                partial.rename(fetched)
                return fetched
    raise SetupError(
        f"no pycriu of version {version} was found: install Debian's python3-pycriu of that version"
    )


def _system_pycriu(binary: Path) -> Iterator[Path]:
    """Yield the folders where a pycriu that was installed with the binary may lie."""
    places = ["/usr/local/lib", "/usr/lib"] if binary.is_relative_to("/usr/local") else ["/usr/lib"]
    for place in places:
        for folder in sorted(Path(place).glob("python3*/*-packages")):
            if (folder / "pycriu/__init__.py").exists():
                yield folder


def _package_version(name: str) -> str:
    """Return a Debian package's upstream version, or "" when it is not installed."""
    try:
        full = run(["dpkg-query", "--show", "--showformat", "${Version}", name], otherwise="")
    except SetupError:
        return ""
    return full.split(":", 1)[-1].rsplit("-", 1)[0]


def _forget_kernel_probe() -> None:
    """Delete CRIU's cache of what the kernel can do: one version misreads what another wrote."""
    KDAT.unlink(missing_ok=True)


def point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target` in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(link.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
