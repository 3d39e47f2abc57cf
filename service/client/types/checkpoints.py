"""Shapes of the REST API about checkpoints, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Any, Literal

from typing_extensions import TypedDict


class RunFault(TypedDict):
    """Why a run failed, or why its last attempt did."""

    code: str
    title: str
    detail: str


RunState = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]


class Usage(TypedDict):
    """What an attempt cost. A value that the system does not report is null."""

    device: str | None
    cpu_seconds: float | None
    peak_memory_bytes: int | None
    peak_device_memory_bytes: int | None
    positions_per_second: dict[str, float]


class DependencyFinding(TypedDict):
    """A feature that is written, but is computed from different features or has no effect."""

    feature: str
    status: str | None
    rewired: bool
    effective: bool | None
    agreement: float | None
    what: str


class Example(TypedDict):
    """A position on which the feature is strongly active. Text is null for families that were registered without it."""

    document: int
    position: int
    text_before: str | None
    token: str | None
    text_after: str | None
    activation: float


Places = Literal["same", "broadened", "narrowed", "displaced", "indeterminate"]

Reason = Literal["few_firings", "few_documents", "no_baseline", "wide_interval", "not_significant", "unreadable"]


class Refit(TypedDict):
    """How many features a re-fit carried over, and what happened to the others."""

    why: str
    carried: int
    retired: int
    split: int
    merged: int
    new: int


class ReportAlert(TypedDict):
    """An alert that the checkpoint raised."""

    id: str
    rule: str
    state: str
    summary: str
    created_at: str


class ReportSignature(TypedDict):
    """A signature in the checkpoint, compared with its own baseline."""

    name: str
    status: str
    previous_status: str | None
    what: str
    strength_ratio: float | None
    strength_ratio_ci: list[float] | None
    auroc: float
    carriers: list[str]


Status = Literal["present", "suppressed", "amplified", "absent", "relocated", "replaced", "emerged", "indeterminate"]


class Successor(TypedDict):
    """A feature that is active where another one weakened."""

    id: str
    kind: str
    cofiring: float | None


class Run(TypedDict):
    """A unit of work for the workers."""

    id: str
    family: str
    checkpoint: str | None
    kind: str
    state: RunState
    stage: str | None
    progress: float
    detail: dict[str, Any]
    priority: int
    attempt: int
    max_attempts: int
    seconds: dict[str, float]
    usage: Usage
    log_lines: int
    request_id: str | None
    result: dict[str, Any] | None
    error: RunFault | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class FeatureRow(TypedDict):
    """A feature with its verdict in one checkpoint."""

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


class ReasonCount(TypedDict):
    """Number of features that could not be judged for one reason."""

    reason: Reason
    text: str
    features: int


class Checkpoint(TypedDict):
    """A checkpoint and the run that judges it."""

    id: str
    family: str
    name: str
    uri: str
    adapter: str | None
    resolved_uri: str | None
    resolved_adapter: str | None
    content_digest: str | None
    parent: str | None
    deleted_parents: list[str]
    hook_points: list[str]
    fit: str
    metadata: dict[str, Any]
    state: Literal["registered", "harvested", "judged", "failed"]
    generation: int | None
    quality: dict[str, Any] | None
    activations_kept: bool | None
    created_at: str
    judged_at: str | None
    run: Run | None


class Finding(TypedDict):
    """A sentence about one change, with its figures and examples."""

    feature: FeatureRow
    what: str
    how_sure: str
    examples: list[Example]


class Unjudged(TypedDict):
    """A feature that could not be judged."""

    feature: FeatureRow
    reason: Reason
    why: str
    detectable: str


class Registration(TypedDict):
    """The registered checkpoint and its run."""

    checkpoint: Checkpoint
    run: Run | None


class NotJudged(TypedDict):
    """Features that could not be judged, and why."""

    features: int
    watched: int
    reasons: list[ReasonCount]
    named: list[Unjudged]


class Report(TypedDict):
    """What changed in one checkpoint compared with a baseline."""

    headline: str
    changed: int
    findings: list[Finding]
    not_judged: NotJudged
    caveats: list[str]
    family: str
    checkpoint: str
    baseline: str | None
    judged_at: str | None
    generation: int | None
    features: int
    counts: dict[str, int]
    places: dict[str, int]
    new_counts: dict[str, int]
    changes: list[FeatureRow]
    refit: Refit | None
    quality: dict[str, Any]
    fitted_fvu: float | None
    signatures: list[ReportSignature]
    circuits: list[DependencyFinding]
    alerts: list[ReportAlert]
