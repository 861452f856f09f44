"""States of services and jobs and the one table of allowed transitions. Plain Python: it knows no Django."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class ServiceState(StrEnum):
    """Where a service is. The ones that end in -ing last as long as a job works on it, `running` aside."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    DUMPING = "dumping"
    DUMPED = "dumped"
    RESTORING = "restoring"
    STOPPING = "stopping"
    STOPPED = "stopped"
    EXITED = "exited"
    FAILED = "failed"


class JobState(StrEnum):
    """Where a job is; the last five are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERRORED = "errored"
    LOST = "lost"
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """What a job does."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    DUMP = "dump"
    RESTORE = "restore"
    DELETE_SERVICE = "delete_service"
    VERIFY_IMAGE = "verify_image"
    DELETE_IMAGE = "delete_image"
    EXPORT_IMAGE = "export_image"
    IMPORT_IMAGE = "import_image"
    CHECK = "check"
    CHECK_SERVICE = "check_service"
    CHECK_COMMAND = "check_command"
    READ_ENVIRONMENT = "read_environment"


S = ServiceState
J = JobState

WITHOUT_PROCESS = frozenset({S.CREATED, S.DUMPED, S.STOPPED, S.EXITED, S.FAILED})
TRANSIENT = frozenset({S.STARTING, S.DUMPING, S.RESTORING, S.STOPPING})
SETTLED = WITHOUT_PROCESS | {S.RUNNING}
ACTIVE_JOB = frozenset({J.QUEUED, J.RUNNING})
ENDED_JOB = frozenset(JobState) - ACTIVE_JOB
BAD_JOB = frozenset({J.FAILED, J.ERRORED, J.LOST})

# A transient state may end in any settled one: the worker says what is true after a failure.
# From a state without a process to `running` is the agent finding the process after all.
SERVICE_TRANSITIONS: Mapping[ServiceState, frozenset[ServiceState]] = {
    S.CREATED: frozenset({S.STARTING, S.RESTORING, S.RUNNING, S.EXITED, S.FAILED}),
    S.STOPPED: frozenset({S.STARTING, S.RESTORING, S.RUNNING, S.EXITED, S.FAILED}),
    S.EXITED: frozenset({S.STARTING, S.RESTORING, S.RUNNING, S.STOPPED, S.FAILED}),
    S.FAILED: frozenset({S.STARTING, S.RESTORING, S.RUNNING, S.STOPPED, S.EXITED}),
    S.DUMPED: frozenset({S.STARTING, S.RESTORING, S.RUNNING, S.EXITED, S.FAILED}),
    S.RUNNING: frozenset({S.DUMPING, S.STOPPING, S.STOPPED, S.EXITED, S.FAILED, S.DUMPED}),
    S.STARTING: SETTLED,
    S.DUMPING: SETTLED,
    S.RESTORING: SETTLED,
    S.STOPPING: SETTLED,
}

JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    J.QUEUED: frozenset({J.RUNNING, J.CANCELLED, J.FAILED}),
    J.RUNNING: frozenset({J.SUCCEEDED, J.FAILED, J.ERRORED, J.LOST}),
    **{state: frozenset[JobState]() for state in ENDED_JOB},
}


@dataclass(frozen=True)
class Kind:
    """What a kind of job asks of a service and does to its state.

    allowed: states to ask from (empty: the job needs no service).
    transient: the state while it runs, or None for no change.
    success: the state afterwards, or None for no change (or, for delete_service, no row).
    """

    allowed: frozenset[ServiceState]
    transient: ServiceState | None
    success: ServiceState | None


KINDS: Mapping[JobKind, Kind] = {
    JobKind.START: Kind(WITHOUT_PROCESS, S.STARTING, S.RUNNING),
    JobKind.STOP: Kind(frozenset({S.RUNNING}), S.STOPPING, S.STOPPED),
    JobKind.RESTART: Kind(frozenset({S.RUNNING, S.STOPPED, S.EXITED, S.FAILED}), S.STOPPING, S.RUNNING),
    JobKind.DUMP: Kind(frozenset({S.RUNNING}), S.DUMPING, S.DUMPED),
    JobKind.RESTORE: Kind(WITHOUT_PROCESS, S.RESTORING, S.RUNNING),
    JobKind.DELETE_SERVICE: Kind(SETTLED, S.STOPPING, None),
    JobKind.VERIFY_IMAGE: Kind(frozenset(), None, None),
    JobKind.DELETE_IMAGE: Kind(frozenset(), None, None),
    JobKind.EXPORT_IMAGE: Kind(frozenset(), None, None),
    JobKind.IMPORT_IMAGE: Kind(frozenset(), None, None),
    JobKind.CHECK: Kind(frozenset(), None, None),
    JobKind.CHECK_SERVICE: Kind(frozenset(), None, None),
    JobKind.CHECK_COMMAND: Kind(frozenset(), None, None),
    JobKind.READ_ENVIRONMENT: Kind(frozenset(), None, None),
}


def may_move(old: ServiceState, new: ServiceState) -> bool:
    """Tell whether a service may go from `old` to `new`; staying is always allowed."""
    return old == new or new in SERVICE_TRANSITIONS[old]


def transient_state(kind: JobKind, now: ServiceState) -> ServiceState | None:
    """Return the state of the service while a job of `kind` runs, None for "as it is".

    There is nothing to stop where no process is: restart begins as a start, delete leaves the state.
    """
    if now in WITHOUT_PROCESS and kind is JobKind.RESTART:
        return S.STARTING
    if now in WITHOUT_PROCESS and kind is JobKind.DELETE_SERVICE:
        return None
    return KINDS[kind].transient


def state_after_success(kind: JobKind, *, leave_running: bool = False) -> ServiceState | None:
    """Return the service's state after a job of `kind` succeeded, None for "as it is"."""
    if kind is JobKind.DUMP and leave_running:
        return S.RUNNING
    return KINDS[kind].success


def has_process(state: ServiceState) -> bool:
    """Tell whether a service in `state` has a process of its own that a PID can name."""
    return state not in WITHOUT_PROCESS
