"""JSON of labels from an endpoint."""

from pydantic import BaseModel, ConfigDict, Field

MOST = 500
DEFAULT = 100
"""Features of a run that names none: each costs requests."""


class LabelIn(BaseModel):
    """Which features to label, by the code of which checkpoint."""

    model_config = ConfigDict(extra="forbid")

    features: list[str] | None = Field(
        None,
        min_length=1,
        max_length=MOST,
        description=f"Ids. Null: those that are watched or changed in the checkpoint and have no label of a model yet, "
        f"the {DEFAULT} that changed most.",
    )
    checkpoint: str | None = Field(None, max_length=100, description="Null: the newest judged one.")


class NotLabelled(BaseModel):
    """A feature that got no label, and why."""

    feature: str
    code: str
    detail: str


class LabelResult(BaseModel):
    """The `result` of a run of the kind `label`."""

    checkpoint: str
    model: str
    labelled: int
    scored: int = Field(description="Of them. A feature that fires in one document alone has no held-out examples.")
    failed: list[NotLabelled]
