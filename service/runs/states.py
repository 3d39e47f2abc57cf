"""The state machine of a run: one table and one pure function.

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
"""A worker holds it, or held it until its lease ran out."""

FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})

_NEXT: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.CANCELLED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.QUEUED, RunState.CANCELLING}),
    # A worker that finishes before it sees the request has finished: its result counts.
    RunState.CANCELLING: frozenset({RunState.CANCELLED, RunState.SUCCEEDED, RunState.FAILED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset({RunState.QUEUED}),
    RunState.CANCELLED: frozenset({RunState.QUEUED}),
}


QUEUES = ("runs", "cpu")
"""Work with a model or a dictionary, which wants an accelerator where there is one; and work that mostly waits for
others, for which a worker without one will do."""
_ON_CPU = frozenset({"label"})


def queue_of(kind: str) -> str:
    """The queue that runs of a kind wait in."""
    return "cpu" if kind in _ON_CPU else "runs"


def can_become(state: str, new: str) -> bool:
    """Whether a run may go from one state to another."""
    return RunState(new) in _NEXT[RunState(state)]
