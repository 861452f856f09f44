"""Keeps a private static tini, which becomes PID 1 of every service; knows no CRIU and no service."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from scripts.command import SetupError, run
from scripts.host import install_packages

_STATIC = (Path("/usr/bin/tini-static"), Path("/bin/tini-static"))
_CATATONIT = (Path("/usr/bin/catatonit"), Path("/usr/libexec/podman/catatonit"))


def kept_tini(prefix: Path) -> Path | None:
    """Return the newest private copy, or None."""
    copies = [path for path in (prefix / "bin").glob("tini-*") if path.suffix != ".partial"]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def ensure_tini(prefix: Path) -> Path:
    """Return a static tini at a path that carries its version, copied there if there is none yet.

    tini is a mapped program of every image, so an upgrade of Debian's package would break them all; the copy
    stays. It has to be static, for the same reason with libc.

    Raises:
        SetupError: no package of this release holds one.
    """
    kept = kept_tini(prefix)
    if kept is not None:
        return kept
    source = _static_init()
    said = run([source, "--version"], otherwise=f"{source} does not run.")
    match = re.search(r"\d+(?:\.\d+)+", said)
    if match is None:
        raise SetupError(f"{source} does not tell its version.")
    copy = prefix / "bin" / f"tini-{match[0]}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(copy.name + ".partial")
    shutil.copyfile(source, partial)
    partial.chmod(0o755)
    partial.replace(copy)
    return copy


def _static_init() -> Path:
    """Return a static tini, or a catatonit, of this host; installs the package that holds one if need be."""
    reasons: list[str] = []
    # Up to Debian 13 the package tini holds the static binary too; later it is a package of its own.
    for package, places in (
        ("", _STATIC),
        ("tini-static", _STATIC),
        ("tini", _STATIC),
        ("catatonit", _CATATONIT),
    ):
        if package:
            try:
                install_packages([package])
            except SetupError as error:
                reasons.append(str(error).splitlines()[0])
                continue
        found = next((path for path in places if path.exists()), None)
        if found is not None:
            return found
    raise SetupError(
        f"No static tini or catatonit can be installed: run `apt-get install tini`. {' '.join(reasons)}"
    )
