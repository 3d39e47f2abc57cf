"""Evaluates the rules of a gate for a checkpoint, with the evidence of each failure."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from featurewatch.service.cli.base import UsageError
from featurewatch.service.cli.gate import judgeable
from featurewatch.service.cli.gate.outcome import Outcome
from featurewatch.service.cli.gate.policy import Gate, Never
from featurewatch.service.client import Client
from featurewatch.service.client.types import Checkpoint, ReportSignature
from featurewatch.service.features import words
from featurewatch.service.features.schemas import FeatureRow
from featurewatch.service.kit.text import plain
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import Status

_LISTED = 20
"""Maximum number of features listed per failed rule."""


def outcomes(gate: Gate, client: Client, family: str, checkpoint: Checkpoint) -> Iterator[Outcome]:
    """The result of every rule, in the order of the policy's tables. Raises UsageError if one cannot be evaluated."""
    name = checkpoint["name"]
    policy = Policy.model_validate(client.family(family)["policy"])
    report = client.report(family, name)
    if "new_counts" not in report:
        raise UsageError(
            "the service runs an older version of featurewatch than this command; install the same version here"
        )
    groups = [gate.watched, *gate.tags.values()]
    wanted = sorted(set(gate.counts) | {status for group in groups for status in group.never})
    read = client.features(family, checkpoint=name, status=wanted) if wanted else ()
    rows = [row for row in map(FeatureRow.model_validate, read) if _changed(row)]
    for status, limit in gate.counts.items():
        hit = [row for row in rows if row.status == status]
        failure = f"{_many(len(hit))} became {status}; at most {limit:,} allowed: {_names(hit)}"
        asked = f"at most {_many(limit)} become{'s' if limit == 1 else ''} {status}"
        yield _outcome(f"counts.{status}", asked, failure, hit, limit, policy)
    yield from judgeable.shares(gate.shares, report, _absent(client, family, name, policy))
    yield from judgeable.dictionary(gate.dictionary, report)
    if gate.watched.never:
        yield _never("watched", "watched feature", gate.watched, [row for row in rows if row.watched], policy)
    for tag, rule in gate.tags.items():
        tagged = [row for row in rows if tag in row.tags]
        yield _never(f"tags.{tag}", f"feature tagged {tag}", rule, tagged, policy)
    if gate.signatures.never:
        yield _signatures(gate.signatures.never, report["signatures"])
    yield from _quality(gate, checkpoint["quality"] or {})
    if gate.alerts.open is not None:
        open_alerts = client.alerts(family=family, checkpoint=name, state="open")
        yield _alerts(gate.alerts.open, [alert["summary"] for alert in open_alerts])


def _absent(client: Client, family: str, checkpoint: str, policy: Policy) -> Iterator[str]:
    """One sentence each for the first features that became absent; fetched only when iterated."""
    rows = client.features(family, checkpoint=checkpoint, status=[Status.ABSENT], sort="change", order="desc")
    changed = (row for row in map(FeatureRow.model_validate, rows) if _changed(row))
    yield from (_evidence(row, policy) for row in islice(changed, _LISTED))


def _changed(row: FeatureRow) -> bool:
    """Whether the status is new here; features with the same status at the parent do not count."""
    if row.previous_status is None:
        return row.status == Status.EMERGED
    return row.status != row.previous_status


def _outcome(rule: str, asked: str, failure: str, hit: Sequence[FeatureRow], limit: int, policy: Policy) -> Outcome:
    if len(hit) <= limit:
        return Outcome(rule, asked)
    evidence = [_evidence(row, policy) for row in hit[:_LISTED]]
    rest = [f"and {len(hit) - _LISTED:,} more"] if len(hit) > _LISTED else []
    return Outcome(rule, asked, failure, (*evidence, *rest))


def _never(rule: str, group: str, never: Never, rows: list[FeatureRow], policy: Policy) -> Outcome:
    hit = [row for row in rows if row.status in never.never]
    by_status = {status: [row for row in hit if row.status == status] for status in never.never}
    plural = group.replace("feature", "features")
    parts = [f"{len(these):,} {plural if len(these) > 1 else group} became {status}: {_names(these)}"
             for status, these in by_status.items() if these]  # fmt: skip
    return _outcome(rule, f"no {group} becomes {_either(never.never)}", "; ".join(parts), hit, 0, policy)


def _signatures(never: Sequence[str], read: Sequence[ReportSignature]) -> Outcome:
    hit = [row for row in read if row["status"] in never and row["previous_status"] not in {None, row["status"]}]
    failure = "; ".join(f"signature {row['name']} became {row['status']}" for row in hit)
    evidence = tuple(f"signature {row['name']} became {row['status']}: {row['what']}" for row in hit)
    return Outcome("signatures", f"no signature becomes {_either(never)}", failure, evidence)


def _quality(gate: Gate, quality: dict[str, Any]) -> Iterator[Outcome]:
    for name, limit in gate.quality.items():
        value = quality.get(name)
        if not isinstance(value, int | float):
            raise UsageError(
                f"the gate policy sets a limit on {name!r}, which was not measured for this checkpoint; available: "
                f"{', '.join(sorted(quality))}"
            )
        passed = value <= limit  # never for NaN
        failure = "" if passed else f"{name} is {value:.3g}; the limit is {limit:.3g}"
        yield Outcome(f"quality.{name}", f"{name} is at most {limit:.3g}", failure)


def _alerts(limit: int, summaries: list[str]) -> Outcome:
    asked = f"at most {limit:,} open alert{'' if limit == 1 else 's'} on this checkpoint"
    if len(summaries) <= limit:
        return Outcome("alerts.open", asked)
    failure = f"{len(summaries):,} open alerts; at most {limit:,} allowed"
    rest = [f"and {len(summaries) - _LISTED:,} more"] if len(summaries) > _LISTED else []
    return Outcome("alerts.open", asked, failure, (*summaries[:_LISTED], *rest))


def _evidence(row: FeatureRow, policy: Policy) -> str:
    """How much the feature changed, and how certain that is."""
    names = {row.id: words.name_of(row.id, row.label, row.auto_label)}
    sure = words.how_sure(row, policy)
    q, explained, _ = sure.partition(": of all findings")  # findings do not repeat the correction for each feature
    return f"{words.what_happened(row, names, policy)} {f'({q})' if explained else sure}"


def _many(features: int) -> str:
    return f"{features:,} feature{'' if features == 1 else 's'}"


def _names(rows: Sequence[FeatureRow]) -> str:
    named = [f"{row.id} ({plain(row.label)})" if row.label else row.id for row in rows]
    return ", ".join(named[:10]) + (f" and {len(named) - 10:,} more" if len(named) > 10 else "")


def _either(statuses: Sequence[str]) -> str:
    """`suppressed, absent or replaced`."""
    return " or ".join(part for part in (", ".join(statuses[:-1]), statuses[-1]) if part)
