"""JSON of dependencies: what a feature is computed from in a checkpoint, and what it does there."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from featurewatch.service.kit.ids import feature_id
from featurewatch.service.models import DependencyGraph

Method = Literal["relp", "gradient", "integrated"]
Interval = tuple[float, float]
MOST_FEATURES = 32
FeatureId = Annotated[str, Field(max_length=12)]


class DependenciesIn(BaseModel):
    """Which features to look at, and how."""

    model_config = ConfigDict(extra="forbid")

    features: list[FeatureId] = Field(min_length=1, max_length=MOST_FEATURES, examples=[["F42", "F117"]])
    method: Method = Field(
        "gradient",
        description="`gradient`: gradient times activation, for any model; it agrees best with what taking features "
        "out does. `relp`: through the model made linear around its own forward pass, so that all that enters adds up "
        "to what is read. `integrated`: the mean gradient along the path from the mean activation; `steps` times as "
        "slow.",
    )
    positions: int = Field(2000, ge=20, le=1_000_000, description="Of each feature at most, spread over documents.")
    steps: int = Field(8, ge=2, le=256, description="Of `integrated`.")
    hook_point: str | None = Field(
        None,
        max_length=100,
        description="Where the features are read. Null: as in the parent's graph; else the latest hook point that "
        "reads them nearly as well as the best.",
    )
    effects: bool = Field(True, description="Also take each feature out, and double it, and look at the next token.")


class Edge(BaseModel):
    """What one source feature gives to the target's pre-activation, on average where the target fires."""

    feature: str
    hook_point: str
    weight: float
    ci: Interval
    q: float


class SourcePlace(BaseModel):
    """Everything at one earlier hook point, as means over the target's positions: nothing is left out."""

    hook_point: str
    features: float
    bias: float = Field(description="Mean activation and bias of the reconstruction.")
    error: float = Field(description="What the features do not reconstruct.")
    uncoded: float = Field(description="Tokens without a code: first tokens, sinks, places of other tokenizers.")
    explained: float | None = Field(description="features / (features + bias + error + uncoded).")
    total: float | None = Field(
        description="All of it over the target's value less its read-out's constant: 1 where the method accounts for "
        "everything, less or more where biases on the way or curvature do the rest."
    )


class TokenEdge(BaseModel):
    """What an input token gives, wherever it stands before the target."""

    token: str
    weight: float
    ci: Interval


class LogitEdge(BaseModel):
    """How much the feature moves the logit of a next token, less what it moves all of them."""

    token: str
    change: float


class Graph(BaseModel):
    """The edges into one feature that are above the noise of the checkpoint's documents."""

    value: float = Field(description="Mean pre-activation of the target where it fires.")
    constant: float = Field(description="What its read-out gives at an activation of 0.")
    documents: int = Field(description="Folds of documents with positions, of 20: intervals come from them.")
    sources: list[SourcePlace]
    edges: list[Edge]
    other_features: float = Field(description="Sum of all that features give below the noise.")
    tokens: list[TokenEdge]
    other_tokens: float
    logits: list[LogitEdge]


class AnswerEffect(BaseModel):
    """What the same edits do to the answers of a signature's contrast set: the logit of the positive answer's first
    token less the negative one's, on average over the set's texts."""

    signature: str
    texts: int
    margin: float = Field(description="Of the model as it is.")
    ablate: float = Field(description="Its change without the feature.")
    ablate_ci: Interval
    amplify: float = Field(description="Its change with twice of it.")
    amplify_ci: Interval
    random_most: float = Field(description="The largest change, up or down, of random directions of the same length.")
    effective: bool = Field(description="Ablating changes it significantly, and by more than each random direction.")


class Effect(BaseModel):
    """What happens to the next token, in nats of KL, at positions where the feature fires."""

    positions: int
    ablate: float
    ablate_ci: Interval
    amplify: float
    amplify_ci: Interval
    random: float = Field(description="Mean over random directions of the same length.")
    random_most: float = Field(description="The largest of them.")
    directions: int
    effective: bool = Field(
        description="Ablating does significantly more than random directions, and more than each of them. False: the "
        "feature is written, but nothing that follows makes use of it here."
    )
    answers: list[AnswerEffect] = Field([], description="Of the signatures that the feature is of, where their rows "
                                        "are answers to texts.")  # fmt: skip
    text: str


class ChangedEdge(BaseModel):
    """An edge that is not the same in two checkpoints."""

    feature: str
    hook_point: str
    before: float
    after: float
    change_ci: Interval
    q: float


class Comparison(BaseModel):
    """The same feature's edges in two checkpoints, of sources that are present in both."""

    baseline: str
    compared: int = Field(description="Source features that are present in both, over all hook points.")
    gained: list[ChangedEdge]
    lost: list[ChangedEdge]
    changed: list[ChangedEdge]
    agreement: float | None = Field(
        description="Cosine of the two profiles of edges, by what two samples of documents of one checkpoint have in "
        "common: 1 where they are alike. Null: too noisy to say."
    )
    agreement_ci: Interval | None
    p_value: float | None
    rewired: bool | None = Field(description="Significantly less alike than the same circuit would be.")
    why_not: str | None = Field(description="Why nothing can be said.")


class Dependencies(BaseModel):
    """A feature's dependencies in a checkpoint."""

    feature: str
    checkpoint: str
    method: Method
    hook_point: str
    positions: int
    graph: Graph
    effect: Effect | None = Field(description="Null where it was not asked for, or the model has no known head.")
    comparison: Comparison | None
    run: str
    created_at: datetime


def view(row: DependencyGraph, checkpoint: str, comparison: Comparison | None) -> Dependencies:
    """A graph as the API shows it."""
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
