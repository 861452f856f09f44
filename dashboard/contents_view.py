"""What is in an image, arranged for a page: the process tree, memory by kind, the largest mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

MOST_ROWS = 200
MOST_MAPPINGS = 25
DEEPEST = 12


@dataclass(frozen=True)
class Branch:
    """A process in the tree. depth: 0 for the first. share: percent of the whole memory."""

    process: Json
    depth: int
    share: float


@dataclass(frozen=True)
class Slice:
    """Memory of one kind. x, width: percent of the bar. colour: a number for the stylesheet."""

    kind: str
    stored: int
    mapped: int
    x: float
    width: float
    colour: int


def tree(processes: Sequence[Json]) -> list[Branch]:
    """Return processes, parents before their children; each once, whatever the image says of parents."""
    whole = sum(each["memory"] for each in processes) or 1
    known = {each["pid"] for each in processes}
    children: dict[int, list[Json]] = {}
    for each in processes:
        parent = each["ppid"] if each["ppid"] in known and each["ppid"] != each["pid"] else 0
        children.setdefault(parent, []).append(each)
    found: list[Branch] = []
    seen: set[int] = set()
    todo = [(each, 0) for each in reversed(children.get(0, []))]
    while todo:
        each, depth = todo.pop()
        if each["pid"] in seen:
            continue
        seen.add(each["pid"])
        found.append(Branch(each, min(depth, DEEPEST), round(100 * each["memory"] / whole, 2)))
        todo += [(child, depth + 1) for child in reversed(children.get(each["pid"], []))]
    return found


def slices(memory: Json) -> list[Slice]:
    """Return the kinds of memory as slices of one bar, by the bytes that are stored."""
    whole = sum(sizes["stored"] for sizes in memory.values())
    found, x = [], 0.0
    for colour, (kind, sizes) in enumerate(memory.items(), 1):
        width = 100 * sizes["stored"] / whole if whole else 0.0
        found.append(Slice(kind, sizes["stored"], sizes["mapped"], round(x, 3), round(width, 3), colour))
        x += width
    return [each for each in found if each.mapped or each.stored]


def arranged(contents: Json) -> dict[str, Any]:
    """Return what the page of an image shows of its contents."""
    mappings = [each for each in contents["mappings"] if each["stored"]][:MOST_MAPPINGS]
    largest = max((each["stored"] for each in mappings), default=0) or 1
    return {
        "tree": tree(contents["processes"][:MOST_ROWS]),
        "slices": slices(contents["memory"]),
        "stored": sum(sizes["stored"] for sizes in contents["memory"].values()),
        "mapped": sum(sizes["mapped"] for sizes in contents["memory"].values()),
        "mappings": [{**each, "width": round(100 * each["stored"] / largest, 2)} for each in mappings],
        "files": contents["files"][:MOST_ROWS],
        "sockets": contents["sockets"][:MOST_ROWS],
        "names": sorted({name for names in contents["environment"].values() for name in names}),
        "counts": contents["counts"],
        "cut": contents["truncated"]
        or max(len(contents["files"]), len(contents["sockets"]), len(contents["processes"])) > MOST_ROWS,
    }
