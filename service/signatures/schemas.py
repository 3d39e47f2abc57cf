"""JSON of signatures."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from featurewatch.service.families.schemas import HookPoints, Name
from featurewatch.service.kit.ids import parse_feature_id
from featurewatch.service.runs.schemas import RunView
from featurewatch.service.signatures.contrast import MAX_ROWS, ContrastRow
from featurewatch.service.signatures.rule import Status

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Settings(BaseModel):
    """How a contrast set is read, and how many features are chosen."""

    model_config = ConfigDict(extra="forbid")

    position: Literal["last", "answer", "mean"] = Field(
        "last",
        description="Where to read each row: at the last token (of the prompt, where the answer would start), at the "
        "first token of the row's `answer`, or the mean over all tokens.",
    )
    template: bool = Field(
        True, description="Wrap each text in the model's chat template as a user message, if the model has one."
    )
    hook_points: HookPoints | None = Field(
        None, description="A subset of the family's hook points. Default: all of them."
    )
    features: int = Field(16, ge=1, le=1024, description="Maximum number of features to choose.")
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Random seed for the split, the permutations and the resampling."
    )


class SignatureIn(BaseModel):
    """A signature to create."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Unique within the family.")
    description: str = Field("", max_length=2000)
    rows: list[ContrastRow] | None = Field(None, max_length=MAX_ROWS, description="The contrast set.")
    uri: str | None = Field(
        None, max_length=2000, description="Instead of `rows`: `file://` URI of a JSONL file with one row per line."
    )
    baseline: str | None = Field(
        None,
        description="The judged checkpoint in which features are chosen and with which all others are compared. It "
        "need not be the earliest. Default: the newest.",
    )
    settings: Settings = Field(default_factory=Settings)

    @model_validator(mode="after")
    def _one_set(self) -> "SignatureIn":
        if (self.rows is None) == (self.uri is None):
            raise ValueError("give either `rows` or `uri`")
        return self


class ChosenFeature(BaseModel):
    """A feature that separates the classes, at one hook point."""

    feature: str
    label: str | None = None
    top_tokens: list[str] = []
    hook_point: str
    weight: float = Field(description="Weight in the score: difference of the class means over the pooled variance.")
    auroc: float = Field(description="AUROC of this feature alone, on the half of the rows that chose it.")
    q_value: float
    status: str | None = Field(None, description="The feature's own status in the checkpoint, if requested.")


class Figures(BaseModel):
    """Measurements of a signature in a checkpoint, on the half of the rows not used to choose features. 95% CIs."""

    strength: float | None = Field(
        description="How much the features write along the difference that they write at the baseline, in the units "
        "of the residual stream."
    )
    strength_ratio: float | None = Field(description="Strength relative to the baseline.")
    strength_ratio_ci: Interval | None
    change: float | None = Field(description="Strength relative to the nearest ancestor in which it was read.")
    change_ci: Interval | None
    size_ratio: float | None = Field(
        None,
        description="Size of the difference that the features write, in any direction, relative to the baseline. Null "
        "for readings made before this was measured.",
    )
    size_ratio_ci: Interval | None = None
    auroc: float = Field(description="AUROC of the features chosen at the baseline, with fixed weights.")
    auroc_ci: Interval
    reselected_auroc: float = Field(description="AUROC of features chosen again in this checkpoint.")
    reselected_auroc_ci: Interval
    reselected_strength: float = Field(
        description="Strength of the reselected features relative to the signature's strength at the baseline."
    )
    reselected_before: float = Field(description="The same for the reselected features at the baseline.")
    probe_auroc: float = Field(description="AUROC of the difference-of-means probe on raw activations.")
    probe_auroc_ci: Interval
    probe_ratio: float | None = Field(
        description="Distance between the class means along the baseline's difference of means, relative to the "
        "baseline. Independent of the dictionary. Null if the bases cannot be compared."
    )
    probe_ratio_ci: Interval | None
    random_auroc: float = Field(description="Median AUROC of random sets of the same number of live features.")
    random_auroc_95: float = Field(description="95th percentile of the same.")
    features_read: int = Field(description="Number of the signature's features in the checkpoint's dictionary.")
    rows_judged: int


class ReadingView(BaseModel):
    """A signature in one checkpoint."""

    checkpoint: str
    status: Status
    previous_status: Status | None
    reason: str | None = Field(description="Why the status is `indeterminate`.")
    figures: Figures
    carriers: list[ChosenFeature] = Field(description="Features that separate the classes in this checkpoint.")
    judged_at: datetime


class SignatureView(BaseModel):
    """A signature, with its newest reading."""

    id: str
    family: str
    name: str
    description: str
    baseline: str
    settings: Settings
    rows: int
    positive: int
    features: list[ChosenFeature] | None = Field(
        description="Features chosen at the baseline. Null until the baseline has been read."
    )
    newest: ReadingView | None
    created_at: datetime


class SignatureCreated(BaseModel):
    """The new signature, and the runs that read it in every judged checkpoint, the baseline's first."""

    signature: SignatureView
    runs: list[RunView]


class SignatureTrajectory(BaseModel):
    """A signature over all checkpoints, parents before children."""

    name: str
    baseline: str
    turns_at: str | None = Field(
        description="The checkpoint with the largest `change`, up or down, among those whose entire interval is above "
        "1.25 or below 0.8. Null if there is none."
    )
    points: list[ReadingView]


def reading_view(row: Any, checkpoint: str, named: Mapping[int, Any]) -> ReadingView:
    """A reading for the API. `named` maps feature numbers to features."""
    return ReadingView(
        checkpoint=checkpoint,
        status=row.status,
        previous_status=row.previous_status,
        reason=row.reason,
        figures=Figures.model_validate(row.figures),
        carriers=features_view(row.carriers, named),
        judged_at=row.judged_at,
    )


def features_view(chosen: list[Any], named: Mapping[int, Any]) -> list[ChosenFeature]:
    """Chosen features with their labels and top tokens."""
    views = [ChosenFeature.model_validate(feature) for feature in chosen]
    for view in views:
        if (row := named.get(parse_feature_id(view.feature))) is not None:
            view.label, view.top_tokens = row.label, row.top_tokens
    return views
