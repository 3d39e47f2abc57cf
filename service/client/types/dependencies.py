"""Shapes of the REST API about dependencies, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Literal

from typing_extensions import TypedDict


class AnswerEffect(TypedDict):
    """Effect on the answers in a signature's contrast set. The margin is the logit of the positive answer's first"""

    signature: str
    texts: int
    margin: float
    ablate: float
    ablate_ci: list[float]
    amplify: float
    amplify_ci: list[float]
    random_most: float
    effective: bool


class ChangedEdge(TypedDict):
    """An edge that differs between two checkpoints."""

    feature: str
    hook_point: str
    before: float
    after: float
    change_ci: list[float]
    q: float


class Edge(TypedDict):
    """Mean contribution of one source feature to the target's pre-activation where the target fires."""

    feature: str
    hook_point: str
    weight: float
    ci: list[float]
    q: float


class LogitEdge(TypedDict):
    """Change of a next-token logit by the feature, minus the mean change of all logits."""

    token: str
    change: float


class SourcePlace(TypedDict):
    """A complete account of one earlier hook point, as means over the target's positions."""

    hook_point: str
    features: float
    bias: float
    error: float
    uncoded: float
    explained: float | None
    total: float | None


class TokenEdge(TypedDict):
    """Contribution of an input token at any position before the target."""

    token: str
    weight: float
    ci: list[float]


class DependencyComparison(TypedDict):
    """A feature's edges in two checkpoints, from sources that are present in both."""

    baseline: str
    compared: int
    gained: list[ChangedEdge]
    lost: list[ChangedEdge]
    changed: list[ChangedEdge]
    agreement: float | None
    agreement_ci: list[float] | None
    p_value: float | None
    rewired: bool | None
    why_not: str | None


class Effect(TypedDict):
    """Change of the next-token distribution (KL in nats) at positions where the feature fires."""

    positions: int
    ablate: float
    ablate_ci: list[float]
    amplify: float
    amplify_ci: list[float]
    random: float
    random_most: float
    directions: int
    effective: bool
    answers: list[AnswerEffect]
    text: str


class Graph(TypedDict):
    """The significant edges into one feature."""

    value: float
    constant: float
    documents: int
    sources: list[SourcePlace]
    edges: list[Edge]
    other_features: float
    tokens: list[TokenEdge]
    other_tokens: float
    logits: list[LogitEdge]


class Dependencies(TypedDict):
    """A feature's dependencies in a checkpoint."""

    feature: str
    checkpoint: str
    method: Literal["relp", "gradient", "integrated"]
    hook_point: str
    positions: int
    graph: Graph
    effect: Effect | None
    comparison: DependencyComparison | None
    run: str
    created_at: str
