"""JSON of dependencies: what a feature is computed from in a checkpoint, and its effect there."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from featurewatch.service.kit.ids import feature_id
from featurewatch.service.models import DependencyGraph

Method = Literal["relp", "gradient", "integrated"]
Interval = tuple[float, float]
MAX_FEATURES = 32
FeatureId = Annotated[str, Field(max_length=12)]


class DependenciesIn(BaseModel):
    """Which features to examine, and how."""

    model_config = ConfigDict(extra="forbid")

    features: list[FeatureId] = Field(min_length=1, max_length=MAX_FEATURES, examples=[["F42", "F117"]])
    method: Method = Field(
        "gradient",
        description="`gradient`: gradient times activation, for any model; agrees best with ablation. `relp`: "
        "relevance propagation through the model linearised around its forward pass, so that contributions sum to the "
        "pre-activation. `integrated`: mean gradient along the path from the mean activation; `steps` times as slow.",
    )
    positions: int = Field(
        2000, ge=20, le=1_000_000, description="Maximum number of positions per feature, spread over documents."
    )
    steps: int = Field(8, ge=2, le=256, description="Number of integration steps of `integrated`.")
    hook_point: str | None = Field(
        None,
        max_length=100,
        description="Where the features are read. Default: as in the parent's graph, or else the latest hook point at "
        "which they can be read nearly as well as at the best one.",
    )
    effects: bool = Field(
        True, description="Also measure how ablating and doubling each feature changes the next token."
    )


class Edge(BaseModel):
    """Mean contribution of one source feature to the target's pre-activation where the target fires."""

    feature: str
    hook_point: str
    weight: float
    ci: Interval
    q: float


class SourcePlace(BaseModel):
    """A complete account of one earlier hook point, as means over the target's positions."""

    hook_point: str
    features: float
    bias: float = Field(description="Mean activation and bias of the reconstruction.")
    error: float = Field(description="Reconstruction error.")
    uncoded: float = Field(description="Tokens without a code: first tokens, sinks, positions of other tokenizers.")
    explained: float | None = Field(description="features / (features + bias + error + uncoded).")
    total: float | None = Field(
        description="The sum of all contributions over the target's value minus `constant`. 1 if the method accounts "
        "for everything; it deviates because of intermediate biases and curvature."
    )


class TokenEdge(BaseModel):
    """Contribution of an input token at any position before the target."""

    token: str
    weight: float
    ci: Interval


class LogitEdge(BaseModel):
    """Change of a next-token logit by the feature, minus the mean change of all logits."""

    token: str
    change: float


class Graph(BaseModel):
    """The significant edges into one feature."""

    value: float = Field(description="Mean pre-activation of the target where it fires.")
    constant: float = Field(description="Pre-activation for a zero input.")
    documents: int = Field(description="Number of document folds with positions, of 20. Intervals are based on them.")
    sources: list[SourcePlace]
    edges: list[Edge]
    other_features: float = Field(description="Sum of the contributions of all features without an edge.")
    tokens: list[TokenEdge]
    other_tokens: float
    logits: list[LogitEdge]


class AnswerEffect(BaseModel):
    """Effect on the answers in a signature's contrast set. The margin is the logit of the positive answer's first
    token minus that of the negative answer, averaged over the texts."""

    signature: str
    texts: int
    margin: float = Field(description="Margin of the unmodified model.")
    ablate: float = Field(description="Change of the margin when the feature is ablated.")
    ablate_ci: Interval
    amplify: float = Field(description="Change of the margin when the feature is doubled.")
    amplify_ci: Interval
    random_most: float = Field(description="Largest change, up or down, by random directions of the same norm.")
    effective: bool = Field(
        description="Whether ablation changes the margin significantly and more than every random direction."
    )


class Effect(BaseModel):
    """Change of the next-token distribution (KL in nats) at positions where the feature fires."""

    positions: int
    ablate: float
    ablate_ci: Interval
    amplify: float
    amplify_ci: Interval
    random: float = Field(description="Mean over random directions of the same norm.")
    random_most: float = Field(description="Largest effect of any random direction.")
    directions: int
    effective: bool = Field(
        description="Whether ablation does significantly more than random directions, and more than every one of "
        "them. False: the feature is written, but nothing downstream uses it."
    )
    answers: list[AnswerEffect] = Field(
        [], description="Effect on the signatures that use the feature and whose rows have answers."
    )
    text: str = Field(description="The effect in words.")


class ChangedEdge(BaseModel):
    """An edge that differs between two checkpoints."""

    feature: str
    hook_point: str
    before: float
    after: float
    change_ci: Interval
    q: float


class DependencyComparison(BaseModel):
    """A feature's edges in two checkpoints, from sources that are present in both."""

    baseline: str
    compared: int = Field(description="Number of source features present in both, over all hook points.")
    gained: list[ChangedEdge]
    lost: list[ChangedEdge]
    changed: list[ChangedEdge]
    agreement: float | None = Field(
        description="Cosine of the two edge profiles, normalised by the agreement of two document samples from one "
        "checkpoint. 1 for identical dependencies, null if too noisy."
    )
    agreement_ci: Interval | None
    p_value: float | None
    rewired: bool | None = Field(
        description="Whether the two profiles agree significantly less than unchanged dependencies would."
    )
    why_not: str | None = Field(description="Why `rewired` is null.")


class Dependencies(BaseModel):
    """A feature's dependencies in a checkpoint."""

    feature: str
    checkpoint: str
    method: Method
    hook_point: str
    positions: int
    graph: Graph
    effect: Effect | None = Field(description="Null if not requested, or if the model has no known head.")
    comparison: DependencyComparison | None
    run: str
    created_at: datetime


def view(row: DependencyGraph, checkpoint: str, comparison: DependencyComparison | None) -> Dependencies:
    """A graph for the API."""
    effect: dict[str, Any] | None = row.effect
    return Dependencies(
        feature=feature_id(row.feature),
        checkpoint=checkpoint,
        method=row.method,
        hook_point=row.hook_point,
        positions=row.n_positions,
        graph=Graph.model_validate(row.graph),
        effect=None if effect is None else Effect.model_validate(effect),
        comparison=comparison,
        run=row.run_id,
        created_at=row.created_at,
    )
