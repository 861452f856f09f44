"""What the verbs print that look into a service or an image: the dry run, the contents, the comparison."""

from __future__ import annotations

from mhctl.client import segment
from mhctl.errors import MhctlError
from mhctl.jobs import client_of, print_queued, raise_unless_succeeded
from mhctl.text import command_line, plain, put, put_json, size

READ_WITHIN = 10.0  # seconds that an image's contents are waited for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mhctl.client import Client
    from mhctl.commandline import Parsed

    Json = dict[str, Any]


def check_service(parsed: Parsed, path: str, body: Json) -> None:
    """`mhctl service check`: exit code 0 when a dump with these options would succeed, 1 when not.

    Raises:
        MhctlError: it would not, or the node could not say.
    """
    client = client_of(parsed)
    if parsed.options["no_wait"]:
        print_queued(client.call("POST", path, body=body), parsed)
        return
    from mhctl.waiting import Wait

    job = Wait(client, limit=parsed.options["timeout"]).run("POST", path, body)
    if parsed.options["json"]:
        put_json(job)
    raise_unless_succeeded(job)
    found = job.get("result") or {}
    if not parsed.options["json"]:
        put(_dry_run(found))
    if not found.get("able"):
        refusals = found.get("verdict") == "no"
        raise MhctlError(
            "The service cannot be dumped now." if refusals else "The dump needs other options.",
            remedy="Follow the remedies above."
            if refusals
            else f"Add {_as_words(found.get('options') or {})}.",
            code="cannot_dump" if refusals else "options_needed",
            shown=True,
        )


def _as_words(options: Json) -> str:
    """Options of the API as those of the command line."""
    words = []
    for name, each in options.items():
        word = "--" + name.replace("_", "-")
        words.append(word if each is True else f"{word} {each}")
    return " ".join(words)


def _dry_run(found: Json) -> str:
    lines = [plain(str(found.get("sentence")))]
    for finding in found.get("findings") or []:
        lines.append(f"  {finding.get('severity')}: {plain(str(finding.get('message')))}")
        if finding.get("remedy"):
            lines.append(f"    remedy: {plain(str(finding['remedy']))}")
    estimate = found.get("estimate") or {}
    connections = found.get("connections") or {}
    facts = [
        f"image: about {size(estimate.get('image_bytes'))}",
        f"processes: {found.get('processes')}",
        f"connections: {connections.get('connected')}",
        f"listening: {', '.join(found.get('listening') or []) or '-'}",
    ]
    if estimate.get("frozen_seconds") is not None:
        facts.append(f"frozen: about {estimate['frozen_seconds']:g} s, going by the last dump")
    return "\n".join(lines + facts) + "\n"


def image_contents(found: Json) -> str:
    """What is in an image, for people; the answer of GET images/ID/contents."""
    contents = found.get("contents")
    if not contents:
        return f"contents: {found.get('state')} {plain(str(found.get('error') or ''))}".rstrip() + "\n"
    lines = ["", "processes:"]
    lines += [f"  {line}" for line in _tree(contents["processes"])]
    lines.append("memory:")
    for kind, sizes in contents["memory"].items():
        if sizes["mapped"] or sizes["stored"]:
            lines.append(f"  {kind:<10} {size(sizes['stored']):>12} of {size(sizes['mapped'])} mapped")
    lines.append("sockets:")
    for socket in contents["sockets"]:
        peer = f" to {plain(socket['peer'])}" if socket["peer"] else ""
        lines.append(f"  {socket['family']:<8} {socket['state']:<12} {plain(socket['local'])}{peer}".rstrip())
    lines.append(f"open files: {contents['counts']['files']}")
    lines += [f"  {each['kind']:<10} {plain(each['path'])}" for each in contents["files"] if each.get("path")]
    if contents["truncated"]:
        lines.append("There is more than is shown here.")
    return "\n".join(lines) + "\n"


def _tree(processes: list[Json]) -> list[str]:
    """Processes as ps(1) shows a forest; each once, whatever the image says of parents."""
    children: dict[int, list[Json]] = {}
    known = {process["pid"] for process in processes}
    for process in processes:
        parent = process["ppid"] if process["ppid"] in known and process["ppid"] != process["pid"] else 0
        children.setdefault(parent, []).append(process)
    lines: list[str] = []
    shown: set[int] = set()
    todo = [(process, 0) for process in reversed(children.get(0, []))]
    while todo:
        process, depth = todo.pop()
        if process["pid"] in shown:
            continue
        shown.add(process["pid"])
        words = command_line(process["args"]) if process["args"] else f"[{plain(process['comm'])}]"
        threads = len(process["threads"])
        more = f", {threads} threads" if threads > 1 else ""
        lines.append(
            f"{process['pid']:>7} {size(process['memory']):>11}  {'  ' * min(depth, 20)}{words}"
            f" ({process['state']}{more})"
        )
        todo += [(child, depth + 1) for child in reversed(children.get(process["pid"], []))]
    return lines


def until_read(look: Callable[[], Json | None]) -> Json | None:
    """What `look` returns once it is not None; None if the worker has not read the image in a while."""
    import time

    deadline = time.monotonic() + READ_WITHIN
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def contents_of(client: Client, path: str) -> Json:
    """The answer of GET images/ID/contents; of an image that was just made, when it has been read."""

    def look() -> Json | None:
        last.update(client.call("GET", path))
        return None if last.get("state") == "pending" else last

    last: Json = {}
    return until_read(look) or last


def compare_images(parsed: Parsed) -> None:
    """`mhctl image compare BEFORE AFTER`."""
    before, after = (segment("image", word) for word in parsed.operands)
    client, path = client_of(parsed), f"images/{before}/compare/{after}"

    def look() -> Json | None:
        try:
            compared: Json = client.call("GET", path)
        except MhctlError as error:
            if error.code != "contents_pending":
                raise
            return None
        return compared

    # The last word is the API's own, should the worker be away.
    found = until_read(look) or client.call("GET", path)
    if parsed.options["json"]:
        put_json(found)
        return
    put("".join(f"{line}\n" for line in _differences(found)))


def _differences(found: Json) -> list[str]:
    lines = [f"from {found['before']['object_id']}", f"to   {found['after']['object_id']}"]
    if found["same"]:
        return [*lines, "Nothing differs."]
    lines += _came_and_went(
        "process", found["processes"], lambda each: command_line(each["args"] or [each["comm"]])
    )
    for each in found["processes"]["changed"]:
        lines.append(f"~ process {each['pid']} {plain(each['comm'])}: memory {_step(each['memory'])}")
    lines += _came_and_went(
        "file", found["files"], lambda each: f"{each['kind']} {plain(each['path'] or '')}".rstrip()
    )
    lines += _came_and_went(
        "socket",
        found["sockets"],
        lambda each: " ".join(filter(None, (each["family"], each["state"], each["local"], each["peer"]))),
    )
    lines += [
        f"~ {kind}: {_step(sizes['stored'])}"
        for kind, sizes in found["memory"].items()
        if sizes["stored"]["change"]
    ]
    lines += [f"~ {plain(each['name'])}: {_step(each['stored'])}" for each in found["mappings"][:20]]
    lines += [f"+ variable {plain(name)}" for name in found["environment"]["new"]]
    lines += [f"- variable {plain(name)}" for name in found["environment"]["gone"]]
    return lines


def _came_and_went(noun: str, found: Json, show: Callable[[Json], str]) -> list[str]:
    lines = []
    for sign, rows in (("-", found["gone"]), ("+", found["new"])):
        for each in rows:
            count = f" ({each['count']} times)" if each.get("count", 1) > 1 else ""
            lines.append(f"{sign} {noun} {plain(show(each))}{count}")
    return lines


def _step(step: Json) -> str:
    sign = "+" if step["change"] >= 0 else "-"
    return f"{size(step['before'])} to {size(step['after'])} ({sign}{size(abs(step['change']))})"


def environment(parsed: Parsed) -> None:
    """`mhctl image environment IMAGE`: the values, which are often passwords."""
    from mhctl.waiting import Wait

    client = client_of(parsed)
    path = f"images/{segment('image', parsed.operands[0])}/environment"
    job = Wait(client).run("POST", path, {})
    raise_unless_succeeded(job)
    found = client.call("GET", f"{path}/{job['object_id']}")
    if parsed.options["json"]:
        put_json(found)
        return
    for pid, variables in found.items():
        put(
            f"process {pid}:\n"
            + "".join(f"  {plain(f'{name}={each}')}\n" for name, each in variables.items())
        )
