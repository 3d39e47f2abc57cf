"""The state machine of a run: a table and a pure function.

queued -> running -> succeeded | failed | queued (lease lost, attempts left)
queued -> cancelled                running -> cancelling -> cancelled | succeeded | failed
failed | cancelled -> queued (retry)
"""

from enum import StrEnum


class RunState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = frozenset({RunState.RUNNING, RunState.CANCELLING})
"""A worker holds the run, or held it until its lease expired."""

FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})

_NEXT: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.CANCELLED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.QUEUED, RunState.CANCELLING}),
    # A worker may finish before it sees the request; its result counts.
    RunState.CANCELLING: frozenset({RunState.CANCELLED, RunState.SUCCEEDED, RunState.FAILED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset({RunState.QUEUED}),
    RunState.CANCELLED: frozenset({RunState.QUEUED}),
}


def can_become(state: str, new: str) -> bool:
    """Whether a run may go from one state to another."""
    return RunState(new) in _NEXT[RunState(state)]
