"""What services use: `mhctl service top`, one look at one of them or at all."""

from __future__ import annotations

from mhctl.client import segment
from mhctl.jobs import client_of
from mhctl.text import command_line, plain, put, put_json, size, table, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mhctl.commandline import Parsed

    Json = dict[str, Any]


def top(parsed: Parsed) -> None:
    """`mhctl service top [SERVICE]`: the processes of one service as they are now, or a line for each."""
    if not parsed.operands:
        _all(parsed)
        return
    client = client_of(parsed)
    path = f"services/{segment('service', parsed.operands[0])}"
    seen = client.call("GET", f"{path}/now")
    hour = client.call("GET", f"{path}/samples")["samples"]
    if parsed.options["json"]:
        put_json({**seen, "samples": hour})
        return
    processes = seen["processes"]
    heads = ["PID", "USER", "STATE", "THREADS", "CPU", "MEMORY", "ARGS"]
    rows = [
        [
            *(
                str(process["pid"]),
                value(process.get("user") or process.get("uid")),
                plain(str(process["state"])),
            ),
            *(str(process["threads"]), _percent(process.get("cpu")), size(process.get("memory"))),
            command_line(process["args"]) if process["args"] else f"[{plain(str(process['comm']))}]",
        ]
        for process in processes
    ]
    lines = [f"{_sum(processes)}; {_most(hour)}"]
    for socket in seen["sockets"]:
        peer = f" to {plain(socket['peer'])}" if socket["peer"] else ""
        lines.append(f"{socket['family']:<8} {socket['state']:<12} {plain(socket['local'])}{peer}".rstrip())
    lines.append(f"open files: {seen['counts']['files']}")
    if seen["truncated"]:
        lines.append("There is more than is shown here.")
    put(table(heads, rows, least={"PID": 5, "MEMORY": 9}) + "\n".join(lines) + "\n")


def _all(parsed: Parsed) -> None:
    client = client_of(parsed)
    services = client.rows("services")
    loads = client.call("GET", "loads")
    if parsed.options["json"]:
        put_json([{**service, "load": loads.get(service["object_id"])} for service in services])
        return
    rows = []

    def cpu(service: Json) -> float:
        used = loads.get(service["object_id"], {}).get("cpu")
        return -1.0 if used is None else float(used)

    # Who uses most comes first; what was not measured yet, or once only, comes last.
    for service in sorted(services, key=cpu, reverse=True):
        load = loads.get(service["object_id"]) or {}
        rows.append(
            [
                *(str(service["object_id"]), value(service.get("pid")), _percent(load.get("cpu"))),
                *(
                    size(load.get("memory")),
                    value(load.get("processes")),
                    _ports(load.get("listening") or []),
                ),
                plain(service["name"]) or command_line(service.get("args") or []),
            ]
        )
    heads = ["OBJECT_ID", "PID", "CPU", "MEMORY", "PROCESSES", "PORTS", "NAME"]
    put(table(heads, rows, least={"OBJECT_ID": 32, "PID": 5, "MEMORY": 9}))


def _percent(cores: Any) -> str:
    """Processors in percent of one, as top(1) says it."""
    return f"{100 * cores:.1f}%" if isinstance(cores, (int, float)) else "-"


def _ports(addresses: list[str]) -> str:
    found = {int(port) for each in addresses if (port := each.rpartition(":")[2]).isdigit()}
    return ",".join(map(str, sorted(found))) or "-"


def _sum(processes: list[Json]) -> str:
    cpu = sum(process.get("cpu") or 0 for process in processes)
    memory = sum(process.get("memory") or 0 for process in processes)
    return f"all of it: CPU {_percent(cpu)}, memory {size(memory)}"


def _most(hour: list[Json]) -> str:
    if not hour:
        return "not sampled yet"
    cpu, memory = (max(each[name] or 0 for each in hour) for name in ("cpu", "memory"))
    return f"at the top in the last hour: CPU {_percent(cpu)}, memory {size(memory)}"
