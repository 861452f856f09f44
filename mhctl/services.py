"""The verbs of `mhctl service`."""

from __future__ import annotations

from mhctl.client import segment
from mhctl.errors import UsageError
from mhctl.jobs import client_of, describe, make_job
from mhctl.text import command_line, put, put_json, table, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mhctl.commandline import Parsed

    Json = dict[str, Any]


def path_of(parsed: Parsed, tail: str = "") -> str:
    """The API's path of the service that the first operand names."""
    return f"services/{segment('service', parsed.operands[0])}{tail}"


def given(**options: Any) -> Json:
    """Only what was given: the API has the defaults."""
    return {key: each for key, each in options.items() if each not in (None, False)}


def given_at_all(option: Any) -> bool:
    """Tell whether an option was given; 0 is a wish too, if a bad one."""
    return option is not None and option is not False and option != []


def service_id(job: Json) -> str:
    """What most verbs print."""
    return str(job.get("service"))


# How the API groups the options of `create`.
_CONFINEMENT = {
    "privileges": ("cap_add", "cap_drop", "new_privileges", "private_tmp"),
    "limits": ("memory", "tasks", "open_files"),
}


def create(parsed: Parsed) -> None:
    """`mhctl service create`."""
    options = parsed.options
    body: Json = {"args": parsed.operands}
    if options["user"] is not None:
        user, colon, group = options["user"].partition(":")
        if not user or (colon and not group):
            raise UsageError(f"The option -u needs USER or USER:GROUP, not {options['user']!r}.")
        body["user"] = user
        if group:
            body["group"] = group
    if options["cwd"] is not None:
        body["cwd"] = options["cwd"]
    env = {}
    for pair in options["env"]:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"The option -e needs K=V, not {pair!r}.")
        env[key] = text
    if env:
        body["env"] = env
    if options["bind"]:
        body["binds"] = [_checked_bind(bind) for bind in options["bind"]]
    for group, names in _CONFINEMENT.items():
        asked = {name: options[name] for name in names if given_at_all(options[name])}
        if asked:
            body[group] = asked
    body |= {
        name: options[name]
        for name in ("data", "carry", "restore_on_boot", "name")
        if given_at_all(options[name])
    }
    make_job(parsed, "POST", "services", body=body, result=service_id)


def _checked_bind(bind: str) -> str:
    parts = bind.split(":")
    if (
        len(parts) not in (2, 3)
        or not all(part.startswith("/") for part in parts[:2])
        or parts[2:] not in ([], ["ro"])
    ):
        raise UsageError(f"The option -b needs SRC:DST or SRC:DST:ro with absolute paths, not {bind!r}.")
    return bind


def list_services(parsed: Parsed) -> None:
    """`mhctl service list`."""
    everything = parsed.options["all"]
    services = client_of(parsed).rows("services", query={"all": 1 if everything else None})
    if parsed.options["json"]:
        put_json(services)
        return
    heads = (
        ["OBJECT_ID", "PID", "PPID", "STATUS", "NAME", "ARGS"]
        if everything
        else ["OBJECT_ID", "PID", "PPID", "ARGS"]
    )
    rows = []
    for service in services:
        row = [str(service["object_id"]), value(service.get("pid")), value(service.get("ppid"))]
        if everything:
            row += [value(service.get("status")), value(service.get("name"))]
        rows.append([*row, command_line(service.get("args") or [])])
    put(table(heads, rows, least={"OBJECT_ID": 32, "PID": 5, "PPID": 5}))


def show(parsed: Parsed) -> None:
    """`mhctl service show`."""
    query = {"show_env": 1} if parsed.options["env"] else None
    service = client_of(parsed).call("GET", path_of(parsed), query=query)
    if parsed.options["json"]:
        put_json(service)
        return
    env = service.get("env") or {}
    if env and not parsed.options["env"]:
        service["env"] = f"{', '.join(env)} (values: --env)"
    put(describe(service))


def dump(parsed: Parsed) -> None:
    """`mhctl service dump (-t PID | SERVICE)`."""
    _service_or_pid(parsed)
    make_job(
        parsed,
        "POST",
        path_of(parsed, "/dump"),
        body=given(leave_running=parsed.options["leave_running"]) | dump_options(parsed),
        result=lambda job: str((job.get("result") or {}).get("path") or job.get("image")),
    )


def drain(parsed: Parsed) -> None:
    """`mhctl service drain`."""
    from mhctl.draining import drain as drain_all

    drain_all(parsed, dump_options(parsed))


def check(parsed: Parsed) -> None:
    """`mhctl service check (-t PID | SERVICE)`."""
    from mhctl.looking import check_service

    _service_or_pid(parsed)
    check_service(parsed, path_of(parsed, "/check"), dump_options(parsed))


def dump_options(parsed: Parsed) -> Json:
    """The options of a dump as the API has them."""
    options = parsed.options
    return given(
        tcp_close=options["tcp_close"],
        tcp_skip_in_flight=options["tcp_skip_in_flight"],
        ghost_limit=options["ghost_limit"],
        force_irmap=options["force_irmap"] or None,
        freeze_timeout=options["freeze_timeout"],
        carry=options["carry"] or None,
    )


def _service_or_pid(parsed: Parsed) -> None:
    """Makes an operand of -t PID."""
    pid = parsed.options["pid"]
    if bool(parsed.operands) == (pid is not None):
        remedy = f"See `mhctl service {parsed.verb.name if parsed.verb else ''} --help`."
        raise UsageError("Either SERVICE or -t PID is needed.", remedy=remedy)
    if pid is not None:
        if not (pid.isascii() and pid.isdecimal() and int(pid) > 0):
            raise UsageError(
                f"The option -t needs a process id, not {pid!r}.", remedy="See `mhctl service list` for them."
            )
        parsed.operands = [f"pid:{int(pid)}"]


def restore(parsed: Parsed) -> None:
    """`mhctl service restore (SERVICE | --from IMAGE)`."""
    image = parsed.options["from"]
    if bool(parsed.operands) == bool(image):
        raise UsageError(
            "Either SERVICE or --from IMAGE is needed.",
            remedy="Name a dumped service, or an image that `mhctl image list` shows.",
        )
    make_job(
        parsed,
        "POST",
        f"images/{segment('image', image)}/restore" if image else path_of(parsed, "/restore"),
        body=given(
            accept_changed_files=parsed.options["accept_changed_files"],
            tcp_close=parsed.options["tcp_close"],
        ),
        result=lambda job: str(job.get("image")),
    )


def start(parsed: Parsed) -> None:
    """`mhctl service start`."""
    make_job(parsed, "POST", path_of(parsed, "/start"), body={}, result=service_id)


def stop(parsed: Parsed) -> None:
    """`mhctl service stop`."""
    make_job(parsed, "POST", path_of(parsed, "/stop"), body=_grace(parsed), result=service_id)


def restart(parsed: Parsed) -> None:
    """`mhctl service restart`."""
    make_job(parsed, "POST", path_of(parsed, "/restart"), body=_grace(parsed), result=service_id)


def _grace(parsed: Parsed) -> Json:
    # A grace of 0 seconds is a wish too: kill at once.
    return {} if parsed.options["grace"] is None else {"grace": parsed.options["grace"]}


def logs(parsed: Parsed) -> None:
    """`mhctl service logs`: the service's own bytes; on a terminal, which they could steer, made visible."""
    import sys

    from mhctl.text import Harmless, put_bytes

    harmless = Harmless() if sys.stdout.isatty() else None
    follow = parsed.options["follow"]
    query = {"lines": parsed.options["lines"], "follow": 1 if follow else None}
    # While nothing is written nothing comes, so a followed log has no time limit.
    limit: Json = {"timeout": None} if follow else {}
    response = client_of(parsed).open(
        "GET", path_of(parsed, "/logs"), query=query, accept="text/plain", **limit
    )
    try:
        for piece in response.pieces():
            put_bytes(harmless.shown(piece) if harmless else piece)
    finally:
        response.close()


def top(parsed: Parsed) -> None:
    """`mhctl service top [SERVICE]`."""
    from mhctl.using import top as look

    look(parsed)


def change(parsed: Parsed) -> None:
    """`mhctl service set`."""
    options = parsed.options
    if options["restore_on_boot"] == options["no_restore_on_boot"]:
        raise UsageError("One of --restore-on-boot and --no-restore-on-boot is needed.")
    service = client_of(parsed).call(
        "PATCH", path_of(parsed), body={"restore_on_boot": options["restore_on_boot"]}
    )
    if parsed.options["json"]:
        put_json(service)
    else:
        put(f"{service['object_id']}\n")


def schedule(parsed: Parsed) -> None:
    """`mhctl service schedule`: prints the service's id, or the schedule if nothing is to be changed."""
    options = parsed.options
    body = {name: options[name] for name in ("every", "cron", "keep") if given_at_all(options[name])}
    if options["off"] and body:
        raise UsageError("The option --off goes with no other.")
    method = "DELETE" if options["off"] else "PUT" if body else "GET"
    found = client_of(parsed).call(method, path_of(parsed, "/schedule"), body=body or None)
    if options["json"]:
        put_json(found)
    elif method == "GET":
        put(describe(found, skip=("every", "cron")))
    else:
        put(f"{found['object_id']}\n")


def rename(parsed: Parsed) -> None:
    """`mhctl service rename`."""
    service = client_of(parsed).call("PATCH", path_of(parsed), body={"name": parsed.operands[1]})
    if parsed.options["json"]:
        put_json(service)
    else:
        put(f"{service['object_id']}\n")


def delete(parsed: Parsed) -> None:
    """`mhctl service delete`."""
    query = {"stop": 1} if parsed.options["stop"] else None
    make_job(parsed, "DELETE", path_of(parsed), query=query, result=service_id)


VERBS: dict[str, Callable[[Parsed], None]] = {
    "create": create,
    "list": list_services,
    "show": show,
    "dump": dump,
    "drain": drain,
    "check": check,
    "restore": restore,
    "start": start,
    "stop": stop,
    "restart": restart,
    "logs": logs,
    "top": top,
    "set": change,
    "schedule": schedule,
    "rename": rename,
    "delete": delete,
}
