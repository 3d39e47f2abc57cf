"""The kinds of runs. A new one is a member here, and a module of its name in `workers/pipelines/runs` with `run`."""

from enum import StrEnum
from typing import Literal, Self

Queue = Literal["runs", "cpu"]
"""`runs`: work with a model or a dictionary, faster with an accelerator. `cpu`: work that mostly waits for others."""
QUEUES: tuple[Queue, ...] = ("runs", "cpu")


class RunKind(StrEnum):
    """What a run does. A member is its name in the database, a description, and its queue if that is not `runs`."""

    ONBOARD = "onboard", "extend the dictionary onto a checkpoint, or re-fit it"
    CALIBRATE = "calibrate", "judge nulls"
    LABEL = "label", "have features labelled by an endpoint", "cpu"
    SIGNATURE = "signature", "read signatures"
    DEPENDENCIES = "dependencies", "find what features are computed from"

    description: str
    queue: Queue

    def __new__(cls, value: str, description: str, queue: Queue = "runs") -> Self:
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.description, kind.queue = description, queue
        return kind


def queue_of(kind: str) -> Queue:
    """The queue for runs of a kind. Custom kinds of an installation wait in `runs`."""
    return next((known.queue for known in RunKind if known == kind), "runs")
