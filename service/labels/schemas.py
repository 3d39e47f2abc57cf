"""JSON of labels from a model endpoint."""

from pydantic import BaseModel, ConfigDict, Field

MOST = 500
DEFAULT = 100
"""Number of features that a run labels by default. Each costs several requests."""


class LabelIn(BaseModel):
    """Which features to label, and the checkpoint whose code is used."""

    model_config = ConfigDict(extra="forbid")

    features: list[str] | None = Field(
        None,
        min_length=1,
        max_length=MOST,
        description=f"Feature ids. Default: up to {DEFAULT} features that are watched or changed in the checkpoint and "
        "have no model label yet, the most changed first.",
    )
    checkpoint: str | None = Field(None, max_length=100, description="Default: the newest judged one.")


class NotLabelled(BaseModel):
    """A feature that could not be labelled, and why."""

    feature: str
    code: str
    detail: str


class LabelResult(BaseModel):
    """The `result` of a run of the kind `label`."""

    checkpoint: str
    model: str
    labelled: int
    scored: int = Field(
        description="How many of them have a score. A feature that fires in a single document has no held-out examples."
    )
    failed: list[NotLabelled]
