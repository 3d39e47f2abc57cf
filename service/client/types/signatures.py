"""Shapes of the REST API about signatures, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from featurewatch.service.client.types.checkpoints import Run


class ChosenFeature(TypedDict):
    """A feature that separates the classes, at one hook point."""

    feature: str
    label: str | None
    top_tokens: list[str]
    hook_point: str
    weight: float
    auroc: float
    q_value: float
    status: str | None


class Figures(TypedDict):
    """Measurements of a signature in a checkpoint, on the half of the rows not used to choose features. 95% CIs."""

    strength: float | None
    strength_ratio: float | None
    strength_ratio_ci: list[float] | None
    change: float | None
    change_ci: list[float] | None
    size_ratio: float | None
    size_ratio_ci: list[float] | None
    auroc: float
    auroc_ci: list[float]
    reselected_auroc: float
    reselected_auroc_ci: list[float]
    reselected_strength: float
    reselected_before: float
    probe_auroc: float
    probe_auroc_ci: list[float]
    probe_ratio: float | None
    probe_ratio_ci: list[float] | None
    random_auroc: float
    random_auroc_95: float
    features_read: int
    rows_judged: int


class SignatureSettings(TypedDict):
    """How a contrast set is read, and how many features are chosen."""

    position: NotRequired[Literal["last", "answer", "mean"]]
    template: NotRequired[bool]
    hook_points: NotRequired[list[str] | None]
    features: NotRequired[int]
    seed: NotRequired[int]


class Labelled(TypedDict):
    """A text with its class."""

    text: str
    label: bool
    answer: NotRequired[str | None]
    group: NotRequired[str | int | None]


class Pair(TypedDict):
    """Two texts that differ in the concept, or two answers to the same `text`."""

    positive: str
    negative: str
    text: NotRequired[str | None]


class Reading(TypedDict):
    """A signature in one checkpoint."""

    checkpoint: str
    status: Literal["present", "suppressed", "amplified", "replaced", "absent", "indeterminate"]
    previous_status: Literal["present", "suppressed", "amplified", "replaced", "absent", "indeterminate"] | None
    reason: str | None
    figures: Figures
    carriers: list[ChosenFeature]
    judged_at: str


class Signature(TypedDict):
    """A signature, with its newest reading."""

    id: str
    family: str
    name: str
    description: str
    baseline: str
    settings: SignatureSettings
    rows: int
    positive: int
    features: list[ChosenFeature] | None
    newest: Reading | None
    created_at: str


class SignatureTrajectory(TypedDict):
    """A signature over all checkpoints, parents before children."""

    name: str
    baseline: str
    turns_at: str | None
    points: list[Reading]


class SignatureCreated(TypedDict):
    """The new signature, and the runs that read it in every judged checkpoint, the baseline's first."""

    signature: Signature
    runs: list[Run]
