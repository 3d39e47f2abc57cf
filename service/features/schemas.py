"""JSON of features and their verdicts."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from featurewatch.service.kit.ids import feature_id
from featurewatch.service.lineage.schemas import LineageLink
from featurewatch.service.verdicts.figures import FIGURE, FIGURES
from featurewatch.service.verdicts.reasons import Reason
from featurewatch.service.verdicts.statuses import CHANGED, Status

if TYPE_CHECKING:
    # The command shows features by these shapes, and starts without the database's tables.
    from featurewatch.service.models import Feature
    from featurewatch.service.verdicts.table import VerdictRow

Interval = tuple[float | None, float | None]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._:/-]*$")]


class FeatureFields(Protocol):
    """What a feature is read from: a row of service.models.Feature, with the name of the checkpoint it was born in."""

    number: Any
    label: Any
    auto_label: Any
    model_label: Any
    model_label_by: Any
    model_label_score: Any
    model_label_score_lo: Any
    model_label_score_hi: Any
    tags: Any
    watched: Any
    born_in_name: Any
    origin: Any
    top_tokens: Any
    promoted_tokens: Any
    generation: Any
    retired_in: Any


class Successor(BaseModel):
    """A feature that fires where another one weakened."""

    model_config = ConfigDict(extra="allow")

    id: str
    kind: str = Field(description="replaced, split or merged.")
    cofiring: float | None = Field(None, description="Share of the weakened feature's activation that it carries.")


class Point(BaseModel):
    """The verdict on one feature in one checkpoint, against a baseline, and its evidence."""

    checkpoint: str
    baseline: str | None = Field(description="What it was compared with; null at the first of a lineage.")
    status: Status
    previous_status: Status | None
    change: float = Field(description=FIGURE["change"].about)
    projection_ratio: float | None = Field(description=FIGURE["projection_ratio"].about)
    projection_ratio_ci: Interval | None
    strength_ratio: float | None = Field(description=FIGURE["strength_ratio"].about)
    strength_ratio_ci: Interval | None
    orthogonal_ratio: float | None = Field(description=FIGURE["orthogonal_ratio"].about)
    q_value: float | None = Field(description=FIGURE["q_value"].about)
    strength: float | None = Field(description=FIGURE["strength"].about)
    direction_cosine: float | None = Field(description=FIGURE["direction_cosine"].about)
    readability: float | None = Field(description=FIGURE["readability"].about)
    firing_rate: float = Field(description=FIGURE["firing_rate"].about)
    firings: int = Field(description=FIGURE["firings"].about)
    minimum_detectable_ratio: float | None = Field(description=FIGURE["minimum_detectable_ratio"].about)
    successors: list[Successor]
    rewired: bool | None = Field(
        None,
        description="Whether what it is computed from changed against the parent; null where nobody looked, or it "
        "cannot be said.",
    )


class FeatureOut(BaseModel):
    """A feature, apart from any checkpoint."""

    id: str = Field(examples=["F42318"])
    label: str | None = Field(description="A person's. It goes before all others.")
    auto_label: str | None = Field(
        description="What its top tokens and its promoted tokens have in common; null where there are none."
    )
    model_label: str | None = Field(description="By a model that was asked; see `POST .../features/labels`.")
    model_label_by: str | None = Field(description="The model.")
    model_label_score: float | None = Field(
        description="Balanced accuracy of telling, by the label, held-out passages in which the feature fires from "
        "others: 0.5 is chance. Null where it fires in too few documents."
    )
    model_label_score_ci: Interval | None
    tags: list[str]
    watched: bool
    born_in: str = Field(description="The checkpoint whose run gave it its id.")
    origin: str = Field(description="fitted, emerged or discovered.")
    top_tokens: list[str] = Field(description="On which it fires most.")
    promoted_tokens: list[str] = Field(
        description="Whose logits its decoder row raises most (logit lens); empty where the checkpoint has no head."
    )
    generation: int
    retired_in: int | None = Field(description="Generation that carries it no longer; its `lineage` says why.")


class FeatureRow(FeatureOut, Point):
    """A feature with its verdict in one checkpoint."""


class FeatureDetail(FeatureOut):
    """A feature with its newest verdict."""

    created_at: datetime
    last: Point | None = Field(description="The verdict of the newest checkpoint that has one.")
    lineage: list[LineageLink] = Field(description="What re-fits made of it, oldest first.")


class FeaturePatch(BaseModel):
    """What people may say of a feature."""

    model_config = ConfigDict(extra="forbid")

    label: str | None = Field(None, max_length=500, description="Null removes it.")
    tags: list[Tag] | None = Field(None, max_length=50, description="All of them: these replace what is there.")
    watched: bool | None = None


class Trajectory(BaseModel):
    """One feature over all checkpoints, in the order of the lineage."""

    id: str
    label: str | None
    auto_label: str | None
    points: list[Point]


class Example(BaseModel):
    """A place where the feature fires strongly. Text is null where a family has none (activations brought along)."""

    document: int
    position: int
    text_before: str | None
    token: str | None
    text_after: str | None
    activation: float


class Examples(BaseModel):
    """Top activating examples, strongest first."""

    id: str
    checkpoint: str = Field(description="Whose code they come from.")
    data: list[Example]


class CodeColumns(BaseModel):
    """Columns of the sparse code, in order."""

    checkpoint: str
    generation: int
    feature_ids: list[str]


class Finding(BaseModel):
    """One change, in plain words, with the figures and places behind it."""

    feature: FeatureRow
    what: str = Field(description="What happened to it, how much of it is left, and who took over.")
    how_sure: str = Field(description="The q-value in words, or what else it was judged by.")
    examples: list[Example] = Field(description="Where it fires most strongly.")


class ReasonCount(BaseModel):
    """How many features could not be judged for one reason."""

    reason: Reason
    text: str
    features: int


class Unjudged(BaseModel):
    """A feature that could not be judged."""

    feature: FeatureRow
    reason: Reason
    why: str = Field(description="The reason with its figures.")
    detectable: str = Field(description="What could have been seen: the minimum detectable ratio in words.")


class NotJudged(BaseModel):
    """What could not be judged, and why."""

    features: int
    watched: int
    reasons: list[ReasonCount] = Field(description="Most frequent first.")
    named: list[Unjudged] = Field(description="Watched ones first, then those that fire most.")


class Summary(BaseModel):
    """What changed between two checkpoints, in plain words, in the order in which one should look at it."""

    headline: str
    changed: int = Field(description="How many features changed, of those that fit the filter.")
    findings: list[Finding] = Field(
        description=f"The first of them: watched features, then by status ({', '.join(CHANGED)}) and by the smallest "
        "change that the interval allows."
    )
    not_judged: NotJudged
    caveats: list[str] = Field(description="What stands against relying on these verdicts.")


class Diff(Summary):
    """Any two checkpoints, in words and feature by feature."""

    from_: str = Field(serialization_alias="from", validation_alias="from")
    to: str
    counts: dict[Status, int] = Field(description="Over all features, whatever the filter.")
    data: list[FeatureRow]
    next_cursor: str | None = None


def point(row: "VerdictRow", checkpoint: str, baseline: str | None) -> Point:
    """A verdict as the API shows it."""
    return Point(**_point_fields(row, checkpoint, baseline))


def feature_row(row: "VerdictRow", feature: FeatureFields, checkpoint: str, baseline: str | None) -> FeatureRow:
    """A feature with its verdict as the API shows it."""
    shown = feature_fields(feature, feature.born_in_name)
    return FeatureRow(**shown, **_point_fields(row, checkpoint, baseline))


def feature_detail(feature: "Feature", born_in: str, last: Point | None, lineage: list[LineageLink]) -> FeatureDetail:
    """A feature as the API shows it alone."""
    return FeatureDetail(**feature_fields(feature, born_in), created_at=feature.created_at, last=last, lineage=lineage)


def feature_fields(feature: "Feature | FeatureFields", born_in: str) -> dict[str, Any]:
    """Fields of FeatureOut."""
    return {
        "id": feature_id(feature.number),
        "label": feature.label,
        "auto_label": feature.auto_label,
        "model_label": feature.model_label,
        "model_label_by": feature.model_label_by,
        "model_label_score": feature.model_label_score,
        "model_label_score_ci": _interval(feature.model_label_score_lo, feature.model_label_score_hi),
        "tags": feature.tags,
        "watched": feature.watched,
        "born_in": born_in,
        "origin": feature.origin,
        "top_tokens": feature.top_tokens,
        "promoted_tokens": feature.promoted_tokens,
        "generation": feature.generation,
        "retired_in": feature.retired_in,
    }


def _point_fields(row: "VerdictRow", checkpoint: str, baseline: str | None) -> dict[str, Any]:
    fields = {
        "checkpoint": checkpoint,
        "baseline": baseline,
        "status": row.status,
        "previous_status": row.previous_status,
        "successors": row.successors,
    }
    for figure in FIGURES:
        fields[figure.name] = getattr(row, figure.name)
        if figure.ends:
            fields[f"{figure.name}_ci"] = _interval(*(getattr(row, column) for column in figure.columns[1:]))
    return fields


def _interval(low: float | None, high: float | None) -> Interval | None:
    return None if low is None and high is None else (low, high)
