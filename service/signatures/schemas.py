"""JSON of signatures."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from featurewatch.service.families.schemas import HookPoints, Name
from featurewatch.service.kit.ids import parse_feature_id
from featurewatch.service.runs.schemas import RunView
from featurewatch.service.signatures.contrast import MOST_ROWS, ContrastRow
from featurewatch.service.signatures.rule import Status

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Settings(BaseModel):
    """How a contrast set is read, and how many features are chosen."""

    model_config = ConfigDict(extra="forbid")

    position: Literal["last", "answer", "mean"] = Field(
        "last",
        description="What is read of a row: the last token (of the prompt, where the answer would begin), the first "
        "token of the row's `answer`, or the mean over the text's tokens.",
    )
    template: bool = Field(
        True, description="Put each text into the model's chat template, as what a user says, where it has one."
    )
    hook_points: HookPoints | None = Field(None, description="Of the family's. Left out: all of them.")
    features: int = Field(16, ge=1, le=1024, description="Features that are chosen at most.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of the halves, the permutations and the resamples.")


class SignatureIn(BaseModel):
    """A signature to be made."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Unique in the family.")
    description: str = Field("", max_length=2000)
    rows: list[ContrastRow] | None = Field(None, max_length=MOST_ROWS, description="The contrast set.")
    uri: str | None = Field(
        None, max_length=2000, description="Instead of `rows`: `file://` URI of a JSONL file with a row a line."
    )
    baseline: str | None = Field(
        None,
        description="The judged checkpoint at which features are chosen and that others are held against; it may be a "
        "later one. Left out: the newest.",
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
    weight: float = Field(description="Of the score: difference of the class means over the pooled variance.")
    auroc: float = Field(description="Of this feature alone, on the half that chose it.")
    q_value: float
    status: str | None = Field(None, description="The feature's own verdict there, where it was asked for.")


class Figures(BaseModel):
    """What was measured of a signature in a checkpoint. Judged on the half that did not choose; 95% intervals."""

    strength: float | None = Field(
        description="How much the features write of the difference that they write at the baseline, in the stream's "
        "units."
    )
    strength_ratio: float | None = Field(description="Over that at the baseline.")
    strength_ratio_ci: Interval | None
    change: float | None = Field(description="Strength over that of the nearest ancestor that was read.")
    change_ci: Interval | None
    size_ratio: float | None = Field(
        None,
        description="Size of the difference that the features write, in whatever direction, over that at the baseline. "
        "Null as well in readings from before it was measured.",
    )
    size_ratio_ci: Interval | None = None
    auroc: float = Field(description="Of the features chosen at the baseline, weights frozen.")
    auroc_ci: Interval
    reselected_auroc: float = Field(description="Of features chosen anew in this checkpoint.")
    reselected_auroc_ci: Interval
    reselected_strength: float = Field(description="What those write, over the signature's strength at the baseline.")
    reselected_before: float = Field(description="What the same ones wrote at the baseline, over that.")
    probe_auroc: float = Field(description="Of the difference of means of the raw activations.")
    probe_auroc_ci: Interval
    probe_ratio: float | None = Field(
        description="Distance of the classes' means along the baseline's difference of means, over that at the "
        "baseline: no dictionary has a part in it. Null where the bases cannot be compared."
    )
    probe_ratio_ci: Interval | None
    random_auroc: float = Field(description="Median of random sets of as many live features, weighted alike.")
    random_auroc_95: float = Field(description="What one in twenty of those exceeds.")
    features_read: int = Field(description="Of the signature's features, those that the checkpoint's dictionary has.")
    rows_judged: int


class ReadingView(BaseModel):
    """A signature in one checkpoint."""

    checkpoint: str
    status: Status
    previous_status: Status | None
    reason: str | None = Field(description="Of `indeterminate`: why nothing can be said.")
    figures: Figures
    carriers: list[ChosenFeature] = Field(description="The features that separate the classes here, chosen anew.")
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
    features: list[ChosenFeature] | None = Field(description="Chosen at the baseline; null until it was read.")
    newest: ReadingView | None
    created_at: datetime


class SignatureCreated(BaseModel):
    """Answer to a creation: the signature, and the runs that read it in every judged checkpoint, baseline first."""

    signature: SignatureView
    runs: list[RunView]


class SignatureCourse(BaseModel):
    """A signature over all checkpoints, parents before their children."""

    name: str
    baseline: str
    turns_at: str | None = Field(
        description="The checkpoint with the largest `change`, up or down, of those whose whole interval is over 1.25 "
        "or under 0.8; null where there is none."
    )
    points: list[ReadingView]


def reading_view(row: Any, checkpoint: str, named: Mapping[int, Any]) -> ReadingView:
    """A reading as the API shows it. named: feature number -> the feature."""
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
    """Chosen features with their names."""
    views = [ChosenFeature.model_validate(one) for one in chosen]
    for view in views:
        if (row := named.get(parse_feature_id(view.feature))) is not None:
            view.label, view.top_tokens = row.label, row.top_tokens
    return views
