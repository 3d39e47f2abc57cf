"""Verdicts: writing those of a checkpoint, and comparing any two checkpoints from what is stored.

The *level* of a feature is its chain-linked projection: its level where it was last there, times the projection ratio
against that. It is kept with its jackknife replicates, so the ratio of any two checkpoints, with its interval, is a
quotient of two stored arrays, and a direction that turns a little in every version is followed all the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.alerts import logic as alerts
from service.kit.clock import utcnow
from service.kit.ids import feature_id
from service.models import Checkpoint, Code, Family, Source
from service.verdicts import queries
from service.verdicts.judge import GONE, Evidence, Floats, Judgement, Status, judge
from service.verdicts.policy import Policy
from service.webhooks import logic as webhooks


@dataclass(frozen=True)
class Subject:
    """A checkpoint that is to be judged, with what it builds on."""

    checkpoint: Checkpoint
    family: Family
    parent: Checkpoint | None
    sources: dict[str, Source]
    """of the parent"""
    code: Code | None
    """of the parent"""


@dataclass(frozen=True)
class SourceOutcome:
    hook_point: str
    d_model: int
    stats: dict[str, float]
    dictionary: str
    activations: str


@dataclass(frozen=True)
class Outcome:
    """All that a run found out about a checkpoint; columns in the order of `numbers`."""

    generation: int
    positions: dict[str, Any]
    first_number: int
    """The family's `n_features` when the run began: new features have this number or a higher one."""
    numbers: NDArray[np.int64]
    origins: dict[int, str]
    """of the new features"""
    top_tokens: list[list[str]]
    """of the new features, in order"""
    code: str
    examples: str
    n_positions: int
    sources: list[SourceOutcome]
    quality: dict[str, Any]
    evidence: Evidence
    judgement: Judgement
    strength: Floats
    """[K + 1, m]"""
    cosine: Floats
    """[m]"""
    per_hook: dict[str, dict[str, Floats]]


def subject(session: Session, checkpoint_id: str) -> Subject:
    """What judging a checkpoint starts from."""
    checkpoint = queries.checkpoint(session, checkpoint_id)
    family = queries.family(session, checkpoint.family_id)
    if checkpoint.parent_id is None:
        return Subject(checkpoint, family, None, {}, None)
    parent = queries.checkpoint(session, checkpoint.parent_id)
    return Subject(checkpoint, family, parent, queries.sources(session, parent.id), queries.code(session, parent.id))


def gone(session: Session, checkpoint_id: str) -> list[int]:
    """Numbers of the features that are not there any more in a checkpoint."""
    return [number for number, status in queries.statuses(session, checkpoint_id).items() if status in GONE]


def readability(session: Session, checkpoint_id: str) -> Floats:
    """Readability of every feature in a checkpoint, best hook point: [m]."""
    found = queries.measurement(session, checkpoint_id, "readability")
    return np.zeros(0, dtype=np.float32) if found is None else found


def record(session: Session, *, checkpoint_id: str, run_id: str, outcome: Outcome) -> dict[str, Any]:
    """Write a judgement: features, verdicts, measurements, alerts, events. Returns the run's result.

    All in the caller's transaction. Doing it again writes the same: old rows are replaced, events keep their ids.
    """
    checkpoint = queries.checkpoint(session, checkpoint_id)
    family = queries.family(session, checkpoint.family_id)
    queries.clear(session, checkpoint_id)
    _write_features(session, family, checkpoint, outcome)
    _write_sources(session, family, checkpoint, outcome)
    _write_measurements(session, checkpoint, outcome)
    previous = queries.statuses(session, checkpoint.parent_id) if checkpoint.parent_id else {}
    queries.add_verdicts(session, _verdict_rows(family, checkpoint, outcome, previous))
    family.positions = family.positions or outcome.positions
    family.generation = outcome.generation
    checkpoint.state, checkpoint.generation = "judged", outcome.generation
    checkpoint.quality, checkpoint.judged_at = outcome.quality, utcnow()
    session.flush()
    raised = alerts.evaluate(session, family=family, checkpoint=checkpoint)
    result = {
        "family": family.name,
        "checkpoint": checkpoint.name,
        "parent": queries.checkpoint(session, checkpoint.parent_id).name if checkpoint.parent_id else None,
        "statuses": outcome.quality["statuses"],
        "new_features": len(outcome.origins),
        "fvu": outcome.quality["fvu"],
        "alerts": len(raised),
    }
    webhooks.emit(
        session,
        type="checkpoint.judged",
        family_id=family.id,
        data=result | {"run": run_id},
        key=f"{checkpoint.id}:{run_id}",
    )
    return result


def _write_features(session: Session, family: Family, checkpoint: Checkpoint, outcome: Outcome) -> None:
    if family.n_features != outcome.first_number:
        raise RuntimeError(
            f"the family has {family.n_features} features, but the run counted from {outcome.first_number}"
        )
    rows = [
        {
            "family_id": family.id,
            "number": number,
            "label": None,
            "top_tokens": tokens,
            "tags": [],
            "watched": False,
            "origin": origin,
            "born_in": checkpoint.id,
            "generation": outcome.generation,
            "retired_in": None,
            "created_at": utcnow(),
        }
        for (number, origin), tokens in zip(sorted(outcome.origins.items()), outcome.top_tokens, strict=True)
    ]
    queries.add_features(session, rows)
    family.n_features += len(rows)


def _write_sources(session: Session, family: Family, checkpoint: Checkpoint, outcome: Outcome) -> None:
    for source in outcome.sources:
        session.add(
            Source(
                checkpoint_id=checkpoint.id,
                hook_point=source.hook_point,
                d_model=source.d_model,
                stats=source.stats,
                dictionary=source.dictionary,
                activations=source.activations,
            )
        )
    session.add(
        Code(
            checkpoint_id=checkpoint.id,
            family_id=family.id,
            generation=outcome.generation,
            artifact=outcome.code,
            examples=outcome.examples,
            n_positions=outcome.n_positions,
            n_features=len(outcome.numbers),
            extra={},
        )
    )


def _write_measurements(session: Session, checkpoint: Checkpoint, outcome: Outcome) -> None:
    evidence, judgement = outcome.evidence, outcome.judgement
    level = (evidence.projection / judgement.size_factor).astype(np.float32)
    base = np.ones_like(level)
    if checkpoint.parent_id is not None:
        stored = queries.measurement(session, checkpoint.parent_id, "reference_level")
        if stored is not None and len(stored) == len(base):
            base[:, : stored.shape[1]] = stored
    level = level * base
    lost = np.array([status in GONE for status in judgement.status])
    moved = np.array([status == Status.RELOCATED for status in judgement.status])
    level[:, evidence.born_here] = 1.0
    # The chain goes on with the direction that a relocated feature has now, at the strength that it has there.
    reference = np.where(lost, base, np.where(moved, evidence.strength_ratio * base, level))
    arrays = {
        "level": level,
        "reference_level": reference,
        "strength": outcome.strength,
        "readability": evidence.readability,
        "documents": evidence.documents,
    }
    for metric, values in arrays.items():
        queries.add_measurement(session, checkpoint.id, metric, values.astype(np.float32))
    for hook, metrics in outcome.per_hook.items():
        for metric, values in metrics.items():
            queries.add_measurement(session, checkpoint.id, metric, values, hook)


def _verdict_rows(
    family: Family, checkpoint: Checkpoint, outcome: Outcome, previous: dict[int, str]
) -> list[dict[str, Any]]:
    evidence = outcome.evidence
    shared = {"checkpoint_id": checkpoint.id, "family_id": family.id}
    figures = _figures(outcome.numbers, evidence, outcome.judgement, previous)
    extra: dict[str, list[float | None]] = {
        "strength": _numbers(outcome.strength[0]),
        "direction_cosine": _numbers(outcome.cosine),
        "readability": _numbers(evidence.readability),
        "firing_rate": [float(n) / max(outcome.n_positions, 1) for n in evidence.firings],
    }
    return [
        row | shared | {name: values[column] for name, values in extra.items()} for column, row in enumerate(figures)
    ]


def _figures(
    numbers: NDArray[np.int64], evidence: Evidence, judgement: Judgement, previous: dict[int, str]
) -> list[dict[str, Any]]:
    """What a judgement says of each feature, as columns of `Verdict`."""
    arrays = {
        "projection_ratio": judgement.projection,
        "projection_ratio_lo": judgement.projection_lo,
        "projection_ratio_hi": judgement.projection_hi,
        "strength_ratio": judgement.strength_ratio,
        "strength_ratio_lo": judgement.strength_lo,
        "strength_ratio_hi": judgement.strength_hi,
        "orthogonal_ratio": judgement.orthogonal,
        "q_value": judgement.q_value,
        "minimum_detectable_ratio": judgement.minimum_detectable,
    }
    columns = {name: _numbers(values) for name, values in arrays.items()}
    rows = []
    for column, number in enumerate(numbers.tolist()):
        successors = evidence.successors.get(column, []) if judgement.weakened[column] else []
        rows.append(
            {
                "feature": number,
                "status": str(judgement.status[column]),
                "previous_status": previous.get(number),
                "change": float(judgement.change[column]),
                "firings": int(evidence.firings[column]),
                "successors": [
                    {"id": feature_id(int(numbers[s.column])), "kind": s.kind, "cofiring": round(s.cofiring, 4)}
                    for s in successors
                ],
            }
            | {name: values[column] for name, values in columns.items()}
        )
    return rows


def _numbers(values: NDArray[np.floating]) -> list[float | None]:
    """Floats for the database, NaN as None."""
    return [None if value != value else value for value in values.astype(np.float64).tolist()]  # noqa: PLR0124


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
    rows = _figures(np.array(now.numbers, dtype=np.int64), evidence, judgement, then.statuses)
    happened = {
        verdict.feature: verdict for verdict in queries.verdicts(session, between, [Status.RELOCATED, Status.REPLACED])
    }
    strengths, readabilities = _numbers(now.strength[0]), _numbers(now.readability)
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
