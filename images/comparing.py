"""What differs between the contents of two images of one service. Plain Python: it knows no rows.

PIDs and descriptors are the service's own, inside its PID namespace, so they stay over dumps and restores.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]
_MOST = 1000


def compare(before: Json, after: Json) -> dict[str, Any]:
    """Return what changed from one image's contents to another's.

    Args:
        before, after: as worker/inspecting.py tells them.

    Returns:
        processes, files, sockets: each with `gone` and `new`; processes also with `changed`, whose memory or
        threads differ. memory: bytes by kind, before and after. mappings: those whose bytes differ, what grew
        most first. environment: names that came and went. same: whether nothing at all differs.
    """
    found: dict[str, Any] = {
        "processes": _processes(before["processes"], after["processes"]),
        "files": _came_and_went(before["files"], after["files"], ("kind", "path", "deleted")),
        "sockets": _came_and_went(before["sockets"], after["sockets"], ("family", "state", "local", "peer")),
        "memory": _memory(before["memory"], after["memory"]),
        "mappings": _mappings(before["mappings"], after["mappings"]),
        "environment": _names(before["environment"], after["environment"]),
    }
    changed = any(
        (
            any(found["processes"][each] for each in ("gone", "new", "changed")),
            any(found[what][each] for what in ("files", "sockets") for each in ("gone", "new")),
            found["mappings"],
            any(found["environment"].values()),
        )
    )
    return {"same": not changed, **found}


def _processes(before: list[Json], after: list[Json]) -> dict[str, Any]:
    # A number that another program has now is another process.
    old = {(each["pid"], each["comm"], tuple(each["args"])): each for each in before}
    new = {(each["pid"], each["comm"], tuple(each["args"])): each for each in after}
    changed = []
    for key in old.keys() & new.keys():
        was, now = old[key], new[key]
        threads = len(was["threads"]), len(now["threads"])
        if was["memory"] != now["memory"] or threads[0] != threads[1] or was["state"] != now["state"]:
            changed.append(
                {
                    "pid": now["pid"],
                    "comm": now["comm"],
                    "args": now["args"],
                    "memory": _step(was["memory"], now["memory"]),
                    "threads": _step(*threads),
                    "state": {"before": was["state"], "after": now["state"]},
                }
            )
    changed.sort(key=lambda each: (-abs(each["memory"]["change"]), each["pid"]))
    return {
        "gone": [old[key] for key in sorted(old.keys() - new.keys())],
        "new": [new[key] for key in sorted(new.keys() - old.keys())],
        "changed": changed,
    }


def _came_and_went(before: list[Json], after: list[Json], names: Iterable[str]) -> dict[str, Any]:
    """Compare descriptors by what they are and who holds them; their numbers may change without meaning."""
    fields = ("pids", *names)

    def counted(rows: list[Json]) -> Counter[tuple[Any, ...]]:
        return Counter(
            tuple(tuple(row[name]) if name == "pids" else row.get(name) for name in fields) for row in rows
        )

    old, new = counted(before), counted(after)

    def listed(rows: Counter[tuple[Any, ...]]) -> list[dict[str, Any]]:
        ordered = sorted(rows.items(), key=lambda each: (-each[1], str(each[0])))
        return [{**dict(zip(fields, key, strict=True)), "count": count} for key, count in ordered[:_MOST]]

    return {
        "gone": listed(old - new),
        "new": listed(new - old),
        "before": sum(old.values()),
        "after": sum(new.values()),
    }


def _memory(before: Json, after: Json) -> dict[str, Any]:
    kinds = [*before, *(kind for kind in after if kind not in before)]
    nothing = {"mapped": 0, "stored": 0}
    return {
        kind: {
            size: _step(before.get(kind, nothing)[size], after.get(kind, nothing)[size]) for size in nothing
        }
        for kind in kinds
    }


def _mappings(before: list[Json], after: list[Json]) -> list[dict[str, Any]]:
    old = {(each["kind"], each["name"]): each for each in before}
    new = {(each["kind"], each["name"]): each for each in after}
    nothing = {"mapped": 0, "stored": 0}
    found = []
    for kind, name in old.keys() | new.keys():
        was, now = old.get((kind, name), nothing), new.get((kind, name), nothing)
        if (was["mapped"], was["stored"]) != (now["mapped"], now["stored"]):
            steps = {size: _step(was[size], now[size]) for size in nothing}
            found.append({"kind": kind, "name": name, **steps})
    return sorted(
        found, key=lambda each: (-each["stored"]["change"], -each["mapped"]["change"], each["name"])
    )


def _names(before: Json, after: Json) -> dict[str, list[str]]:
    old = {name for names in before.values() for name in names}
    new = {name for names in after.values() for name in names}
    return {"gone": sorted(old - new), "new": sorted(new - old)}


def _step(before: int, after: int) -> dict[str, int]:
    return {"before": before, "after": after, "change": after - before}
