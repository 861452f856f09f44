"""The table of states: complete, and enough for every kind of job."""

import pytest

from services import states
from services.states import JobKind, JobState, ServiceState


def test_every_state_and_kind_stands_in_its_table() -> None:
    assert set(states.SERVICE_TRANSITIONS) == set(ServiceState)
    assert set(states.JOB_TRANSITIONS) == set(JobState)
    assert set(states.KINDS) == set(JobKind)


@pytest.mark.parametrize("kind", [kind for kind in JobKind if states.KINDS[kind].allowed])
def test_a_kind_can_run_and_succeed_from_each_state_it_may_be_asked_from(kind: JobKind) -> None:
    for now in states.KINDS[kind].allowed:
        during = states.transient_state(kind, now) or now
        after = states.state_after_success(kind) or during
        assert states.may_move(now, during), (now, during)
        assert states.may_move(during, after), (during, after)
        assert during == now or states.may_move(during, now), "a failure goes back to the state before"


def test_an_ended_job_stays_ended() -> None:
    for state in states.ENDED_JOB:
        assert not states.JOB_TRANSITIONS[state]


def test_a_dump_that_leaves_the_service_running_ends_running() -> None:
    assert states.state_after_success(JobKind.DUMP, leave_running=True) is ServiceState.RUNNING
    assert states.state_after_success(JobKind.DUMP) is ServiceState.DUMPED


def test_a_stopped_service_cannot_be_dumped() -> None:
    assert not states.may_move(ServiceState.STOPPED, ServiceState.DUMPING)
