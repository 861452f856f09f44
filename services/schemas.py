"""What the API takes and gives, for its checks and its OpenAPI page. It knows no rows."""

from typing import Any

from ninja import Schema
from pydantic import ConfigDict, Field


class Input(Schema):
    """A body: no conversions ("1" is no number), no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Privileges(Input):
    """cap_add, cap_drop: names of capabilities(7), or ALL. new_privileges: setuid programs work.
    private_tmp: the size of a /tmp of its own, in bytes or as "64M".
    """

    cap_add: list[str] = Field(default_factory=list)
    cap_drop: list[str] = Field(default_factory=list)
    new_privileges: bool = False
    private_tmp: int | str | None = None


class Limits(Input):
    """memory: in bytes or as "512M". tasks: processes and threads together. open_files: of each process."""

    memory: int | str | None = None
    tasks: int | None = None
    open_files: int | None = None


class NewService(Input):
    """args: command and arguments. user, group: names or numbers. cwd: absolute. binds: SRC:DST[:ro].
    data: files and folders, as the service sees them, that a restore compares with what they were.
    carry: those that its images hold, and that a restore puts back; they must belong to its user.
    restore_on_boot: come back from the newest sound image when the node is started anew; be dumped and
    restored where no supervisor can take over.
    """

    args: list[str]
    user: str = "root"
    group: str = ""
    cwd: str = "/"
    env: dict[str, str] = Field(default_factory=dict)
    name: str = ""
    binds: list[str] = Field(default_factory=list)
    data: list[str] = Field(default_factory=list)
    carry: list[str] = Field(default_factory=list)
    privileges: Privileges = Field(default_factory=Privileges)
    limits: Limits = Field(default_factory=Limits)
    restore_on_boot: bool = False


class Change(Input):
    """name: the new name; "" takes the name away. restore_on_boot: as for a new service. None: as it is."""

    name: str | None = None
    restore_on_boot: bool | None = None


class Rename(Input):
    """name: the new name; "" takes the name away."""

    name: str


class Nothing(Input):
    """An operation without options."""


class StopOptions(Input):
    """grace: seconds between SIGTERM and SIGKILL; 0 kills at once."""

    grace: float | None = None


class DumpOptions(Input):
    """leave_running: go on running after the dump. tcp_close: drop open TCP connections instead of keeping
    them. tcp_skip_in_flight: leave out those that were not accepted yet. ghost_limit: bytes of a deleted open
    file that go into the image. force_irmap: folders to search for files that are watched. freeze_timeout:
    seconds that the processes may take to freeze. carry: files and folders that the image shall hold besides
    those of the service.
    """

    leave_running: bool = False
    tcp_close: bool = False
    tcp_skip_in_flight: bool = False
    ghost_limit: int = 0
    force_irmap: list[str] = Field(default_factory=list)
    freeze_timeout: float = 0
    carry: list[str] = Field(default_factory=list)


class CheckedCommand(Input):
    """The first word of a command, and what else decides whether it can be started; as for a new service."""

    args: list[str]
    user: str = "root"
    group: str = ""
    cwd: str = "/"
    env: dict[str, str] = Field(default_factory=dict)


class ErrorDetail(Schema):
    code: str
    message: str
    remedy: str
    details: dict[str, Any]


class ErrorAnswer(Schema):
    """Every answer of 400 and above."""

    error: ErrorDetail


class NodeAnswer(Schema):
    name: str
    last_seen: str | None
    criu_version: str
    kernel: str
    capabilities: dict[str, Any]


class ServiceAnswer(Schema):
    """ppid is the service's supervisor; job its active job. env: its values are null unless asked for."""

    object_id: str
    name: str
    node: str
    status: str
    status_reason: str
    pid: int | None
    ppid: int | None
    args: list[str]
    user: str
    group: str
    cwd: str
    env: dict[str, str | None]
    binds: list[str]
    data: list[str]
    carry: list[str]
    privileges: dict[str, Any]
    limits: dict[str, int]
    restore_on_boot: bool
    exit_code: int | None
    exit_signal: int | None
    created: str
    changed: str
    started: str | None
    image: str | None
    job: str | None


class LoadAnswer(Schema):
    """cpu: cores, null at the first look. memory: bytes that no file backs. listening: addresses."""

    at: str
    cpu: float | None
    memory: int
    processes: int
    listening: list[str]


class SampleAnswer(Schema):
    at: str
    cpu: float | None
    memory: int
    processes: int


class SamplesAnswer(Schema):
    """every: seconds between two samples. now: null for a service that does not run."""

    object_id: str
    every: float
    now: LoadAnswer | None
    samples: list[SampleAnswer]


class NowAnswer(Schema):
    """Each process with its PID on the host and inside; files and sockets with the PIDs that hold them."""

    object_id: str
    processes: list[dict[str, Any]]
    files: list[dict[str, Any]]
    sockets: list[dict[str, Any]]
    counts: dict[str, int]
    truncated: bool


class EventAnswer(Schema):
    at: str
    status: str
    step: str
    text: str


class JobAction(Schema):
    """A remedy that can be asked for: retry (POST jobs/ID/retry with these options), start, verify, check,
    check_host, dump (once more, with these options filled in), prune (see which images can go), or images
    (see those of the service).
    label: what its button says.
    """

    action: str
    label: str
    options: dict[str, Any]


class JobError(Schema):
    code: str
    message: str
    remedy: str
    lines: list[str]
    actions: list[JobAction]


class LogLine(Schema):
    text: str
    error: bool


class LogAnswer(Schema):
    """The end of CRIU's log of a job that failed; error marks the lines that tell of one."""

    object_id: str
    lines: list[LogLine]


class JobAnswer(Schema):
    """warning: there only while the job waits for a queue that is down."""

    object_id: str
    kind: str
    service: str | None
    service_name: str
    image: str | None
    retry_of: str | None
    node: str
    status: str
    step: str
    options: dict[str, Any]
    requested_by: str
    source: str
    queued: str
    started: str | None
    finished: str | None
    error: JobError | None
    result: dict[str, Any]
    statistics: dict[str, Any]
    events: list[EventAnswer]
    url: str
    warning: str = ""
