"""Gate policies: the rules that a checkpoint must pass, from a TOML file.

    [counts]            # maximum number of features that changed to this status
    suppressed = 0
    absent = 0

    [places]            # maximum number of features that are active in other places
    broadened = 10
    displaced = 0

    [shares]            # maximum share of the features
    absent = 0.1
    indeterminate = 0.3
    retired = 0.5

    [dictionary]        # whether the family's dictionary fits the checkpoint
    refit_advised = false
    fvu_ratio = 2.0
    valid_share = 0.5

    [watched]           # watched features must not have changed to these statuses and places
    never = ["suppressed", "absent", "replaced"]
    places = ["broadened", "displaced"]

    [tags.deception]    # the same for features with this tag
    never = ["suppressed"]

    [tagged]            # the same for features with any tag
    places = ["broadened"]

    [signatures]        # signatures must not have changed to these
    never = ["suppressed", "absent", "replaced"]

    [quality]           # upper limits on the checkpoint's quality figures
    fvu = 0.35

    [alerts]
    open = 0            # open alerts of this checkpoint

Every table is optional. Only changes since the parent count.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featurewatch.service.cli.base import UsageError
from featurewatch.service.signatures.rule import Status as SignatureStatus
from featurewatch.service.verdicts.statuses import PLACES_CHANGED, Places, Status

Share = Annotated[float, Field(ge=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Shares(_Table):
    """Largest shares of features. A rule fails only if the lower confidence bound exceeds the limit, so small families
    do not fail by chance."""

    absent: Share | None = None
    """Share of the existing features, firing often enough on the family's corpus to be judged, that became absent."""
    indeterminate: Share | None = None
    """Share of the same features that cannot be judged."""
    retired: Share | None = None
    """Share of the previous generation's features that a re-fit retired."""


class Dictionary(_Table):
    """Whether the family's dictionary describes the checkpoint; features that it lacks cannot be judged."""

    refit_advised: Literal[False] | None = None
    """False: the family's policy (`max_fvu_ratio`) must not advise a re-fit."""
    fvu_ratio: float | None = Field(None, ge=1)
    """Largest ratio of the FVU to its value at the fit."""
    valid_share: Share | None = None
    """Smallest share of the corpus positions that can be compared."""


class Never(_Table):
    """What no feature of a group may change to."""

    never: list[Status] = []
    places: list[Places] = []


class NeverSignatures(_Table):
    """Statuses that no signature may change to."""

    never: list[SignatureStatus] = []


class Alerts(_Table):
    """Maximum number of open alerts."""

    open: int | None = Field(None, ge=0)


class Gate(_Table):
    """A policy file. An empty policy passes every checkpoint."""

    counts: dict[Status, int] = {}
    places: dict[Places, int] = {}
    shares: Shares = Shares()
    dictionary: Dictionary = Dictionary()
    watched: Never = Never()
    tagged: Never = Never()
    tags: dict[str, Never] = {}
    signatures: NeverSignatures = NeverSignatures()
    quality: dict[str, float] = {}
    alerts: Alerts = Alerts()


DEFAULT = Gate(
    shares=Shares(absent=0.1, indeterminate=0.3, retired=0.5),
    dictionary=Dictionary(refit_advised=False, fvu_ratio=2.0, valid_share=0.5),
    watched=Never(
        never=[Status.SUPPRESSED, Status.ABSENT, Status.REPLACED, Status.RELOCATED], places=[*PLACES_CHANGED]
    ),
    tagged=Never(places=[*PLACES_CHANGED]),
    signatures=NeverSignatures(never=["suppressed", "absent", "replaced"]),
    quality={"fvu": 0.8},
    alerts=Alerts(open=0),
)
"""`--gate default`: no watched feature and no signature weakened, no watched or tagged feature active in other places,
no open alert, and enough data to judge.

The limits on shares and on the dictionary are a choice, not fitted to any model. A release should not lose one feature
in ten unnoticed. "Nothing changed" means little if three in ten features cannot be judged, half of the positions cannot
be compared, or a re-fit retired half of the features. A dictionary that explains less than a fifth of the variance is
not useful.
"""


def load(path: str) -> Gate:
    """The policy in a file, or the default policy for `default`. Raises UsageError if the file is invalid."""
    if path == "default":
        return DEFAULT
    try:
        return Gate.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"cannot read the gate policy: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(f"{path} is not a valid gate policy: {faults}") from error
