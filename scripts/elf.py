"""Finds the shared libraries that a program needs, directly or through one another; copies nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from scripts.command import SetupError, run


def needed_libraries(path: Path) -> list[str]:
    """Return the names that an ELF file asks its loader for (DT_NEEDED), as `patchelf` reads them."""
    return run(
        ["patchelf", "--print-needed", path], otherwise=f"Cannot read the libraries of {path.name}."
    ).split()


def library_closure(
    program: Path,
    folders: Iterable[Path],
    needed: Callable[[Path], list[str]] = needed_libraries,
) -> dict[str, Path]:
    """Return every library that `program` needs, directly or through another one: name → file.

    `ldd` would answer for the host's libraries, not for those beside the program.

    Args:
        folders: where to look, in this order.
        needed: gives a file's own direct needs.
    Raises:
        SetupError: a library lies in none of the folders.
    """
    places = list(folders)
    found: dict[str, Path] = {}
    waiting = [(name, program) for name in needed(program)]
    while waiting:
        name, asker = waiting.pop()
        if name in found:
            continue
        path = next((folder / name for folder in places if (folder / name).exists()), None)
        if path is None:
            raise SetupError(
                f"The library {name}, which {asker.name} needs, is in none of the fetched packages."
            )
        found[name] = path
        waiting += [(further, path) for further in needed(path)]
    return found
