"""Backfills verdicts and measurements of ancestors for features that were discovered in a descendant.

A feature that the dictionary missed has no column in the codes of earlier checkpoints. A worker measures afterwards
what those checkpoints write of it, and this module stores it as if the feature had been known: a level that starts at
1 at the oldest ancestor with the feature and is chain-linked from there, and a verdict against each ancestor's own
parent by the usual rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.verdicts import queries, stored
from featurewatch.service.verdicts.columns import values_of
from featurewatch.service.verdicts.compare import compare
from featurewatch.service.verdicts.figures import COLUMNS
from featurewatch.service.verdicts.judge import Bools, Floats
from featurewatch.service.verdicts.statuses import Status
from featurewatch.service.verdicts.table import VerdictRow

RATIOS = ("projection", "projection_reach", "strength_ratio", "orthogonal", "cosine")
"""Stored metrics of a hook point that are relative to the parent."""


@dataclass(frozen=True)
class Past:
    """j discovered features in one ancestor. Ratios are against the ancestor before it in the list, divided by their
    medians; those of the first are against itself."""

    checkpoint_id: str
    there: Bools
    """[j] features that the ancestor has; nothing is stored for the others"""
    projection: Floats
    """[K + 1, j]"""
    strength_ratio: Floats
    """[K + 1, j]"""
    strength: Floats
    """[K + 1, j]"""
    cosine: Floats
    """[j]"""
    readability: Floats
    """[j]"""
    per_hook: dict[str, dict[str, Floats]]
    """hook point -> metric -> [j]"""


@dataclass(frozen=True)
class Discovered:
    """Features that a run discovered, measured in their ancestors."""

    numbers: NDArray[np.int64]
    """[j], ascending"""
    firings: NDArray[np.int64]
    """[j] by the code, which is the same for all checkpoints"""
    documents: NDArray[np.int64]
    n_positions: int
    ancestors: Sequence[Past]
    """Oldest first, including those without any of the features. Ancestors without activations are left out."""


def record(session: Session, family: Family, features: Discovered) -> None:
    """Store the ancestors' verdicts and measurements. Raises no alerts. Idempotent, in the caller's transaction.

    A feature is `indeterminate`, with strength and level, in an ancestor whose parent is not among the ancestors. It
    emerged in an ancestor that has it if the measured parent does not.
    """
    reference = np.ones_like(features.ancestors[0].strength) if features.ancestors else np.zeros(0, dtype=np.float32)
    before: Past | None = None
    for past in features.ancestors:
        if not past.there.any():
            before = past
            continue
        checkpoint = queries.checkpoint(session, past.checkpoint_id)
        first = past.there if before is None else past.there & ~before.there
        level = np.where(first, np.float32(1), past.projection * reference)
        judged_before = before is not None and before.checkpoint_id == checkpoint.parent_id
        queries.revise(session, checkpoint)
        _write_measurements(
            session, checkpoint, features, past, level, ratios=judged_before or not checkpoint.parent_id
        )
        queries.remove_verdicts(session, checkpoint.id, features.numbers.tolist())
        queries.add_verdicts(session, _columns(_unjudged(family, checkpoint, features, past)))
        emerged = frozenset(features.numbers[first].tolist()) if judged_before else frozenset()
        known = set(features.numbers[past.there].tolist())
        chosen = {row.feature: row for row in _judged(session, family, checkpoint, emerged) if row.feature in known}
        queries.remove_verdicts(session, checkpoint.id, features.numbers.tolist())
        queries.add_verdicts(session, _columns(_verdict_rows(family, checkpoint, features, past, chosen)))
        # As for every relocated feature, the level continues with its new direction, at its strength there.
        moved = np.array([n in chosen and chosen[n].status == Status.RELOCATED for n in features.numbers.tolist()])
        reference = np.where(moved, past.strength_ratio * reference, level)
        if moved.any():
            _write(session, checkpoint, features, past, "reference_level", reference)
        stored.pack(session, checkpoint.id)
        before = past


def _judged(session: Session, family: Family, checkpoint: Checkpoint, emerged: frozenset[int]) -> list[VerdictRow]:
    """Verdicts against the parent, as in a comparison on request; those of the first checkpoint are against itself."""
    depth = len(queries.ancestors(session, checkpoint))
    session.flush()
    baseline = queries.checkpoint(session, checkpoint.parent_id) if checkpoint.parent_id else checkpoint
    return compare(session, family, checkpoint, baseline, emerged=emerged, comparison=max(1, depth)).rows()


def _unjudged(family: Family, checkpoint: Checkpoint, features: Discovered, past: Past) -> list[dict[str, Any]]:
    """Placeholder rows, so that the comparison includes the features."""
    empty: dict[str, Any] = dict.fromkeys(COLUMNS)
    return [
        empty
        | {"checkpoint_id": checkpoint.id, "family_id": family.id, "feature": number, "successors": []}
        | {"status": str(Status.INDETERMINATE), "change": 0.0, "firings": firings}
        | {"firing_rate": firings / max(features.n_positions, 1)}
        for number, firings, there in zip(features.numbers.tolist(), features.firings.tolist(), past.there, strict=True)
        if there
    ]


def _verdict_rows(
    family: Family, checkpoint: Checkpoint, features: Discovered, past: Past, rows: dict[int, VerdictRow]
) -> list[dict[str, Any]]:
    cosines = dict(zip(features.numbers.tolist(), values_of(past.cosine), strict=True))
    stored_rows = []
    for number, row in sorted(rows.items()):
        values: dict[str, Any] = {name: getattr(row, name) for name in COLUMNS}
        values |= {"checkpoint_id": checkpoint.id, "family_id": family.id}
        # Without a ratio there is no cosine either: the feature was not measured against the parent.
        values["direction_cosine"] = None if row.projection_ratio is None else cosines[number]
        if checkpoint.parent_id is None:
            values["previous_status"] = None
        stored_rows.append(values)
    return stored_rows


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _write_measurements(
    session: Session, checkpoint: Checkpoint, features: Discovered, past: Past, level: Floats, *, ratios: bool
) -> None:
    """ratios: whether those of the hook points are against the ancestor's own parent."""
    arrays: dict[str, NDArray[Any]] = {
        "level": level,
        "reference_level": level,
        "strength": past.strength,
        "readability": past.readability,
        "documents": features.documents,
    }
    for metric, values in arrays.items():
        _write(session, checkpoint, features, past, metric, values)
    for hook, metrics in past.per_hook.items():
        for metric, values in metrics.items():
            if ratios or metric not in RATIOS:
                _write(session, checkpoint, features, past, metric, values, hook)


def _write(
    session: Session,
    checkpoint: Checkpoint,
    features: Discovered,
    past: Past,
    metric: str,
    values: NDArray[Any],
    hook_point: str = queries.ALL_HOOKS,
) -> None:
    there = np.where(past.there, values, np.nan).astype(np.float32)
    queries.put_columns(session, checkpoint.id, metric, features.numbers, there, hook_point)
