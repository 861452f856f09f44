"""The verbs of `mhctl job` and `mhctl check`, and what every job-making verb does after its request."""

from __future__ import annotations

from mhctl.client import Client, segment
from mhctl.errors import MhctlError, UsageError
from mhctl.text import command_line, fields, moment, plain, put, put_json, table, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mhctl.commandline import Parsed

    Json = dict[str, Any]


def client_of(parsed: Parsed) -> Client:
    """The client for the daemon that the command line or the environment names."""
    return Client(parsed.options.get("url") or "")


def make_job(
    parsed: Parsed,
    method: str,
    path: str,
    *,
    body: Json | None = None,
    query: Json | None = None,
    result: Callable[[Json], str],
) -> None:
    """Asks for a job, waits for it unless --no-wait was given, and prints what the verb promises.

    Args:
        result: makes the line to print from the succeeded job; "" for none.

    Raises:
        MhctlError: the job was refused, failed, or is waited for no longer.
    """
    client = client_of(parsed)
    if parsed.options["no_wait"]:
        job = client.call(method, path, query=query, body=body)
        print_queued(job, parsed)
        return
    from mhctl.waiting import Wait

    job = Wait(client, limit=parsed.options["timeout"]).run(method, path, body, query=query)
    if parsed.options["json"]:
        put_json(job)
    raise_unless_succeeded(job)
    line = result(job)
    if line and not parsed.options["json"]:
        put(line + "\n")


def print_queued(job: Json, parsed: Parsed) -> None:
    """What --no-wait prints."""
    if job.get("warning"):
        import sys

        sys.stderr.write(f"mhctl: warning: {plain(str(job['warning']))}\n")
    if parsed.options["json"]:
        put_json(job)
    else:
        put(f"{job['object_id']}\n")


def raise_unless_succeeded(job: Json) -> None:
    """Raises MhctlError (exit code 1) with the job's own words unless it succeeded."""
    status = str(job.get("status"))
    if status == "succeeded":
        return
    error = job.get("error") or {}
    notes = []
    if job.get("service"):
        name = job.get("service_name")
        notes.append(f"service: {job['service']}" + (f" ({name})" if name else ""))
    notes.append(f"job: {job.get('object_id')} ({job.get('kind')}, {status})")
    if job.get("step") and status != "cancelled":
        notes.append(f"step: {job['step']}")
    raise MhctlError(
        str(error.get("message") or f"The job was {status}."),
        remedy=str(error.get("remedy") or f"See `mhctl job show {job.get('object_id')}`."),
        code=str(error.get("code") or status),
        lines=[str(line) for line in error.get("lines") or []],
        notes=notes,
        shown=True,
    )


def list_jobs(parsed: Parsed) -> None:
    """`mhctl job list`."""
    options = parsed.options
    query = {name: options[name] for name in ("limit", "status", "kind", "service", "source")}
    jobs = client_of(parsed).rows("jobs", query=query)
    if options["json"]:
        put_json(jobs)
        return
    rows = [
        [
            str(job["object_id"]),
            value(job.get("kind")),
            value(job.get("status")),
            moment(job.get("queued")),
            value(job.get("service_name") or job.get("service")),
            value(job.get("step")),
        ]
        for job in jobs
    ]
    heads = ["OBJECT_ID", "KIND", "STATUS", "QUEUED", "SERVICE", "STEP"]
    put(table(heads, rows, least={"OBJECT_ID": 32}))


def show_job(parsed: Parsed) -> None:
    """`mhctl job show`."""
    job = client_of(parsed).call("GET", f"jobs/{segment('job', parsed.operands[0])}")
    if parsed.options["json"]:
        put_json(job)
        return
    put(describe(job, skip=("events", "error", "url")))
    for event in job.get("events") or []:
        put(f"  {moment(event.get('at'))} {_event_text(event)}\n")
    error = job.get("error")
    if error:
        put(f"error: {plain(str(error.get('message')))} ({value(error.get('code'))})\n")
        put("".join(f"    {plain(str(line))}\n" for line in error.get("lines") or []))
        if error.get("remedy"):
            put(f"remedy: {plain(str(error['remedy']))}\n")
        for action in error.get("actions") or []:
            put(f"  {plain(str(action['label']))}: {_command_of(action, job)}\n")


def _command_of(action: Json, job: Json) -> str:
    """The command that does what an action of an error says."""
    import json  # not above: most verbs do without it, and start faster

    options = "".join(f" -o {name}={json.dumps(each)}" for name, each in action["options"].items())
    commands = {
        "retry": f"mhctl job retry {job['object_id']}{options}",
        "start": f"mhctl service start {job.get('service')}",
        "verify": f"mhctl image verify {job.get('image')}",
        "check": f"mhctl service check {job.get('service')}",
        "check_host": "mhctl check",
        "prune": "mhctl image list",
        "images": "mhctl image list",
        "dump": f"mhctl service dump {job.get('service')}"
        + "".join(f" --{name.replace('_', '-')} …" for name in action["options"]),
    }
    return commands.get(str(action["action"]), str(action["action"]))


def retry_job(parsed: Parsed) -> None:
    """`mhctl job retry`."""
    import json

    options = {}
    for pair in parsed.options["option"]:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"The option -o needs NAME=VALUE, not {pair!r}.")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    path = f"jobs/{segment('job', parsed.operands[0])}/retry"
    make_job(parsed, "POST", path, body={"options": options}, result=lambda job: str(job.get("object_id")))


def show_log(parsed: Parsed) -> None:
    """`mhctl job log`: CRIU's lines, those of errors marked."""
    found = client_of(parsed).call("GET", f"jobs/{segment('job', parsed.operands[0])}/log")
    if parsed.options["json"]:
        put_json(found)
        return
    if not found["lines"]:
        import sys

        see = f"`mhctl job show {parsed.operands[0]}` says what is known"
        sys.stderr.write(f"mhctl: warning: CRIU left no log of this job; {see}.\n")
    put("".join(f"{'!' if line['error'] else ' '} {plain(line['text'])}\n" for line in found["lines"]))


def _event_text(event: Json) -> str:
    words = [
        value(event.get("status")),
        *(plain(str(event[key])) for key in ("step", "text") if event.get(key)),
    ]
    return ", ".join(words)


def describe(thing: Json, *, skip: tuple[str, ...] = ()) -> str:
    """An object's fields for people: times in UTC, command lines quoted."""
    pairs = []
    for key, each in thing.items():
        if key in skip:
            continue
        if key == "args":
            text = command_line(each or [])
        elif key in TIMES:
            text = moment(each)
        else:
            text = value(each)
        pairs.append((key, text))
    return fields(pairs)


TIMES = frozenset(("created", "changed", "started", "queued", "finished", "ctime", "made", "next", "last"))


def wait_for_job(parsed: Parsed) -> None:
    """`mhctl job wait`: exit code 0 when the job succeeded, 1 when not."""
    from mhctl.waiting import Wait

    wait = Wait(client_of(parsed), limit=parsed.options["timeout"])
    wait.job_id = parsed.operands[0]
    job = wait.run("GET", f"jobs/{segment('job', parsed.operands[0])}", None)
    if parsed.options["json"]:
        put_json(job)
    raise_unless_succeeded(job)
    if not parsed.options["json"]:
        put(f"{job['object_id']}\n")


def cancel_job(parsed: Parsed) -> None:
    """`mhctl job cancel`."""
    job = client_of(parsed).call("POST", f"jobs/{segment('job', parsed.operands[0])}/cancel")
    if parsed.options["json"]:
        put_json(job)
    else:
        put(f"{job['object_id']}\n")


def check(parsed: Parsed) -> None:
    """`mhctl check`: one line a capability, exit code 1 when a needed one is missing."""
    client = client_of(parsed)
    if parsed.options["no_wait"]:
        print_queued(client.call("POST", "check"), parsed)
        return
    from mhctl.waiting import Wait

    job = Wait(client, limit=parsed.options["timeout"]).run("POST", "check", None)
    checks = (job.get("result") or {}).get("checks") or []
    if parsed.options["json"]:
        put_json(job)
    else:
        width = max((len(str(each.get("name"))) for each in checks), default=0)
        for each in checks:
            put(_check_line(each, width))
    missing = [str(each.get("name")) for each in checks if not each.get("ok") and each.get("needed", True)]
    if not checks:
        raise_unless_succeeded(job)
        raise MhctlError(
            "The check's job names no checks.", remedy="Report it.", code="no_checks", shown=True
        )
    if missing:
        raise MhctlError(
            f"This host lacks {', '.join(missing)}.",
            remedy="Follow the remedies above, then check again.",
            code="host_lacks",
            shown=True,
        )


def _check_line(each: Json, width: int) -> str:
    word = "ok" if each.get("ok") else "missing"
    detail = plain(str(each.get("detail") or ""))
    line = f"{plain(str(each.get('name'))):<{width}} {word:<7} {detail}".rstrip() + "\n"
    if not each.get("ok") and each.get("remedy"):
        line += f"{'':<{width}} remedy: {plain(str(each['remedy']))}\n"
    return line


VERBS: dict[str, Callable[[Parsed], None]] = {
    "list": list_jobs,
    "show": show_job,
    "wait": wait_for_job,
    "cancel": cancel_job,
    "retry": retry_job,
    "log": show_log,
    "": check,
}
