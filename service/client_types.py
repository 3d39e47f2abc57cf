"""Shapes of the REST API's answers, as the client returns them: plain dictionaries with known keys."""

from typing import Any, Literal, NotRequired, TypedDict

RunStateName = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Status = Literal[
    "present", "suppressed", "amplified", "absent", "relocated", "replaced", "emerged", "indeterminate"
]  # fmt: skip


class Family(TypedDict):
    """Models that are tracked together in one feature space."""

    id: str
    name: str
    hook_points: list[str]
    corpus: dict[str, Any]
    crosscoder: dict[str, Any]
    policy: dict[str, Any]
    generation: int
    n_features: int
    calibration: dict[str, Any] | None
    created_at: str


class RunFault(TypedDict):
    """Why a run failed."""

    code: str
    title: str
    detail: str


class Run(TypedDict):
    """One piece of work for the workers. `progress` is that of the stage, 0 to 1; `seconds` are by stage."""

    id: str
    family: str
    checkpoint: str | None
    kind: str
    state: RunStateName
    stage: str | None
    progress: float
    detail: dict[str, Any]
    priority: int
    attempt: int
    max_attempts: int
    seconds: dict[str, float]
    usage: dict[str, Any]
    request_id: str | None
    result: dict[str, Any] | None
    error: RunFault | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class Attempt(TypedDict):
    """One try at a run. `outcome`: the state that it left the run in; None: it goes on."""

    number: int
    worker: str
    outcome: RunStateName | None
    error: RunFault | None
    usage: dict[str, Any]
    started_at: str
    ended_at: str | None


class Calibration(TypedDict):
    """What the thresholds of a family say of versions of a checkpoint in which nothing changed. `id` is its run's."""

    id: str
    family: str
    checkpoint: str | None
    state: RunStateName
    stage: str | None
    progress: float
    asked: dict[str, Any]
    result: dict[str, Any] | None
    error: RunFault | None
    created_at: str
    finished_at: str | None


class Checkpoint(TypedDict):
    """One set of weights of a family. `state` is registered, harvested, judged or failed."""

    id: str
    name: str
    uri: str
    adapter: str | None
    parent: str | None
    hook_points: list[str]
    fit: str
    metadata: dict[str, Any]
    state: str
    generation: int | None
    quality: dict[str, Any] | None
    activations_kept: bool | None
    created_at: str
    judged_at: str | None
    run: Run | None


class Registration(TypedDict):
    """The answer to a registration. `created` is False where the same checkpoint was registered before."""

    checkpoint: Checkpoint
    run: Run
    created: bool


class Successor(TypedDict):
    """A feature that took over: `kind` is replaced, split or merged."""

    id: str
    kind: str
    cofiring: float


class Point(TypedDict):
    """A feature's verdict in one checkpoint, with its evidence. Intervals are `[low, high]`."""

    checkpoint: str
    baseline: str | None
    status: Status
    previous_status: Status | None
    change: float
    projection_ratio: float | None
    projection_ratio_ci: list[float] | None
    strength_ratio: float | None
    strength_ratio_ci: list[float] | None
    orthogonal_ratio: float | None
    q_value: float | None
    strength: float | None
    direction_cosine: float | None
    readability: float | None
    firing_rate: float
    firings: int
    minimum_detectable_ratio: float | None
    successors: list[Successor]
    rewired: bool | None


class Feature(TypedDict):
    """A feature, whatever the checkpoint."""

    id: str
    label: str | None
    auto_label: str | None
    model_label: str | None
    model_label_by: str | None
    model_label_score: float | None
    model_label_score_ci: list[float] | None
    tags: list[str]
    watched: bool
    top_tokens: list[str]
    promoted_tokens: list[str]
    born_in: str
    origin: str
    generation: int
    retired_in: int | None
    lineage: NotRequired[list["Link"]]


class Link(TypedDict):
    """What a re-fit made of a feature. `kind` is carried, retired, split, merged or new."""

    generation: int
    checkpoint: str
    kind: str
    old: str | None
    new: str | None
    score: float


class Dependencies(TypedDict):
    """What a feature is computed from. `comparison` is None where no baseline was named."""

    feature: str
    checkpoint: str
    method: str
    hook_point: str
    positions: int
    graph: dict[str, Any]
    effect: dict[str, Any] | None
    comparison: dict[str, Any] | None
    run: str
    created_at: str


class FeatureRow(Feature, Point):
    """A feature with its verdict in one checkpoint."""


class Example(TypedDict):
    """A place where a feature fires. Texts are None where the activations were brought along without them."""

    document: int
    position: int
    text_before: str | None
    token: str | None
    text_after: str | None
    activation: float


class Webhook(TypedDict):
    """Where events are sent. `secret` is in the answer that made it, and never again."""

    id: str
    url: str
    event_types: list[str]
    format: str
    enabled: bool
    disabled_reason: str | None
    failing_since: str | None
    paused_at: str | None
    old_secret_until: str | None
    created_at: str
    secret: NotRequired[str]


class Delivery(TypedDict):
    """One event on its way to one webhook. `state` is pending, delivered or failed."""

    id: str
    webhook: str
    event: str
    type: str
    state: str
    attempts: int
    next_attempt_at: str | None
    log: list[dict[str, Any]]
    created_at: str
    delivered_at: str | None


class AlertRule(TypedDict):
    """When to raise an alert. `family` is None where the rule holds for every family."""

    id: str
    name: str
    family: str | None
    condition: dict[str, Any]
    enabled: bool
    created_at: str


class Alert(TypedDict):
    """What people should know of. `state` is open, acknowledged, muted or resolved."""

    id: str
    kind: str
    rule: str | None
    rule_name: str | None
    family: str | None
    checkpoint: str | None
    webhook: str | None
    state: str
    summary: str
    evidence: list[dict[str, Any]]
    created_at: str


class Key(TypedDict):
    """An API key. `key` is in the answer that made it, and never again."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    key: NotRequired[str]
