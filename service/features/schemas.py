"""Shapes of features and their verdicts in the API."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from featurewatch.service.kit.ids import feature_id
from featurewatch.service.lineage.schemas import LineageLink
from featurewatch.service.verdicts.figures import FIGURE, FIGURES
from featurewatch.service.verdicts.reasons import Reason
from featurewatch.service.verdicts.statuses import CHANGED, Places, Status

if TYPE_CHECKING:
    # The command line uses these shapes, and must start without importing the database models.
    from featurewatch.service.verdicts.table import VerdictRow

Interval = tuple[float | None, float | None]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._:/-]*$")]


class Successor(BaseModel):
    """A feature that is active where another one weakened."""

    model_config = ConfigDict(extra="allow")

    id: str
    kind: str = Field(description="replaced, split or merged.")
    cofiring: float | None = Field(None, description="Share of the weakened feature's activation that it carries.")


class Point(BaseModel):
    """The verdict on a feature in one checkpoint against a baseline, with its figures."""

    checkpoint: str
    baseline: str | None = Field(description="Checkpoint it was compared with; null for the first of a lineage.")
    status: Status
    previous_status: Status | None
    places: Places | None = Field(
        None,
        description="Where it is active compared with the baseline. Null if one of them has no own code of it.",
    )
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
    places_q_value: float | None = Field(None, description=FIGURE["places_q_value"].about)
    firing_rate_before: float | None = Field(None, description=FIGURE["firing_rate_before"].about)
    firing_rate_ratio: float | None = Field(None, description=FIGURE["firing_rate_ratio"].about)
    firing_rate_ratio_ci: Interval | None = None
    gained_share: float | None = Field(None, description=FIGURE["gained_share"].about)
    gained_share_ci: Interval | None = None
    lost_share: float | None = Field(None, description=FIGURE["lost_share"].about)
    lost_share_ci: Interval | None = None
    kept_amplitude: float | None = Field(None, description=FIGURE["kept_amplitude"].about)
    kept_amplitude_ci: Interval | None = None
    gained_documents: float | None = Field(None, description=FIGURE["gained_documents"].about)
    successors: list[Successor]
    rewired: bool | None = Field(
        None,
        description="Whether what it is computed from changed since the parent; null if not examined or unclear.",
    )


class FeatureOut(BaseModel):
    """A feature, independent of any checkpoint."""

    id: str = Field(examples=["F42318"])
    label: str | None = Field(description="Set by a person. Takes precedence over the other labels.")
    auto_label: str | None = Field(
        description="What its top tokens and promoted tokens have in common; null if it has none."
    )
    model_label: str | None = Field(description="Written by a model; see `POST .../features/labels`.")
    model_label_by: str | None = Field(description="The model.")
    model_label_score: float | None = Field(
        description="Balanced accuracy of predicting from the label on which held-out passages the feature is active: "
        "0.5 is chance. Null if it is active in too few documents."
    )
    model_label_score_ci: Interval | None
    tags: list[str]
    watched: bool
    born_in: str = Field(description="Checkpoint whose run introduced the feature.")
    origin: str = Field(description="fitted, emerged or discovered.")
    top_tokens: list[str] = Field(description="Tokens on which it is most active.")
    promoted_tokens: list[str] = Field(
        description="Tokens whose logits its decoder row raises most (logit lens); empty if the checkpoint has no head."
    )
    generation: int
    retired_in: int | None = Field(description="First generation without it; `lineage` says why.")


class FeatureRow(FeatureOut, Point):
    """A feature with its verdict in one checkpoint."""


class FeatureDetail(FeatureOut):
    """A feature with its newest verdict."""

    created_at: datetime
    last: Point | None = Field(description="Verdict of the newest checkpoint that has one.")
    lineage: list[LineageLink] = Field(description="What happened to it at each re-fit, oldest first.")


class FeaturePatch(BaseModel):
    """What people can set on a feature."""

    model_config = ConfigDict(extra="forbid")

    label: str | None = Field(None, max_length=500, description="Null removes it.")
    tags: list[Tag] | None = Field(None, max_length=50, description="Replaces all tags.")
    watched: bool | None = None


class Trajectory(BaseModel):
    """One feature over all checkpoints, in the order of the lineage."""

    id: str
    label: str | None
    auto_label: str | None
    points: list[Point]


class Example(BaseModel):
    """A position on which the feature is strongly active. Text is null for families that were registered without it."""

    document: int
    position: int
    text_before: str | None
    token: str | None
    text_after: str | None
    activation: float


class Examples(BaseModel):
    """Top activating examples, strongest first."""

    id: str
    checkpoint: str = Field(description="Checkpoint whose code they come from.")
    data: list[Example]


class CodeColumns(BaseModel):
    """Columns of the sparse code, in order."""

    checkpoint: str
    generation: int
    feature_ids: list[str]


class Finding(BaseModel):
    """A sentence about one change, with its figures and examples."""

    feature: FeatureRow
    what: str = Field(description="What happened to the feature, how much of it is left, and what replaced it.")
    how_sure: str = Field(description="The q-value in words, or what else the verdict is based on.")
    examples: list[Example] = Field(description="Positions on which it is most active.")


class ReasonCount(BaseModel):
    """Number of features that could not be judged for one reason."""

    reason: Reason
    text: str
    features: int


class Unjudged(BaseModel):
    """A feature that could not be judged."""

    feature: FeatureRow
    reason: Reason
    why: str = Field(description="The reason with its figures.")
    detectable: str = Field(description="The minimum detectable ratio in words.")


class NotJudged(BaseModel):
    """Features that could not be judged, and why."""

    features: int
    watched: int
    reasons: list[ReasonCount] = Field(description="Most frequent first.")
    named: list[Unjudged] = Field(description="Watched features first, then the most active.")


class Summary(BaseModel):
    """What changed between two checkpoints, in sentences, most important first."""

    headline: str
    changed: int = Field(description="Number of features that changed and match the filter.")
    findings: list[Finding] = Field(
        description=f"Watched features first, then by status ({', '.join(CHANGED)}), then by the smallest change that "
        "the interval allows."
    )
    not_judged: NotJudged
    caveats: list[str] = Field(description="Reasons to distrust these verdicts.")


class Diff(Summary):
    """A comparison of two checkpoints: a summary in sentences, and a row per feature."""

    from_: str = Field(serialization_alias="from", validation_alias="from")
    to: str
    counts: dict[Status, int] = Field(description="Over all features, regardless of the filter.")
    places: dict[Places, int] = Field(description="Features by where they are active, regardless of the filter.")
    data: list[FeatureRow]
    next_cursor: str | None = None


def point(row: "VerdictRow", checkpoint: str, baseline: str | None) -> Point:
    """A verdict as the API shows it."""
    return Point(**_point_fields(row, checkpoint, baseline))


def feature_row(row: "VerdictRow", feature: Any, checkpoint: str, baseline: str | None) -> FeatureRow:
    """A feature, a row of `queries.by_numbers`, with its verdict as the API shows it."""
    fields = feature_fields(feature, feature.born_in_name)
    return FeatureRow(**fields, **_point_fields(row, checkpoint, baseline))


_SAME_NAME = [name for name in FeatureOut.model_fields if name not in ("id", "model_label_score_ci", "born_in")]
"""Fields with the name of the column they come from."""


def feature_fields(feature: Any, born_in: str) -> dict[str, Any]:
    """Fields of FeatureOut from a `service.models.Feature` or a plain row of its columns."""
    return {name: getattr(feature, name) for name in _SAME_NAME} | {
        "id": feature_id(feature.number),
        "model_label_score_ci": _interval(feature.model_label_score_lo, feature.model_label_score_hi),
        "born_in": born_in,
    }


def _point_fields(row: "VerdictRow", checkpoint: str, baseline: str | None) -> dict[str, Any]:
    fields = {
        "checkpoint": checkpoint,
        "baseline": baseline,
        "status": row.status,
        "previous_status": row.previous_status,
        "places": row.places,
        "successors": row.successors,
    }
    for figure in FIGURES:
        fields[figure.name] = getattr(row, figure.name)
        if figure.ends:
            fields[f"{figure.name}_ci"] = _interval(*(getattr(row, column) for column in figure.columns[1:]))
    return fields


def _interval(low: float | None, high: float | None) -> Interval | None:
    return None if low is None and high is None else (low, high)
