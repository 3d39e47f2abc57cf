"""Gates: whether a checkpoint may pass, from a policy file in TOML.

    [counts]            # at most so many features that changed to this status
    suppressed = 0
    absent = 0

    [shares]            # at most this share of the features
    absent = 0.1
    indeterminate = 0.3
    retired = 0.5

    [dictionary]        # whether the family's dictionary fits the checkpoint
    refit_advised = false
    fvu_ratio = 2.0
    valid_share = 0.5

    [watched]           # watched features must not have changed to these
    never = ["suppressed", "absent", "replaced"]

    [tags.deception]    # nor those with a tag
    never = ["suppressed"]

    [signatures]        # signatures must not have changed to these
    never = ["suppressed", "absent", "replaced"]

    [quality]           # upper limits on numbers of the checkpoint's quality
    fvu = 0.35

    [alerts]
    open = 0            # open alerts of this checkpoint

Every table may be left out. Only changes against the parent count: what was suppressed before is no news.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featurewatch.service.cli.base import UsageError
from featurewatch.service.signatures.rule import Status as SignatureStatus
from featurewatch.service.verdicts.statuses import Status

Share = Annotated[float, Field(ge=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Shares(_Table):
    """Largest shares of features. The gate fails where the share is over its limit for sure: in a family of few
    features, three of ten say little."""

    absent: Share | None = None
    """That became absent, of those that were there before and fire often enough on the family's corpus to be judged."""
    indeterminate: Share | None = None
    """That cannot be judged, of the same."""
    retired: Share | None = None
    """That a re-fit did not find again, of those of the last generation."""


class Dictionary(_Table):
    """Whether the family's dictionary describes the checkpoint; what it misses cannot be judged."""

    refit_advised: Literal[False] | None = None
    """False: the family's policy (`max_fvu_ratio`) must not advise a re-fit."""
    fvu_ratio: float | None = Field(None, ge=1)
    """Largest FVU, over that of the checkpoint it was fitted on."""
    valid_share: Share | None = None
    """Least share of the corpus' positions that can be compared."""


class Never(_Table):
    """Statuses that a group of features must not have changed to."""

    never: list[Status] = []


class NeverSignatures(_Table):
    """Statuses that no signature must have changed to."""

    never: list[SignatureStatus] = []


class Alerts(_Table):
    """Most open alerts."""

    open: int | None = Field(None, ge=0)


class Gate(_Table):
    """A policy file. An empty one passes everything."""

    counts: dict[Status, int] = {}
    shares: Shares = Shares()
    dictionary: Dictionary = Dictionary()
    watched: Never = Never()
    tags: dict[str, Never] = {}
    signatures: NeverSignatures = NeverSignatures()
    quality: dict[str, float] = {}
    alerts: Alerts = Alerts()


DEFAULT = Gate(
    shares=Shares(absent=0.1, indeterminate=0.3, retired=0.5),
    dictionary=Dictionary(refit_advised=False, fvu_ratio=2.0, valid_share=0.5),
    watched=Never(never=[Status.SUPPRESSED, Status.ABSENT, Status.REPLACED, Status.RELOCATED]),
    signatures=NeverSignatures(never=["suppressed", "absent", "replaced"]),
    quality={"fvu": 0.8},
    alerts=Alerts(open=0),
)
"""`--gate default`: no watched feature and no signature weakened, no alert, and a checkpoint that could be judged.

The limits on shares and on the dictionary are policy, not fitted to any model: one feature in ten gone is more than a
release should lose unnoticed; "nothing changed" says little where three in ten features cannot be judged, half of the
positions cannot be compared, or a re-fit lost half of the features; and a dictionary that explains less than a fifth of
the variance describes nothing.
"""


def load(path: str) -> Gate:
    """The policy of a file, or the default one for `default`. UsageError names what is wrong in the file."""
    if path == "default":
        return DEFAULT
    try:
        return Gate.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"the gate's policy cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(f"{path} is no gate policy: {faults}") from error
