"""Evaluates the rules of a gate for a checkpoint, with the evidence of each failure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
from featurewatch.service.verdicts.statuses import Places, Status

_LISTED = 20
"""Maximum number of features listed per failed rule."""


def outcomes(gate: Gate, client: Client, family: str, checkpoint: Checkpoint) -> Iterator[Outcome]:
    """The result of every rule, in the order of the policy's tables. Raises UsageError if one cannot be evaluated."""
    name = checkpoint["name"]
    policy = Policy.model_validate(client.family(family)["policy"])
    report = client.report(family, name)
    if "places" not in report:
        raise UsageError(
            "the service runs an older version of featurewatch than this command; install the same version here"
        )
    groups = [gate.watched, gate.tagged, *gate.tags.values()]
    statuses = sorted(set(gate.counts) | {status for group in groups for status in group.never})
    places = sorted(set(gate.places) | {word for group in groups for word in group.places})
    rows = [row for row in _rows(client, family, name, status=statuses) if _changed(row)]
    moved = _rows(client, family, name, places=places)  # relative to the parent, so all of them changed here
    for status, limit in gate.counts.items():
        hit = [row for row in rows if row.status == status]
        failure = f"{_many(len(hit))} became {status}; at most {limit:,} allowed: {_names(hit)}"
        asked = f"at most {_many(limit)} become{'s' if limit == 1 else ''} {status}"
        yield _outcome(f"counts.{status}", asked, failure, hit, limit, policy)
    for word, limit in gate.places.items():
        hit = [row for row in moved if row.places == word]
        failure = f"{_many(len(hit))} {_are(len(hit))} {word}; at most {limit:,} allowed: {_names(hit)}"
        yield _outcome(f"places.{word}", f"at most {_many(limit)} {_are(limit)} {word}", failure, hit, limit, policy)
    yield from judgeable.shares(gate.shares, report, _absent(client, family, name, policy))
    yield from judgeable.dictionary(gate.dictionary, report)
    for rule, group, never, belongs in _groups(gate):
        if never.never:
            yield _never(rule, group, never.never, [row for row in rows if belongs(row)], policy)
        if never.places:
            yield _never_in(f"{rule}.places", group, never.places, [row for row in moved if belongs(row)], policy)
    if gate.signatures.never:
        yield _signatures(gate.signatures.never, report["signatures"])
    yield from _quality(gate, checkpoint["quality"] or {})
    if gate.alerts.open is not None:
        open_alerts = client.alerts(family=family, checkpoint=name, state="open")
        yield _alerts(gate.alerts.open, [alert["summary"] for alert in open_alerts])


def _rows(
    client: Client, family: str, checkpoint: str, *, status: Sequence[str] = (), places: Sequence[str] = ()
) -> list[FeatureRow]:
    """The features with one of the words; none if there are no words."""
    if not (status or places):
        return []
    rows = client.features(family, checkpoint=checkpoint, status=status, places=places)
    return [FeatureRow.model_validate(row) for row in rows]


def _groups(gate: Gate) -> Iterator[tuple[str, str, Never, Callable[[FeatureRow], bool]]]:
    """(rule, what its features are called, what they must not become, whether a feature is one of them)."""
    yield "watched", "watched feature", gate.watched, lambda row: row.watched
    yield "tagged", "tagged feature", gate.tagged, lambda row: bool(row.tags)
    for tag, never in gate.tags.items():
        yield f"tags.{tag}", f"feature tagged {tag}", never, partial(_has_tag, tag)


def _has_tag(tag: str, row: FeatureRow) -> bool:
    return tag in row.tags


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


def _never(rule: str, group: str, never: Sequence[Status], rows: Sequence[FeatureRow], policy: Policy) -> Outcome:
    hit = [row for row in rows if row.status in never]
    failure = _by_word(group, "became", {word: [row for row in hit if row.status == word] for word in never})
    return _outcome(rule, f"no {group} becomes {_either(never)}", failure, hit, 0, policy)


def _never_in(rule: str, group: str, never: Sequence[Places], rows: Sequence[FeatureRow], policy: Policy) -> Outcome:
    hit = [row for row in rows if row.places in never]
    failure = _by_word(group, "", {word: [row for row in hit if row.places == word] for word in never})
    return _outcome(rule, f"no {group} is {_either(never)}", failure, hit, 0, policy)


def _by_word(group: str, verb: str, hit: Mapping[str, Sequence[FeatureRow]]) -> str:
    """`2 watched features became absent: F1, F2; 1 watched feature became replaced: F3`. verb: default is or are."""
    plural = group.replace("feature", "features")
    return "; ".join(
        f"{len(rows):,} {plural if len(rows) > 1 else group} {verb or _are(len(rows))} {word}: {_names(rows)}"
        for word, rows in hit.items()
        if rows
    )


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


def _are(features: int) -> str:
    return "is" if features == 1 else "are"


def _names(rows: Sequence[FeatureRow]) -> str:
    named = [f"{row.id} ({plain(row.label)})" if row.label else row.id for row in rows]
    return ", ".join(named[:10]) + (f" and {len(named) - 10:,} more" if len(named) > 10 else "")


def _either(statuses: Sequence[str]) -> str:
    """`suppressed, absent or replaced`."""
    return " or ".join(part for part in (", ".join(statuses[:-1]), statuses[-1]) if part)
