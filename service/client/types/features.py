"""Shapes of the REST API about features, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Any, Literal

from typing_extensions import TypedDict

from featurewatch.service.client.types.checkpoints import (
    Example,
    FeatureRow,
    Finding,
    NotJudged,
    Places,
    Status,
    Successor,
)

Diff = TypedDict(
    "Diff",
    {
        "headline": str,
        "changed": int,
        "findings": list[Finding],
        "not_judged": NotJudged,
        "caveats": list[str],
        "from": str,
        "to": str,
        "counts": dict[str, int],
        "places": dict[str, int],
        "data": list[FeatureRow],
        "next_cursor": str | None,
    },
)


class LineageLink(TypedDict):
    """What became of a feature in a re-fit. A split or merged feature has several links."""

    generation: int
    checkpoint: str
    kind: Literal["carried", "retired", "split", "merged", "new"]
    old: str | None
    new: str | None
    score: float


class Point(TypedDict):
    """The verdict on a feature in one checkpoint against a baseline, with its figures."""

    checkpoint: str
    baseline: str | None
    status: Status
    previous_status: Status | None
    places: Places | None
    change: float
    projection_ratio: float | None
    projection_ratio_ci: list[float | None] | None
    strength_ratio: float | None
    strength_ratio_ci: list[float | None] | None
    orthogonal_ratio: float | None
    q_value: float | None
    strength: float | None
    direction_cosine: float | None
    readability: float | None
    firing_rate: float
    firings: int
    minimum_detectable_ratio: float | None
    places_q_value: float | None
    firing_rate_before: float | None
    firing_rate_ratio: float | None
    firing_rate_ratio_ci: list[float | None] | None
    gained_share: float | None
    gained_share_ci: list[float | None] | None
    lost_share: float | None
    lost_share_ci: list[float | None] | None
    kept_amplitude: float | None
    kept_amplitude_ci: list[float | None] | None
    gained_documents: float | None
    successors: list[Successor]
    rewired: bool | None


class FeatureAtSource(TypedDict):
    """A feature at one hook point of a checkpoint."""

    hook_point: str
    d_model: int
    paired_with: str | None
    readability: float | None
    strength: float | None
    projection_ratio: float | None
    projection_ratio_ci: list[float] | None
    direction_cosine: float | None


class Examples(TypedDict):
    """Top activating examples, strongest first."""

    id: str
    checkpoint: str
    data: list[Example]


class CodeColumns(TypedDict):
    """Columns of the sparse code, in order."""

    checkpoint: str
    generation: int
    feature_ids: list[str]


class Activation(TypedDict):
    """A passage, token by token, with the feature's activation on each."""

    tokens: list[str]
    values: list[float]
    maxValue: float
    maxValueTokenIndex: int
    minValue: float


class Explanation(TypedDict):
    """A label by a person, by a model, or an automatic one."""

    description: str
    typeName: str
    explanationModelName: str | None
    scores: list[dict[str, Any]]


class Feature(TypedDict):
    """A feature with its newest verdict."""

    id: str
    label: str | None
    auto_label: str | None
    model_label: str | None
    model_label_by: str | None
    model_label_score: float | None
    model_label_score_ci: list[float | None] | None
    tags: list[str]
    watched: bool
    born_in: str
    origin: str
    top_tokens: list[str]
    promoted_tokens: list[str]
    generation: int
    retired_in: int | None
    created_at: str
    last: Point | None
    lineage: list[LineageLink]


class Trajectory(TypedDict):
    """One feature over all checkpoints, in the order of the lineage."""

    id: str
    label: str | None
    auto_label: str | None
    points: list[Point]


class FeatureInCheckpoint(TypedDict):
    """A feature at all hook points of a checkpoint."""

    checkpoint: str
    status: str | None
    best: str | None
    sources: list[FeatureAtSource]


class NeuronpediaFeature(TypedDict):
    """A feature in the format of Neuronpedia-style viewers."""

    modelId: str
    layer: str
    sourceSetName: str
    index: str
    pos_str: list[str]
    pos_values: list[float]
    neg_str: list[str]
    neg_values: list[float]
    frac_nonzero: float
    maxActApprox: float
    activations: list[Activation]
    explanations: list[Explanation]


class FeatureSources(TypedDict):
    """A feature at every source of its family, parents before children."""

    id: str
    label: str | None
    auto_label: str | None
    data: list[FeatureInCheckpoint]
