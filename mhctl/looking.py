"""What the verbs print that look into a service or an image: the dry run, the contents, the comparison."""

from __future__ import annotations

from mhctl.errors import MhctlError
from mhctl.jobs import client_of, print_queued, raise_unless_succeeded
from mhctl.text import plain, put, put_json, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
