"""Reads the host's own apt sources, one-line and deb822, to learn its mirror and keyring; fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class AptSource:
    """One mirror with one suite.

    `signed_by` is a keyring's path, a whole key block (deb822 allows it inline), or "" where apt's trusted
    keyrings decide. `trusted` repeats the operator's own `trusted=yes`; nothing here ever sets it.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""
    trusted: bool = False

    def as_line(self, keyring: str) -> str:
        """Return it as a line of a sources.list; `keyring` is a file's path or ""."""
        options = [f"signed-by={keyring}"] if keyring else []
        if self.trusted:
            options.append("trusted=yes")
        bracket = f"[{' '.join(options)}] " if options else ""
        return f"deb {bracket}{self.uri} {self.suite} {' '.join(self.components)}"


_ONE_LINE = re.compile(
    r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)$"
)


def parse_one_line(text: str) -> Iterator[AptSource]:
    """Yield the sources of a `.list` file (sources.list(5), one-line style)."""
    for raw in text.splitlines():
        match = _ONE_LINE.match(raw.split("#", 1)[0].strip())
        if match is None:
            continue
        options = dict(word.split("=", 1) for word in (match["options"] or "").split() if "=" in word)
        yield AptSource(
            uri=match["uri"],
            suite=match["suite"],
            components=tuple(match["components"].split()),
            signed_by=options.get("signed-by", ""),
            trusted=options.get("trusted") == "yes",
        )


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a deb822 file; field names in lower case, continuation lines joined."""
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t" and name:
            # A lone dot stands for an empty line, which a key block has after its header.
            fields[name] += "\n" + ("" if line.strip() == "." else line.strip())
        elif ":" in line:
            name, value = line.split(":", 1)
            name = name.strip().lower()
            fields[name] = value.strip()


def parse_deb822(text: str) -> Iterator[AptSource]:
    """Yield the sources of a `.sources` file (sources.list(5), deb822 style), one for each URI and suite."""
    for fields in _paragraphs(text):
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptSource(
                    uri=uri,
                    suite=suite,
                    components=tuple(fields.get("components", "").split()),
                    signed_by=fields.get("signed-by", "").lstrip("\n"),
                    trusted=fields.get("trusted", "").lower() == "yes",
                )


def host_sources(etc_apt: Path = Path("/etc/apt")) -> list[AptSource]:
    """Return all sources that apt on this host uses, in apt's order."""
    parts = etc_apt / "sources.list.d"
    found: list[AptSource] = []
    for path in [etc_apt / "sources.list", *(sorted(parts.iterdir()) if parts.is_dir() else [])]:
        if path.suffix == ".list" and path.is_file():
            found += parse_one_line(path.read_text(errors="replace"))
        elif path.suffix == ".sources" and path.is_file():
            found += parse_deb822(path.read_text(errors="replace"))
    return found


def for_suite(sources: list[AptSource], codename: str, suite: str) -> list[AptSource]:
    """Return what may be the host's Debian mirror, pointed at another suite; the likeliest first.

    Others' archives call a suite "stable" or by Debian's code name, and a component "main", too. Those that
    name Debian's keyring come first, but a mirror may as well be signed by its operator.

    Args:
        codename: the host's own release ("bookworm"); only a source of that very suite (or its alias
            "stable"), with the component main, is Debian's archive. Its -security and -updates are not whole.
        suite: the suite to read instead, for example "forky".
    """
    found = [
        replace(source, suite=suite, components=("main",))
        for source in sources
        if source.suite in {codename, "stable", "oldstable"}
        and "main" in source.components
        and not source.uri.startswith("cdrom:")
    ]
    return sorted(dict.fromkeys(found), key=lambda source: "debian-archive" not in source.signed_by)
