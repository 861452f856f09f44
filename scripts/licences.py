"""Writes docs/licences.md: under which licence each package of the requirements is, as the package says."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/licences.md"
LISTS = {
    "requirements.txt": "What Miehistö runs on",
    "requirements-dev.txt": "What its tests and linters need besides",
}
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", re.MULTILINE)


def pinned(name: str) -> list[str]:
    """Return the names of the packages of a requirements file."""
    return sorted(set(_PINNED.findall((ROOT / name).read_text(encoding="utf-8"))), key=str.lower)


def licence_of(found: PackageMetadata) -> str:
    """Return what a package says of its licence: the expression, the classifiers, or its first words."""
    if found["License-Expression"]:
        return found["License-Expression"]
    said = [line.rpartition(" :: ")[2] for line in found.get_all("Classifier", []) if "License ::" in line]
    first = (found["License"] or "").strip().splitlines()
    return ", ".join(said) or (first[0][:80] if first else "not said")


def main() -> int:
    """Write the page. Returns the exit code: 1 when a package is not installed here."""
    lines = [
        "# Licences",
        (
            "Miehistö itself is under the MIT licence (LICENSE). CRIU, Redis, tini and nftables are programs "
            "of their own, installed by `make setup` and not part of it. Written by `make audit`."
        ),
    ]
    known: set[str] = set()
    missing = []
    for name, title in LISTS.items():
        lines += ["", f"## {title}", "", "| Package | Licence |", "|---|---|"]
        for package in pinned(name):
            if package in known:
                continue
            known.add(package)
            try:
                lines.append(f"| {package} | {licence_of(metadata(package))} |")
            except PackageNotFoundError:
                missing.append(package)
                lines.append(f"| {package} | not installed on the machine that wrote this |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(known)} packages\n")
    if missing:
        sys.stderr.write(f"not installed here: {', '.join(missing)}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
