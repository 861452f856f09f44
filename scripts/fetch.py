"""Fetches packages of a newer Debian suite into a folder of their own; the host stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.apt_sources import AptSource
from scripts.command import SetupError, run


def fetch_packages(sources: Sequence[AptSource], names: Iterable[str], work: Path) -> Path:
    """Download packages and all that they depend on, unpack them, and return the folder they lie in now.

    apt checks the suite's signature as always. An empty status file makes it fetch the suite's own libc too.

    Args:
        sources: what may be the host's mirror, pointed at the newer suite; the first that has all is taken.
        work: an empty folder for apt's lists, its cache and the result; the caller deletes it.
    Raises:
        SetupError: no mirror can be reached, has such a suite and packages, and is signed as it should be.
    """
    wanted, refused = list(names), []
    for source in sources:
        try:
            return _fetch_from(source, wanted, work)
        except SetupError as error:
            refused.append(str(error))
            for left in work.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    raise SetupError("\n".join(refused))


def _fetch_from(source: AptSource, names: Sequence[str], work: Path) -> Path:
    lists, cache, root = work / "lists", work / "cache", work / "root"
    for folder in (lists / "partial", cache / "archives/partial", root):
        folder.mkdir(parents=True)
    (work / "status").touch()
    keyring = source.signed_by
    if keyring.startswith("-----BEGIN"):
        keyring = str(work / "mirror.asc")
        Path(keyring).write_text(source.signed_by + "\n")
    (work / "sources.list").write_text(source.as_line(keyring) + "\n")
    apt = [
        "apt-get",
        "--quiet",
        f"-oDir::Etc::SourceList={work}/sources.list",
        "-oDir::Etc::SourceParts=/dev/null",
        "-oDir::Etc::Preferences=/dev/null",
        "-oDir::Etc::PreferencesParts=/dev/null",
        f"-oDir::State::Lists={lists}",
        f"-oDir::State::status={work}/status",
        f"-oDir::Cache={cache}",
        "-oAcquire::Languages=none",
        # The folder is root's alone, so apt's own unprivileged user could not write there.
        "-oAPT::Sandbox::User=root",
        "-oDebug::NoLocking=true",
        # A host's own choice of a release would have to be among these sources.
        "-oAPT::Default-Release=",
    ]
    suite = source.suite
    # Without this, apt calls a mirror that it cannot reach a warning and goes on with nothing.
    run(
        [*apt, "-oAPT::Update::Error-Mode=any", "update"],
        otherwise=f"Cannot read the suite {suite} of this host's Debian mirror.",
    )
    install = ["install", "--yes", "--no-install-recommends", "--download-only", *names]
    run([*apt, *install], otherwise=f"Cannot fetch {' and '.join(names)} from the suite {suite}.")
    packages = sorted((cache / "archives").glob("*.deb"))
    if not packages:
        raise SetupError(f"The suite {suite} gave no package for {' and '.join(names)}.")
    for package in packages:
        run(["dpkg-deb", "--extract", package, root], otherwise=f"Cannot unpack {package.name}.")
    return root
