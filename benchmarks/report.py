"""Turns measurements into the tables of docs/performance.md. Measures nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.first_view import View
from benchmarks.measuring import Sample, machine, ratio

PAGE = Path(__file__).resolve().parent.parent / "docs/performance.md"
AIM = 0.1  # seconds
_HEAD = """# Performance

Every number here was written by `make bench`, `make bench-peers` or `make bench-pages`. Run them on a machine
of yours, and compare the ratios, which were taken side by side in one run, rather than the seconds. A ratio
is the median of the pairs, with the least and the most in brackets; seconds likewise.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n"


def bare(found: dict[str, Any]) -> str:
    """Return the section that compares Miehistö with bare CRIU."""
    text = (
        "Whole commands, from the operator's key to his prompt (`mhctl service dump`, `restore`),\n"
        "against `criu dump` and `criu restore` of the same process tree, same options.\n\n"
    )
    rows = []
    for name, label in (("small", "http.server, 9 MiB"), ("large", "1 GiB of memory")):
        samples = found[name]["samples"]
        for verb in ("dump", "restore"):
            ours, theirs = samples[verb], samples[f"bare {verb}"]
            rows.append([f"{label}: {verb}", str(ours), str(theirs), ratio(ours, theirs)])
    text += table(["", "Miehistö, s", "bare CRIU, s", "ratio"], rows)
    for name, label in (("small", "the small service"), ("large", "the service of 1 GiB")):
        for verb, parts in found[name]["phases"].items():
            text += f"Where the time of a {verb} of {label} goes, medians in ms:\n\n"
            text += table(
                ["part", "ms"], [[part, f"{seconds * 1000:.1f}"] for part, seconds in parts.items()]
            )
    many = found["many"]
    text += "20 small services at once, seconds in total:\n\n"
    total = many["bare dumps in a row"]
    text += table(
        ["", "s", "of the bare dumps"],
        [[name, f"{value:.2f}", f"{value / total:.2f}"] for name, value in many.items()],
    )
    text += "The smaller parts:\n\n"
    supervisor = found["supervisor"]
    return text + table(
        ["", ""],
        [
            ["`mhctl service list`, whole process, s", str(found["client"])],
            ["runmh, MiB resident", f"{supervisor['MiB resident']:.1f}"],
            ["runmh, s to load and start", f"{supervisor['seconds to start']:.3f}"],
        ],
    )


def peers(found: dict[str, Any]) -> str:
    """Return the section that compares Miehistö with container engines, each way in which it was measured."""
    text = (
        "The same http.server, checkpointed and restored by each, whole commands, in turn. The ratio is\n"
        "Miehistö to the one of that row, round by round: below 1, Miehistö is faster.\n\n"
    )
    for title, one in found.items():
        text += f"### {title}\n\n{_peers_table(one['times'])}"
        text += "".join(f"- {line}\n" for line in one["remarks"]) + "\n"
    return text


def _peers_table(times: dict[str, dict[str, Sample]]) -> str:
    first, ours = next(iter(times.items()))
    rows = []
    for name, samples in times.items():
        rows.append([name])
        for verb in ("dump", "restore"):
            rows[-1] += [str(samples[verb]), "" if name == first else ratio(ours[verb], samples[verb])]
    return table(["", "dump, s", "ratio", "restore, s", "ratio"], rows)


def pages(found: dict[str, Any]) -> str:
    """Return the section about pages on a large database, and what open ones cost."""
    text = (
        f"{found['services']:,} services, {found['images']:,} images and {found['jobs']:,} jobs are in the\n"
        "database. A page is timed by a client on the same host over a kept connection, one request at a\n"
        "time, through gunicorn with the settings of an installed node, to the last byte; an admin asks.\n"
        "The aim is 100 ms for the 95th percentile; what misses it is bold.\n\n"
    )
    names = list(found["on"])
    rows = []
    for label, one in found["on"][names[0]]["pages"].items():
        rows.append([label, f"{one['octets'] / 1024:.0f}" if one["octets"] else ""])
        for name in names:
            sample = found["on"][name]["pages"][label]["sample"]
            late = sample.at(95) > AIM
            rows[-1] += [
                f"{sample.median * 1000:.0f}",
                f"{'**' * late}{sample.at(95) * 1000:.0f}{'**' * late}",
            ]
    head = [part for name in names for part in (f"{name}: p50, ms", "p95, ms")]
    text += table(["page", "KiB", *head], rows)
    first = [f"{name} {found['on'][name]['pages']['metrics']['first']:.1f} s" for name in names]
    again = [f"{name} {found['on'][name]['scraped anew']:.2f} s" for name in names]
    text += (
        f"The first scrape of the metrics counts all jobs: {', '.join(first)}. Their sums are kept,\n"
        f"so another process's first one counts only those of two days: {', '.join(again)}.\n\n"
    )
    return text + _views(found["on"][names[0]]["views"]) + _shown(found["on"]) + _watched(found["on"])


def _views(found: dict[str, View]) -> str:
    encodings = sorted({name for view in found.values() for name in view.encodings})
    text = (
        "What comes over the wire for a first view with an empty cache, heads included, in KiB, as Chromium\n"
        f"counts it (content encodings that were sent: {', '.join(encodings)}), and how much of the page\n"
        "moved by itself (the sum of Chromium's layout shifts). The aims are 150 KiB and 0.\n\n"
    )
    kinds = ("Document", "Stylesheet", "Script", "Font")
    rows = []
    for label, view in found.items():
        octets = [view.octets.get(kind, 0) for kind in kinds]
        rest = sum(view.octets.values()) - sum(octets)
        numbers = [*octets, rest, sum(view.octets.values())]
        rows.append([label, *(f"{number / 1024:.0f}" for number in numbers)])
        rows[-1] += [f"{shift:.3f}" for shift in view.shifts.values()]
    widths = [f"moved at {width} px" for width in next(iter(found.values())).shifts]
    return text + table(["page", "page", "styles", "scripts", "fonts", "rest", "all", *widths], rows)


def _shown(found: dict[str, Any]) -> str:
    first = next(iter(found.values()))
    count, changes = first["watched"]["pages"], len(first["shown"]["alone"].seconds)
    text = (
        "From a job's end, as the API tells it, until Chromium draws the state after it in the open page of\n"
        f"its service, {changes} times with no other page open and with {count}. The aim is 1 s:\n\n"
    )
    rows = []
    for name, one in found.items():
        rows.append([name])
        for sample in (one["shown"]["alone"], one["shown"]["watched"]):
            rows[-1] += [f"{sample.median:.2f}", f"{sample.at(95):.2f}"]
    head = ["", "alone: p50, s", "p95, s", f"{count} pages: p50, s", "p95, s"]
    return text + table(head, rows)


def _watched(found: dict[str, Any]) -> str:
    count = next(iter(found.values()))["watched"]["pages"]
    text = (
        f"Whole commands on a small service of the same node, in turn with nobody looking and with {count}\n"
        "open pages (eight different ones, two of them services' with their logs; their event streams are\n"
        "held by a client on the same host):\n\n"
    )
    rows = []
    for name, one in found.items():
        samples = one["watched"]["samples"]
        for verb in ("dump", "restore"):
            alone, watched = samples[verb], samples[f"{verb}, watched"]
            events = f"{one['watched']['events']:.1f}"
            ratios = f"{watched.median / alone.median:.2f}"
            rows.append([f"{name}: {verb}", str(alone), str(watched), ratios, ratio(watched, alone), events])
    head = [
        "",
        "nobody looks, s",
        f"{count} pages, s",
        "ratio of medians",
        "ratio, pair by pair",
        "changes a page",
    ]
    return text + table(head, rows)


def write(section: str, text: str) -> None:
    """Put `text` in its section of docs/performance.md and leave the others as they are."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else _HEAD
    titles = {"bare": "Against bare CRIU", "peers": "Against container engines", "pages": "The pages"}
    stamp = f"Taken on {datetime.now(UTC):%Y-%m-%d} on {machine()}.\n\n"
    body = f"## {titles[section]}\n<!-- {section}: written by the benchmark -->\n\n{stamp}{text.rstrip()}\n"
    pattern = re.compile(rf"## {titles[section]}\n.*?(?=^## |\Z)", re.S | re.M)
    page = pattern.sub(lambda _: body + "\n", page) if pattern.search(page) else f"{page.rstrip()}\n\n{body}"
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page.rstrip() + "\n", encoding="utf-8")
