"""Any two checkpoints, compared in numpy from what is stored: no activations, no decoders, no worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from service.models import Checkpoint, Family
from service.verdicts import queries
from service.verdicts.figures import numbers_of, verdict_columns
from service.verdicts.judge import GONE, Evidence, Floats, Status, judge
from service.verdicts.policy import Policy


@dataclass
class Row:
    """A verdict that was computed on request, with the attributes of `service.models.Verdict`."""

    feature: int
    status: str
    previous_status: str | None
    change: float
    projection_ratio: float | None
    projection_ratio_lo: float | None
    projection_ratio_hi: float | None
    strength_ratio: float | None
    strength_ratio_lo: float | None
    strength_ratio_hi: float | None
    orthogonal_ratio: float | None
    q_value: float | None
    strength: float | None
    direction_cosine: float | None
    readability: float | None
    firing_rate: float
    firings: int
    minimum_detectable_ratio: float | None
    successors: list[Any]


def compare(session: Session, family: Family, checkpoint: Checkpoint, baseline: Checkpoint) -> list[Row]:
    """Verdicts of a checkpoint against any judged one of its family, features in order of their numbers.

    Relocations and successions that took place between the two are those that were judged when they happened.
    """
    now, then = _stored(session, checkpoint), _stored(session, baseline)
    column_of = {number: column for column, number in enumerate(then.numbers)}
    columns = np.array([column_of.get(number, -1) for number in now.numbers])
    known = columns >= 0
    between = _path(session, family, checkpoint, baseline)
    births = queries.born_in(session, family.id, between)
    born = np.array([births.get(number) == "emerged" for number in now.numbers]) & ~known
    shared = min(len(now.level), len(then.level))

    def before(values: Floats) -> Floats:
        picked = values[:, np.maximum(columns, 0)].astype(np.float32)
        picked[:, ~known] = np.nan
        return picked

    with np.errstate(divide="ignore", invalid="ignore"):
        projection = now.level[:shared] / before(then.reference[:shared])
        strength = now.strength[:shared] / before(then.strength[:shared])
        orthogonal = np.sqrt(np.maximum(strength**2 - projection**2, 0))
    evidence = Evidence(
        projection=projection,
        strength_ratio=strength,
        orthogonal=orthogonal,
        firings=np.array([now.figures[number][0] for number in now.numbers], dtype=np.int64),
        documents=now.documents.astype(np.int64),
        readability=now.readability,
        readability_before=before(then.readability[None])[0],
        baseline_z=np.where(known, np.inf, 0).astype(np.float32),
        there_before=np.array([then.statuses.get(number) not in GONE for number in now.numbers]),
        born_here=born,
    )
    judgement = judge(evidence, Policy.model_validate(family.policy))
    rows = verdict_columns(np.array(now.numbers, dtype=np.int64), evidence, judgement, then.statuses)
    happened = {
        verdict.feature: verdict for verdict in queries.verdicts(session, between, [Status.RELOCATED, Status.REPLACED])
    }
    strengths, readabilities = numbers_of(now.strength[0]), numbers_of(now.readability)
    result = []
    for column, row in enumerate(rows):
        event = happened.get(row["feature"])
        if event is not None and (event.status == Status.REPLACED) == (
            row["status"] in (Status.ABSENT, Status.SUPPRESSED)
        ):
            row["status"], row["successors"] = event.status, event.successors
        result.append(
            Row(
                **row,
                strength=strengths[column],
                direction_cosine=None,
                readability=readabilities[column],
                firing_rate=now.figures[row["feature"]][1],
            )
        )
    return result


@dataclass(frozen=True)
class _Stored:
    numbers: list[int]
    level: Floats
    reference: Floats
    strength: Floats
    readability: Floats
    documents: Floats
    statuses: dict[int, str]
    figures: dict[int, tuple[int, float, float | None]]


def _stored(session: Session, checkpoint: Checkpoint) -> _Stored:
    figures = queries.figures(session, checkpoint.id)
    numbers = sorted(figures)

    def array(metric: str) -> Floats:
        found = queries.measurement(session, checkpoint.id, metric)
        if found is None:
            raise LookupError(f"the checkpoint {checkpoint.name} has no measurement {metric}")
        return found

    return _Stored(
        numbers=numbers,
        level=array("level"),
        reference=array("reference_level"),
        strength=array("strength"),
        readability=array("readability"),
        documents=array("documents"),
        statuses=queries.statuses(session, checkpoint.id),
        figures=figures,
    )


def _path(session: Session, family: Family, checkpoint: Checkpoint, baseline: Checkpoint) -> Sequence[str]:
    """Checkpoints after the two have parted from their common ancestor, on the side of `checkpoint`."""
    parents = queries.parents(session, family.id)

    def ancestry(start: str) -> list[str]:
        chain: list[str] = []
        current: str | None = start
        while current is not None:
            chain.append(current)
            current = parents.get(current)
        return chain

    others = set(ancestry(baseline.id))
    return [one for one in ancestry(checkpoint.id) if one not in others]
