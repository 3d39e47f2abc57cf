"""Gates: whether a checkpoint may pass, from a policy file in TOML.

    [counts]            # at most so many features that changed to this status
    suppressed = 0
    absent = 0

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

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.cli.base import UsageError
from service.features.schemas import Status
from service.signatures.rule import Status as SignatureStatus


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


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
    watched: Never = Never()
    tags: dict[str, Never] = {}
    signatures: NeverSignatures = NeverSignatures()
    quality: dict[str, float] = {}
    alerts: Alerts = Alerts()


DEFAULT = Gate(
    watched=Never(never=["suppressed", "absent", "replaced", "relocated"]),
    signatures=NeverSignatures(never=["suppressed", "absent", "replaced"]),
    alerts=Alerts(open=0),
)
"""`--gate default`: no watched feature and no signature weakened, no alert."""


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
