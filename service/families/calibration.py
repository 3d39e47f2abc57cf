"""JSON of a family's latest calibration."""

from datetime import datetime
from typing import Literal, get_args

from pydantic import BaseModel, Field

NullName = Literal["repeat", "bfloat16", "int8", "halves", "finetune"]
NULLS: tuple[NullName, ...] = get_args(NullName)


class Rate(BaseModel):
    """A false-alarm rate with an upper bound."""

    alarms: int
    of: int
    rate: float | None = Field(description="Null if there was nothing to count.")
    upper: float = Field(description="One-sided 95% upper bound (Clopper and Pearson 1934).")


class CalibrationSummary(BaseModel):
    """Summary of the family's latest calibration."""

    id: str
    checkpoint: str
    finished_at: datetime
    checkpoints: Rate
    features: Rate
    alerts: int
    unavailable: list[NullName] = Field(description="Requested nulls that could not be created.")
