"""Shapes of the REST API about calibrations, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from featurewatch.service.client.types.checkpoints import RunFault, RunState
from featurewatch.service.client.types.families import Policy, Rate


class FineTune(TypedDict):
    """The null `finetune`: a short training run on half of the probe corpus (AdamW, no weight decay, no dropout)."""

    steps: NotRequired[int]
    learning_rate: NotRequired[float]
    batch_documents: NotRequired[int]


class GridRow(TypedDict):
    """The false-alarm rates of other thresholds on the same measurements."""

    suppressed_below: float
    amplified_above: float
    fdr: float
    current: bool
    checkpoints: Rate
    features: Rate


class Unavailable(TypedDict):
    """Why a null could not be created."""

    code: str
    detail: str


class WouldAlert(TypedDict):
    """An alert rule of the family that a null would trigger. No alert was raised."""

    rule: str
    name: str
    comparisons: int
    features: int


class CalibrationIn(TypedDict):
    """Which nulls to run, on which checkpoint."""

    checkpoint: NotRequired[str | None]
    nulls: NotRequired[list[Literal["repeat", "bfloat16", "int8", "halves", "finetune"]]]
    splits: NotRequired[int]
    seed: NotRequired[int]
    finetune: NotRequired[FineTune]


class NullResult(TypedDict):
    """The result of one null. If it could not be created, `unavailable` says why and all counts are 0."""

    null: Literal["repeat", "bfloat16", "int8", "halves", "finetune"]
    unavailable: Unavailable | None
    settings: dict[str, Any]
    checkpoints: Rate
    features: Rate
    places: Rate | None
    significant: int
    emerged: int
    discovered: int
    statuses: dict[str, int]
    alerts: list[WouldAlert]
    ratio_quantiles: dict[str, float]
    coverage: float | None
    grid: list[GridRow]


class CalibrationResult(TypedDict):
    """The nulls and their totals. Features of one comparison are correlated, so bounds over features are optimistic."""

    checkpoint: str
    policy: Policy
    checkpoints: Rate
    features: Rate
    alerts: int
    nulls: list[NullResult]
    grid: list[GridRow]


class Calibration(TypedDict):
    """A calibration. It is a run (`/v1/runs/{id}`) and can be followed, cancelled and retried like any other."""

    id: str
    family: str
    checkpoint: str | None
    state: RunState
    stage: str | None
    progress: float
    asked: CalibrationIn
    result: CalibrationResult | None
    error: RunFault | None
    created_at: str
    finished_at: str | None
