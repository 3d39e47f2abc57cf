"""Alerts on what no judgement tells of: no checkpoint for days, runs that fail, webhooks that were paused.

A sweep looks at how things stand. What stands is one alert until it is over. One that somebody resolved meanwhile comes
again with evidence that it did not have: a further run that failed, a new silence.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries, raising
from featurewatch.service.alerts.schemas import (
    CONDITION,
    EVIDENCE_ROWS,
    AbsenceCondition,
    AlertState,
    Condition,
    RunFailedCondition,
)
from featurewatch.service.kit import clock
from featurewatch.service.models import Alert, AlertRule, Run
from featurewatch.service.webhooks import queries as webhooks

KINDS = ("absence", "run_failed", "webhook_paused")


class Found(NamedTuple):
    """Something that holds now."""

    kind: str
    key: str
    subject: dict[str, str]
    """The ids that its alert has."""
    summary: str
    evidence: list[dict[str, Any]]
    wanted: bool = True
    """False: of a disabled rule, which raises nothing, while what it has raised before stays until it is over."""


def watch(session: Session) -> None:
    """Raise what holds and resolve what is over. Doing it twice changes nothing."""
    rules = [(rule, CONDITION.validate_python(rule.condition)) for rule in queries.all_rules(session)]
    found = [*_absences(session, rules), *_failures(session, rules), *_pauses(session)]
    for one in found:
        if one.wanted:
            _raise(session, one)
    keys = {one.key for one in found}
    for alert in queries.unresolved_of(session, KINDS):
        if alert.key not in keys and not _undecided(session, alert):
            raising.resolve(session, alert)


def _raise(session: Session, one: Found) -> None:
    alert = queries.newest(session, one.key)
    if alert is None or alert.state == AlertState.RESOLVED:
        if alert is not None and all(row in alert.evidence for row in one.evidence):
            return
        alert = Alert(kind=one.kind, key=one.key, created_at=clock.utcnow(), **one.subject)
    try:
        with session.begin_nested():
            raising.put(session, alert, one.summary, one.evidence)
    except IntegrityError:  # another sweep has raised it in this moment
        return


def _undecided(session: Session, alert: Alert) -> bool:
    """Whether a run that failed is tried again: how that ends decides."""
    runs = [one["run"] for one in alert.evidence] if alert.kind == "run_failed" else []
    return queries.any_under_way(session, runs)


def _absences(session: Session, rules: Sequence[tuple[AlertRule, Condition]]) -> Iterator[Found]:
    conditions = [(rule, one) for rule, one in rules if isinstance(one, AbsenceCondition)]
    if not conditions:
        return
    now = clock.utcnow()
    for family, judged_at in queries.last_judged(session):
        since = judged_at or family.created_at
        for rule, condition in conditions:
            if rule.family_id in (None, family.id) and now - since > timedelta(days=condition.days):
                yield Found(
                    "absence",
                    f"absence:{rule.id}:{family.id}",
                    {"rule_id": rule.id, "family_id": family.id},
                    f"no checkpoint was judged for {condition.days:g} days, since {since.date().isoformat()}",
                    [{"since": since.isoformat(), "days": condition.days}],
                    rule.enabled,
                )


def _failures(session: Session, rules: Sequence[tuple[AlertRule, Condition]]) -> Iterator[Found]:
    conditions = [(rule, one) for rule, one in rules if isinstance(one, RunFailedCondition)]
    if not conditions:
        return
    grouped = groupby(queries.failures(session), key=lambda row: (row[0].family_id, row[0].kind))
    for (family_id, kind), rows in grouped:
        failed = list(rows)
        for rule, condition in conditions:
            meant = rule.family_id in (None, family_id) and (not condition.runs or kind in condition.runs)
            if meant and len(failed) >= condition.at_least:
                yield Found(
                    "run_failed",
                    f"run_failed:{rule.id}:{family_id}:{kind}",
                    {"rule_id": rule.id, "family_id": family_id},
                    _failures_summary(kind, failed),
                    [_failure(run, checkpoint) for run, checkpoint in failed[-EVIDENCE_ROWS:]],
                    rule.enabled,
                )


def _failures_summary(kind: str, failed: Sequence[tuple[Run, str | None]]) -> str:
    run, checkpoint = failed[-1]
    what = f"{kind} failed" + (f" {len(failed)} times" if len(failed) > 1 else "")
    title = (run.error or {}).get("title", "for an unknown reason")
    return what + (f", last of {checkpoint}" if checkpoint else "") + f": {title}"


def _failure(run: Run, checkpoint: str | None) -> dict[str, Any]:
    return {"run": run.id, "attempt": run.attempt, "checkpoint": checkpoint, "error": run.error}


def _pauses(session: Session) -> Iterator[Found]:
    for webhook in webhooks.paused(session):
        # Its host alone: the rest of a URL is often a secret, and other webhooks are told of this.
        where = f"{webhook.id} ({urlsplit(webhook.url).hostname})"
        yield Found(
            "webhook_paused",
            f"webhook_paused:{webhook.id}",
            {"webhook_id": webhook.id},
            f"webhook {where} is paused: {webhook.disabled_reason}; its deliveries wait until it is enabled",
            [{"webhook": webhook.id, "paused_at": webhook.paused_at.isoformat() if webhook.paused_at else None}],
        )
