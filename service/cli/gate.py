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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.cli.base import UsageError
from service.client import Client
from service.client_types import Checkpoint, FeatureRow, Status
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


def failures(gate: Gate, client: Client, family: str, checkpoint: Checkpoint) -> list[str]:
    """What the checkpoint fails by, a sentence each; empty: it passes."""
    name = checkpoint["name"]
    wanted = set(gate.counts) | set(gate.watched.never) | {s for rule in gate.tags.values() for s in rule.never}
    rows = [r for r in client.features(family, checkpoint=name, status=sorted(wanted)) if _changed(r)] if wanted else []
    found = list(_count_failures(gate, rows))
    found += _group_failures("watched", gate.watched, [row for row in rows if row["watched"]])
    for tag, rule in gate.tags.items():
        found += _group_failures(f"tagged {tag}", rule, [row for row in rows if tag in row["tags"]])
    found += _signature_failures(gate.signatures, client.report(family, name)["signatures"])
    found += _quality_failures(gate, checkpoint["quality"] or {})
    if gate.alerts.open is not None:
        count = sum(1 for _ in client.alerts(family=family, checkpoint=name, state="open"))
        if count > gate.alerts.open:
            found.append(f"{count} open alerts, at most {gate.alerts.open} may be")
    return found


def _changed(row: FeatureRow) -> bool:
    if row["previous_status"] is None:
        return row["status"] == "emerged"
    return row["status"] != row["previous_status"]


def _count_failures(gate: Gate, rows: list[FeatureRow]) -> Iterable[str]:
    for status, limit in gate.counts.items():
        hit = [row for row in rows if row["status"] == status]
        if len(hit) > limit:
            yield f"{len(hit)} features became {status}, at most {limit} may: {_names(hit)}"


def _group_failures(group: str, rule: Never, rows: list[FeatureRow]) -> Iterable[str]:
    for status in rule.never:
        hit = [row for row in rows if row["status"] == status]
        if hit:
            yield f"{len(hit)} {group} features became {status}: {_names(hit)}"


def _signature_failures(rule: NeverSignatures, read: list[dict[str, Any]]) -> Iterable[str]:
    for one in read:
        came = one["previous_status"] is not None and one["status"] != one["previous_status"]
        if came and one["status"] in rule.never:
            yield f"signature {one['name']} became {one['status']}: {one['what']}"


def _quality_failures(gate: Gate, quality: dict[str, Any]) -> Iterable[str]:
    for name, limit in gate.quality.items():
        value = quality.get(name)
        if not isinstance(value, int | float):
            raise UsageError(
                f"the gate limits the quality {name!r}, which is not measured; there are {sorted(quality)}"
            )
        if value > limit:
            yield f"{name} is {value:.3g}, over {limit:.3g}"


def _names(rows: list[FeatureRow]) -> str:
    names = [f"{row['id']} ({row['label']})" if row["label"] else row["id"] for row in rows]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
