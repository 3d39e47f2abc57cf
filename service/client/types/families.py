"""Shapes of the REST API about families, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


class Corpus(TypedDict):
    """The probe corpus: the documents that every checkpoint of the family is run on."""

    uri: NotRequired[str]
    max_documents: NotRequired[int]
    context_length: NotRequired[int]


class CrosscoderOptions(TypedDict):
    """The dictionary and its training."""

    n_features: NotRequired[int]
    k: NotRequired[int]
    sparsity: NotRequired[Literal["batch_topk", "topk", "l1", "jumprelu"]]
    sparsity_weight: NotRequired[float | None]
    decoder: NotRequired[Literal["per_source", "shared"]]
    source_dropout: NotRequired[float]
    prefixes: NotRequired[list[int]]
    designated: NotRequired[int]
    designated_discount: NotRequired[float]
    dedicated: NotRequired[int]
    steps: NotRequired[int]
    batch_size: NotRequired[int]
    learning_rate: NotRequired[float]
    seed: NotRequired[int]


class Policy(TypedDict):
    """Thresholds of verdicts, and when to fit again. The defaults were chosen in advance, not tuned to data."""

    suppressed_below: NotRequired[float]
    amplified_above: NotRequired[float]
    absent_below: NotRequired[float]
    fdr: NotRequired[float]
    sequential: NotRequired[bool]
    confidence: NotRequired[float]
    code_error: NotRequired[float]
    min_firings: NotRequired[int]
    min_documents: NotRequired[int]
    min_readability: NotRequired[float]
    successor_cofiring: NotRequired[float]
    successor_strength: NotRequired[float]
    places_share: NotRequired[float]
    places_floor: NotRequired[float]
    min_visibility: NotRequired[float]
    trigger_gain: NotRequired[float]
    trigger_firings: NotRequired[int]
    kept_band: NotRequired[float]
    new_features: NotRequired[int]
    max_norm_ratio: NotRequired[float]
    skip_tokens: NotRequired[int]
    max_fvu_ratio: NotRequired[float]
    refit_every: NotRequired[int]
    anchors: NotRequired[int]
    warm_start: NotRequired[bool]
    match_threshold: NotRequired[float]
    dependencies: NotRequired[bool]


class Rate(TypedDict):
    """A false-alarm rate with an upper bound."""

    alarms: int
    of: int
    rate: float | None
    upper: float


class CalibrationSummary(TypedDict):
    """Summary of the family's latest calibration."""

    id: str
    checkpoint: str
    finished_at: str
    checkpoints: Rate
    features: Rate
    alerts: int
    unavailable: list[Literal["repeat", "bfloat16", "int8", "halves", "finetune"]]


class Family(TypedDict):
    """A family with all defaults filled in."""

    id: str
    name: str
    hook_points: list[str]
    corpus: Corpus
    crosscoder: CrosscoderOptions
    policy: Policy
    generation: int
    n_features: int
    positions: dict[str, Any] | None
    calibration: CalibrationSummary | None
    created_at: str
    updated_at: str
