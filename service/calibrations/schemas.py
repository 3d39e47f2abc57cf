"""JSON of calibrations: how a family's thresholds behave when nothing has changed.

A *null* is a second version of a checkpoint in which no feature changed. Every change reported for it is a false alarm.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from scipy.special import betaincinv

from featurewatch.service.families.calibration import NULLS, CalibrationSummary, NullName, Rate
from featurewatch.service.models import Run
from featurewatch.service.runs.schemas import RunFault
from featurewatch.service.runs.states import RunState
from featurewatch.service.verdicts.policy import Policy

BOUND = 0.95
"""Confidence level of the upper bounds."""


def _in_order(names: list[NullName]) -> list[NullName]:
    return [name for name in NULLS if name in names]


class FineTune(BaseModel):
    """The null `finetune`: a short training run on half of the probe corpus (AdamW, no weight decay, no dropout)."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(24, ge=1, le=100_000)
    learning_rate: float = Field(1e-5, gt=0, le=1, allow_inf_nan=False)
    batch_documents: int = Field(4, ge=1, le=4096, description="Documents per step.")


class CalibrationIn(BaseModel):
    """Which nulls to run, on which checkpoint."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str | None = Field(None, max_length=100, description="Default: the newest judged one.")
    nulls: Annotated[list[NullName], Field(min_length=1), AfterValidator(_in_order)] = Field(
        list(NULLS),
        description="`repeat`: read the checkpoint again. `bfloat16`, `int8`: round the weights (int8 per output "
        "channel), or for precomputed activations the activations (int8 per position). `halves`: compare one half of "
        "the documents with the other. `finetune`: train briefly on half of the corpus.",
    )
    splits: int = Field(4, ge=1, le=64, description="Number of random splits for `halves`.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Random seed of `halves` and `finetune`.")
    finetune: FineTune = Field(default_factory=FineTune)


class Thresholds(BaseModel):
    """The policy settings that affect false alarms most."""

    suppressed_below: float
    amplified_above: float
    fdr: float


class GridRow(Thresholds):
    """The false-alarm rates of other thresholds on the same measurements."""

    current: bool = Field(description="Whether these are the family's own thresholds.")
    checkpoints: Rate = Field(description="Comparisons in which any feature was reported as changed.")
    features: Rate = Field(description="Features reported as changed, of all judged, over all comparisons.")


class WouldAlert(BaseModel):
    """An alert rule of the family that a null would trigger. No alert was raised."""

    rule: str
    name: str
    comparisons: int = Field(description="Number of comparisons of this null that trigger it.")
    features: int = Field(description="Number of features over all of them.")


class Unavailable(BaseModel):
    """Why a null could not be created."""

    code: str
    detail: str


class NullResult(BaseModel):
    """The result of one null. If it could not be created, `unavailable` says why and all counts are 0."""

    null: NullName
    unavailable: Unavailable | None = None
    settings: dict[str, Any] = Field(
        default_factory=dict, description="How it was created; for `finetune` also the loss before and after."
    )
    checkpoints: Rate = Field(description="Comparisons with a false alarm.")
    features: Rate = Field(description="Features that are neither `present` nor `indeterminate`, of all judged.")
    places: Rate | None = Field(
        None,
        description="Features reported as active in other places, of those whose places could be told. Null for "
        "`halves`, because its two sides have no positions in common.",
    )
    significant: int = Field(0, description="Features with a significant q-value and a ratio outside the band.")
    emerged: int = Field(0, description="New features reported as emerged.")
    discovered: int = Field(0, description="New features that the baseline has as well. These are not alarms.")
    statuses: dict[str, int] = Field(default_factory=dict)
    alerts: list[WouldAlert] = Field(default_factory=list)
    ratio_quantiles: dict[str, float] = Field(
        default_factory=dict, description="Percentiles of the projection ratio: 0.1, 1, 5, 50, 95, 99, 99.9."
    )
    coverage: float | None = Field(None, description="Share of the projection-ratio intervals that contain 1.")
    grid: list[GridRow] = Field(default_factory=list)


class CalibrationResult(BaseModel):
    """The nulls and their totals. Features of one comparison are correlated, so bounds over features are optimistic."""

    checkpoint: str
    policy: Policy = Field(description="The family policy used for this calibration.")
    checkpoints: Rate
    features: Rate
    alerts: int = Field(description="Alerts that the family's rules would have raised, over all comparisons.")
    nulls: list[NullResult]
    grid: list[GridRow] = Field(description="Totals over all nulls.")


class CalibrationView(BaseModel):
    """A calibration. It is a run (`/v1/runs/{id}`) and can be followed, cancelled and retried like any other."""

    id: str
    family: str
    checkpoint: str | None
    state: RunState
    stage: str | None = Field(description="The null that is being processed.")
    progress: float
    asked: CalibrationIn
    result: CalibrationResult | None
    error: RunFault | None
    created_at: datetime
    finished_at: datetime | None


def rate(alarms: int, of: int) -> Rate:
    """A rate with its upper bound."""
    upper = 1.0 if alarms >= of else float(betaincinv(alarms + 1, of - alarms, BOUND))
    return Rate(alarms=alarms, of=of, rate=alarms / of if of else None, upper=upper)


def total(rates: list[Rate]) -> Rate:
    """The rate over all counts together."""
    return rate(sum(each.alarms for each in rates), sum(each.of for each in rates))


def view(run: Run, family: str, checkpoint: str | None) -> CalibrationView:
    """A calibration for the API."""
    return CalibrationView(
        id=run.id,
        family=family,
        checkpoint=checkpoint,
        state=RunState(run.state),
        stage=run.stage,
        progress=min(max(run.progress, 0.0), 1.0),
        asked=CalibrationIn.model_validate(run.params),
        result=None if run.result is None else CalibrationResult.model_validate(run.result),
        error=None if run.error is None else RunFault.model_validate(run.error),
        created_at=run.created_at,
        finished_at=run.finished_at,
    )


def summary(run: Run) -> CalibrationSummary:
    """Summary of a successful calibration."""
    result = CalibrationResult.model_validate(run.result)
    return CalibrationSummary(
        id=run.id,
        checkpoint=result.checkpoint,
        finished_at=run.finished_at or run.updated_at,
        checkpoints=result.checkpoints,
        features=result.features,
        alerts=result.alerts,
        unavailable=[null.null for null in result.nulls if null.unavailable],
    )
