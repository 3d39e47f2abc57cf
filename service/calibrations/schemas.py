"""JSON of calibrations: what a family's thresholds say where nothing has changed.

A *null* is a second version of a checkpoint in which no feature changed. Whatever is said of one is a false alarm.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from scipy.special import betaincinv

from featurewatch.service.calibrations.kinds import NULLS, NullName
from featurewatch.service.models import Run
from featurewatch.service.runs.schemas import RunFault
from featurewatch.service.runs.states import RunState
from featurewatch.service.verdicts.policy import Policy

BOUND = 0.95
"""Confidence of the upper bounds of rates."""


def _in_order(names: list[NullName]) -> list[NullName]:
    return [name for name in NULLS if name in names]


class FineTune(BaseModel):
    """The null `finetune`: a short training on half of the probe corpus (AdamW, no weight decay, no dropout)."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(24, ge=1, le=100_000)
    learning_rate: float = Field(1e-5, gt=0, le=1, allow_inf_nan=False)
    batch_documents: int = Field(4, ge=1, le=4096, description="Documents of one step.")


class CalibrationIn(BaseModel):
    """Which nulls to run, on which checkpoint."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str | None = Field(None, max_length=100, description="Null: the newest judged one.")
    nulls: Annotated[list[NullName], Field(min_length=1), AfterValidator(_in_order)] = Field(
        list(NULLS),
        description="`repeat`: read once more. `bfloat16`, `int8`: weights rounded (int8 by output channel); of "
        "activations that were brought along, the activations (int8 by position). `halves`: one half of the documents "
        "against the other. `finetune`: a short training on half of the corpus.",
    )
    splits: int = Field(4, ge=1, le=64, description="How often `halves` deals the documents anew.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of `halves` and `finetune`.")
    finetune: FineTune = Field(default_factory=FineTune)


class Rate(BaseModel):
    """A share, and the largest one that the count does not contradict."""

    alarms: int
    of: int
    rate: float | None = Field(description="Null where there was nothing to count.")
    upper: float = Field(description="One-sided 95% bound (Clopper and Pearson 1934): none of n is no rate of zero.")


class Thresholds(BaseModel):
    """The part of a policy that false alarms depend on most."""

    suppressed_below: float
    amplified_above: float
    fdr: float


class GridRow(Thresholds):
    """What these thresholds would have given on the same measurements."""

    current: bool = Field(description="These are the family's own.")
    checkpoints: Rate = Field(description="Comparisons in which anything was called changed.")
    features: Rate = Field(description="Features that were called changed, of those judged, over all comparisons.")


class WouldAlert(BaseModel):
    """An alert rule of the family that a null meets. Nothing was raised."""

    rule: str
    name: str
    comparisons: int = Field(description="In how many comparisons of this null.")
    features: int = Field(description="Over all of them.")


class Unavailable(BaseModel):
    """Why a null could not be had."""

    code: str
    detail: str


class NullResult(BaseModel):
    """What was said of one null. Where it could not be had, `unavailable` says why, and all counts are 0."""

    null: NullName
    unavailable: Unavailable | None = None
    settings: dict[str, Any] = Field(
        default_factory=dict, description="How it was made; of `finetune` also the loss before and after."
    )
    checkpoints: Rate = Field(description="Comparisons with a false alarm.")
    features: Rate = Field(
        description="Features whose verdict is neither `present` nor `indeterminate`, of those judged."
    )
    significant: int = Field(0, description="Features with q at most the level, and a ratio outside the band.")
    emerged: int = Field(0, description="New features that were called emerged.")
    discovered: int = Field(0, description="New features that the baseline holds as well: no alarm.")
    statuses: dict[str, int] = Field(default_factory=dict)
    alerts: list[WouldAlert] = Field(default_factory=list)
    ratio_quantiles: dict[str, float] = Field(
        default_factory=dict, description="Of the projection ratio, by percent: 0.1, 1, 5, 50, 95, 99, 99.9."
    )
    coverage: float | None = Field(None, description="Share of the intervals of the projection ratio that hold 1.")
    grid: list[GridRow] = Field(default_factory=list)


class CalibrationResult(BaseModel):
    """The nulls, and their sum. Features of one comparison are not independent: bounds over features are optimistic."""

    checkpoint: str
    policy: Policy = Field(description="The family's, by which was judged.")
    checkpoints: Rate
    features: Rate
    alerts: int = Field(description="Alerts that the family's rules would have raised, over all comparisons.")
    nulls: list[NullResult]
    grid: list[GridRow] = Field(description="Over all nulls.")


class CalibrationView(BaseModel):
    """A calibration. It is a run (`/v1/runs/{id}`): it can be followed, cancelled and retried as one."""

    id: str
    family: str
    checkpoint: str | None
    state: RunState
    stage: str | None = Field(description="The null that the worker is at.")
    progress: float
    asked: CalibrationIn
    result: CalibrationResult | None
    error: RunFault | None
    created_at: datetime
    finished_at: datetime | None


class CalibrationSummary(BaseModel):
    """The family's last calibration in short."""

    id: str
    checkpoint: str
    finished_at: datetime
    checkpoints: Rate
    features: Rate
    alerts: int
    unavailable: list[NullName] = Field(description="Nulls that were asked for and could not be had.")


def rate(alarms: int, of: int) -> Rate:
    """A rate with its bound."""
    upper = 1.0 if alarms >= of else float(betaincinv(alarms + 1, of - alarms, BOUND))
    return Rate(alarms=alarms, of=of, rate=alarms / of if of else None, upper=upper)


def total(rates: list[Rate]) -> Rate:
    """The rate of all counts together."""
    return rate(sum(one.alarms for one in rates), sum(one.of for one in rates))


def view(run: Run, family: str, checkpoint: str | None) -> CalibrationView:
    """A calibration as the API shows it."""
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
    """A calibration that has succeeded, in short."""
    result = CalibrationResult.model_validate(run.result)
    return CalibrationSummary(
        id=run.id,
        checkpoint=result.checkpoint,
        finished_at=run.finished_at or run.updated_at,
        checkpoints=result.checkpoints,
        features=result.features,
        alerts=result.alerts,
        unavailable=[one.null for one in result.nulls if one.unavailable],
    )
