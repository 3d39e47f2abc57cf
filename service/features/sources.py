"""A feature at every hook point of every checkpoint: which layers carry it, and how well."""

import math
import struct
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from featurewatch.service.features import queries as features
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.models import Checkpoint, Family, Feature
from featurewatch.service.verdicts import queries

METRICS = ("readability", "strength", "projection", "projection_reach", "cosine")


class FeatureAtSource(BaseModel):
    """A feature at one hook point of a checkpoint."""

    hook_point: str
    d_model: int
    paired_with: str | None = Field(
        description="The parent's hook point that this one is compared with; null if there is none."
    )
    readability: float | None = Field(description="Correlation of this source's own read-out with the code.")
    strength: float | None = Field(description="Norm of the decoder row, in units of the source's own scale.")
    projection_ratio: float | None = Field(
        description="Against `paired_with`, divided by the checkpoint's size factor."
    )
    projection_ratio_ci: tuple[float, float] | None = Field(
        description="At this hook point alone; null for checkpoints judged by versions that did not store it."
    )
    direction_cosine: float | None


class FeatureInCheckpoint(BaseModel):
    """A feature at all hook points of a checkpoint."""

    checkpoint: str
    status: str | None
    best: str | None = Field(description="The hook point at which it is most readable.")
    sources: list[FeatureAtSource]


class FeatureSources(BaseModel):
    """A feature at every source of its family, parents before children."""

    id: str
    label: str | None
    auto_label: str | None
    data: list[FeatureInCheckpoint]


def of_feature(session: Session, family: Family, feature: Feature) -> FeatureSources:
    """The feature in every checkpoint whose code has it."""
    measured: dict[str, dict[tuple[str, str], float | None]] = {}
    for checkpoint_id, hook, metric, value in queries.at_hooks(session, family.id, feature.number, METRICS):
        measured.setdefault(checkpoint_id, {})[hook, metric] = _number(value)
    statuses = {
        checkpoint_id: status for _, checkpoint_id, status in features.statuses(session, family.id, [feature.number])
    }
    described = queries.sources_of_family(session, family.id)
    data = [
        _in_checkpoint(
            checkpoint, statuses.get(checkpoint.id), described.get(checkpoint.id, {}), measured[checkpoint.id]
        )
        for checkpoint in queries.judged(session, family.id)
        if any(value is not None for value in measured.get(checkpoint.id, {}).values())
    ]
    names = {"label": feature.label, "auto_label": feature.auto_label}
    return FeatureSources(id=feature_id(feature.number), **names, data=data)


def _in_checkpoint(
    checkpoint: Checkpoint,
    status: str | None,
    sources: dict[str, tuple[int, dict[str, Any]]],
    values: dict[tuple[str, str], float | None],
) -> FeatureInCheckpoint:
    """sources: hook point -> (width, stats); values: (hook point, metric) -> measurement."""
    size = (checkpoint.quality or {}).get("size_factor")
    rows = []
    for hook in [name for name in checkpoint.hook_points if name in sources]:
        (d_model, stats), at = sources[hook], (values.get((hook, metric)) for metric in METRICS)
        readability, strength, projection, reach, cosine = at
        ends = ends_of(projection, reach, size)
        rows.append(
            FeatureAtSource(
                hook_point=hook,
                d_model=d_model,
                paired_with=stats.get("paired_with"),
                readability=readability,
                strength=strength,
                projection_ratio=over_size(projection, size),
                projection_ratio_ci=None if ends[0] is None or ends[1] is None else (ends[0], ends[1]),
                direction_cosine=cosine,
            )
        )
    return FeatureInCheckpoint(checkpoint=checkpoint.name, status=status, best=_best(rows), sources=rows)


def over_size(projection: float | None, size_factor: float | None) -> float | None:
    """A projection ratio divided by its checkpoint's size factor."""
    return None if projection is None else round(projection / (size_factor or 1.0), 6)


def ends_of(
    projection: float | None, reach: float | None, size_factor: float | None
) -> tuple[float | None, float | None]:
    """The ends of its interval, divided by the size factor; None if it has no interval."""
    if projection is None or reach is None or not math.isfinite(projection + reach):
        return None, None
    return over_size(projection - reach, size_factor), over_size(projection + reach, size_factor)


def _best(rows: Sequence[FeatureAtSource]) -> str | None:
    """The first of the hook points with the highest readability."""
    read = [(row.readability, row.hook_point) for row in rows if row.readability is not None]
    return max(read, key=lambda pair: pair[0])[1] if read else None


def _number(data: bytes) -> float | None:
    """One float32 of a stored array; None for NaN, and past the end of the array."""
    if len(data) < 4:
        return None
    value = float(struct.unpack("<f", data)[0])
    return None if math.isnan(value) else value
