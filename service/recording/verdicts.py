"""Stores the verdicts of a checkpoint, with the measurements that `compare` needs to compare any two checkpoints.

The *level* of a feature is its chain-linked projection: its level where it was last present, times the projection ratio
against that. It is stored with its jackknife replicates, so the ratio of any two checkpoints, with its interval, is the
quotient of two stored arrays, and a direction that turns a little in every version is followed all the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation as alerts
from featurewatch.service.features import queries as features
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.labels.automatic import auto_label
from featurewatch.service.models import Checkpoint, Code, Family, Feature, Lineage, Source
from featurewatch.service.verdicts import past, queries, stored
from featurewatch.service.verdicts.arrays import by_column, by_number
from featurewatch.service.verdicts.columns import verdict_columns
from featurewatch.service.verdicts.generations import Ancestor, ancestry
from featurewatch.service.verdicts.judge import Evidence, Floats, Judgement
from featurewatch.service.verdicts.past import Discovered
from featurewatch.service.verdicts.statuses import GONE, Status
from featurewatch.service.webhooks import logic as webhooks


@dataclass(frozen=True)
class Subject:
    """A checkpoint to judge, with its ancestors."""

    checkpoint: Checkpoint
    family: Family
    ancestors: list[Ancestor]
    """The parent first."""


@dataclass(frozen=True)
class SourceOutcome:
    hook_point: str
    d_model: int
    stats: dict[str, Any]
    dictionary: str | None
    """None before the first fit"""
    activations: str


class Link(NamedTuple):
    """What became of a feature at a re-fit; a row of `service.models.Lineage`."""

    old: int | None
    new: int | None
    kind: str
    score: float


@dataclass(frozen=True)
class Outcome:
    """The results of a run for a checkpoint; columns in the order of `numbers`."""

    generation: int
    positions: dict[str, Any]
    first_number: int
    """The family's `n_features` when the run began. New features are numbered from here."""
    numbers: NDArray[np.int64]
    origins: dict[int, str]
    """of the new features"""
    top_tokens: list[list[str]]
    """of the new features, in order"""
    logits: Sequence[dict[str, list[list[Any]]]]
    """of the new features, in order: as `service.models.Feature` has them"""
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
    fitted: bool = False
    """Whether the dictionary was fitted on this checkpoint rather than extended to it"""
    lineage: Sequence[Link] = ()
    """from the last generation, after a re-fit"""
    own_code: str | None = None
    rows: str | None = None
    past: Discovered | None = None
    """of features that ancestors have but only this run discovered"""


def subject(session: Session, checkpoint_id: str) -> Subject:
    """The input for judging a checkpoint."""
    checkpoint = queries.checkpoint(session, checkpoint_id)
    return Subject(checkpoint, queries.family(session, checkpoint.family_id), ancestry(session, checkpoint))


def gone(session: Session, checkpoint_id: str) -> list[int]:
    """Numbers of the features that are gone in a checkpoint."""
    return [number for number, status in stored.statuses(session, checkpoint_id).items() if status in GONE]


def readability(session: Session, checkpoint_id: str, numbers: NDArray[np.int64]) -> Floats:
    """Readability of features in a checkpoint at their best hook point: [m], NaN for features that it does not have."""
    return by_column(_measurement(session, checkpoint_id, "readability"), numbers)


def record(session: Session, *, checkpoint_id: str, run_id: str, outcome: Outcome) -> dict[str, Any]:
    """Store a judgement: features, verdicts, measurements, alerts, events. Returns the run's result.

    Idempotent, in the caller's transaction: old rows are replaced, events keep their ids.
    """
    checkpoint = queries.checkpoint(session, checkpoint_id)
    family = queries.family(session, checkpoint.family_id)
    queries.clear(session, checkpoint_id)
    queries.revise(session, checkpoint)
    _write_features(session, family, checkpoint, outcome)
    if outcome.past is not None:
        past.record(session, family, outcome.past)  # first: the verdicts here depend on it
    ended = _write_lineage(session, family, checkpoint, outcome)
    _write_sources(session, checkpoint, outcome.sources)
    _write_code(session, family, checkpoint, outcome)
    previous = stored.statuses(session, checkpoint.parent_id) if checkpoint.parent_id else {}
    _write_measurements(session, checkpoint, outcome, previous)
    queries.add_verdicts(session, _verdict_columns(family, checkpoint, outcome, previous))
    stored.pack(session, checkpoint_id)
    family.positions = family.positions or outcome.positions
    family.generation = max(family.generation, outcome.generation)
    checkpoint.state, checkpoint.generation = "judged", outcome.generation
    checkpoint.quality, checkpoint.judged_at = outcome.quality, utcnow()
    session.flush()
    raised = alerts.judged(session, family=family, checkpoint=checkpoint)
    result = {
        "family": family.name,
        "checkpoint": checkpoint.name,
        "parent": queries.checkpoint(session, checkpoint.parent_id).name if checkpoint.parent_id else None,
        "statuses": outcome.quality["statuses"],
        "places": outcome.quality.get("places", {}),
        "new_features": len(outcome.origins),
        "fvu": outcome.quality["fvu"],
        "fit": outcome.quality.get("fit"),
        "alerts": len(raised),
    }
    if outcome.lineage:
        # They get no more verdicts, so people who watch one must be notified.
        lost = sorted({*features.watched(session, family.id)} & {*ended})
        result |= {"ended_features": len(ended), "ended_watched": [feature_id(number) for number in lost]}
    webhooks.emit(
        session,
        type="checkpoint.judged",
        family_id=family.id,
        data=result | {"run": run_id},
        key=f"{checkpoint.id}:{run_id}",
    )
    return result


def keep(
    session: Session, *, checkpoint_id: str, positions: dict[str, Any], sources: Sequence[SourceOutcome]
) -> dict[str, Any]:
    """Record that a checkpoint was harvested and waits for the family's first fit. Returns the run's result."""
    checkpoint = queries.checkpoint(session, checkpoint_id)
    family = queries.family(session, checkpoint.family_id)
    queries.clear(session, checkpoint_id)
    _write_sources(session, checkpoint, sources)
    family.positions = family.positions or positions
    checkpoint.state = "harvested"
    parent = queries.checkpoint(session, checkpoint.parent_id).name if checkpoint.parent_id else None
    return {"family": family.name, "checkpoint": checkpoint.name, "parent": parent, "fit": "later"}


def _write_features(session: Session, family: Family, checkpoint: Checkpoint, outcome: Outcome) -> None:
    if outcome.origins and set(queries.born_in(session, family.id, checkpoint.id)) == set(outcome.origins):
        return  # recorded before
    if family.n_features != outcome.first_number:
        raise RuntimeError(
            f"the family now has {family.n_features} features, but this run numbers new ones from "
            f"{outcome.first_number}"
        )
    rows = [
        {
            "family_id": family.id,
            "number": number,
            "auto_label": auto_label(tokens, _promoted(logits)),
            "top_tokens": tokens,
            "promoted_tokens": _promoted(logits),
            "logits": logits,
            "tags": [],
            "origin": origin,
            "born_in": checkpoint.id,
            "generation": outcome.generation,
        }
        for (number, origin), tokens, logits in zip(
            sorted(outcome.origins.items()), outcome.top_tokens, outcome.logits, strict=True
        )
    ]
    queries.add(session, Feature, rows)
    family.n_features += len(rows)


def _promoted(logits: dict[str, list[list[Any]]]) -> list[str]:
    return [token for token, _ in logits.get("promoted", [])]


def _write_lineage(session: Session, family: Family, checkpoint: Checkpoint, outcome: Outcome) -> list[int]:
    """Returns the numbers of the features that end."""
    shared = {"family_id": family.id, "checkpoint_id": checkpoint.id, "generation": outcome.generation}
    queries.add(session, Lineage, [shared | link._asdict() for link in outcome.lineage])
    ended = sorted({link.old for link in outcome.lineage if link.old is not None and link.old != link.new})
    queries.retire(session, family.id, ended, outcome.generation)
    return ended


def _write_sources(session: Session, checkpoint: Checkpoint, sources: Sequence[SourceOutcome]) -> None:
    session.add_all(Source(checkpoint_id=checkpoint.id, **vars(source)) for source in sources)


def _write_code(session: Session, family: Family, checkpoint: Checkpoint, outcome: Outcome) -> None:
    session.add(
        Code(
            checkpoint_id=checkpoint.id,
            family_id=family.id,
            generation=outcome.generation,
            artifact=outcome.code,
            examples=outcome.examples,
            own_code=outcome.own_code,
            rows=outcome.rows,
            n_positions=outcome.n_positions,
            n_features=len(outcome.numbers),
            extra={"fitted": True} if outcome.fitted else {},
        )
    )


def _write_measurements(session: Session, checkpoint: Checkpoint, outcome: Outcome, previous: dict[int, str]) -> None:
    evidence, judgement, numbers = outcome.evidence, outcome.judgement, outcome.numbers
    level = (evidence.projection / judgement.size_factor).astype(np.float32)
    base = np.ones_like(level)
    if checkpoint.parent_id is not None:
        stored = _measurement(session, checkpoint.parent_id, "reference_level")
        if len(stored) == len(base):
            # Features without a level at the parent start at 1: they were not in the parent's code.
            there = np.isin(numbers, list(previous))
            base[:, there] = by_column(stored, numbers[there])
    level = level * base
    lost = np.isin(judgement.codes, [status.code for status in GONE])
    moved = judgement.codes == Status.RELOCATED.code
    level[:, evidence.born_here] = 1.0
    # The chain continues with the new direction of a relocated feature, at its strength there.
    reference = np.where(lost, base, level)
    reference[:, moved] = evidence.strength_ratio[:, moved] / judgement.strength_size * base[:, moved]
    arrays = {
        "level": level,
        "reference_level": reference,
        "strength": outcome.strength,
        "readability": evidence.readability,
        "documents": evidence.documents,
    }
    for metric, values in arrays.items():
        queries.add_measurement(session, checkpoint.id, metric, by_number(values, numbers))
    for hook, metrics in outcome.per_hook.items():
        for metric, values in metrics.items():
            queries.add_measurement(session, checkpoint.id, metric, by_number(values, numbers), hook)


def _measurement(session: Session, checkpoint_id: str, metric: str) -> Floats:
    values = queries.measurement(session, checkpoint_id, metric)
    return np.zeros(0, dtype=np.float32) if values is None else values


def _verdict_columns(
    family: Family, checkpoint: Checkpoint, outcome: Outcome, previous: dict[int, str]
) -> dict[str, list[Any]]:
    evidence, m = outcome.evidence, len(outcome.numbers)
    measured = {
        "strength": outcome.strength[0],
        "direction_cosine": outcome.cosine,
        "readability": evidence.readability,
        "firing_rate": evidence.firings / max(outcome.n_positions, 1),
    }
    return verdict_columns(outcome.numbers, evidence, outcome.judgement, previous, measured) | {
        "checkpoint_id": [checkpoint.id] * m,
        "family_id": [family.id] * m,
    }
