"""Evaluates alert rules: at a checkpoint when something was measured there, and in a sweep over the families.

The kinds of rules are in `conditions`, what they listen to in `events`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple
from urllib.parse import urlsplit

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.alerts import events, queries, raising
from featurewatch.service.alerts.conditions import (
    CONDITION,
    SWEPT,
    WEBHOOK_PAUSED,
    BaseCondition,
)
from featurewatch.service.alerts.evidence import MOST_ROWS, Evidence
from featurewatch.service.alerts.schemas import AlertState
from featurewatch.service.features import queries as features
from featurewatch.service.kit import clock
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.models import Alert, AlertRule, Checkpoint, Family, Feature, Signature, Verdict
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.statuses import Status
from featurewatch.service.webhooks import queries as webhooks

Rule = tuple[AlertRule, BaseCondition]


class Match(NamedTuple):
    """A rule that listens to an event, and the evidence that it found there."""

    rule: AlertRule
    condition: BaseCondition
    evidence: Evidence | None


def judged(session: Session, *, family: Family, checkpoint: Checkpoint) -> list[Alert]:
    """Evaluate the rules on a checkpoint's verdicts and FVU, in the transaction that wrote them; the alerts now raised.

    Doing it twice changes nothing.
    """
    session.flush()
    here, parent_id = (session, family.id, checkpoint.id), checkpoint.parent_id
    event = events.FeaturesJudged(
        family_id=family.id,
        transitions=partial(queries.transitions, *here) if parent_id else lambda _: [],  # nothing to have changed from
        statuses=partial(_by_id, partial(verdicts.statuses, session, checkpoint.id)),
        moves=partial(queries.moves, *here, parent_id) if parent_id else lambda _: [],
        places=partial(_by_id, partial(verdicts.places, session, checkpoint.id)),
    )
    raised = evaluate(session, checkpoint, event)
    fvu = _fvu(checkpoint)
    if fvu is not None:
        parent = verdicts.checkpoint(session, parent_id) if parent_id else None
        measured = events.QualityMeasured(family_id=family.id, fvu=fvu, parent_fvu=_fvu(parent))
        raised += evaluate(session, checkpoint, measured)
    return raised


def rehearse(
    session: Session, *, family_id: str, came: Mapping[int, tuple[str | None, str]]
) -> list[tuple[AlertRule, int]]:
    """The rules that would fire if features changed status, and on how many features. Writes nothing.

    came: feature number -> (status before, status now).
    """
    known = features.by_numbers(session, family_id, sorted(came))
    changes = [
        (Verdict(feature=number, status=now), known.get(number) or Feature(number=number, tags=[], watched=False))
        for number, (before, now) in came.items()
        if before != now and (before is not None or now != Status.PRESENT)
    ]
    event = events.FeaturesJudged(
        family_id=family_id,
        transitions=lambda statuses: [change for change in changes if change[0].status in statuses],
        statuses=lambda _: {},
        moves=lambda _: [],
        places=lambda _: {},
    )
    matches = _matches(_loaded(queries.rules_for(session, family_id)), event)
    return [(match.rule, len(match.evidence)) for match in matches if match.evidence]


def sweep(session: Session) -> None:
    """Raise and resolve the alerts that do not depend on measurements. Doing it twice changes nothing.

    The alerts of a disabled rule stay until they are over. One that was resolved by hand is raised again only with
    evidence that it did not have: another failed run, a new silence.
    """
    rules = _loaded(queries.all_rules(session))
    holding = set()
    for event in _family_events(session, rules):
        for rule, condition, evidence in _matches(rules, event):
            if evidence is None:
                continue
            key = raising.key(rule, event.key)
            holding.add(key)
            if rule.enabled:
                alert = raising.new(rule, key, family_id=event.family_id)
                _raise_once(session, alert, condition.summary(event, evidence), evidence)
    holding |= _raise_paused_webhooks(session)
    for alert in queries.unresolved_of(session, SWEPT):
        retried = [row["run"] for row in alert.evidence if "run" in row]  # how the retry ends decides
        if alert.key not in holding and not queries.any_under_way(session, retried):
            raising.resolve(session, alert)


def forget_signature(session: Session, family: Family, signature: Signature) -> None:
    """Remove a signature from the evidence of the family's alerts. An alert about it alone is resolved."""
    for alert in queries.unresolved_of(session, ["signature"]):
        evidence = [row for row in alert.evidence if row["signature"] != signature.name]
        if alert.family_id != family.id or len(evidence) == len(alert.evidence):
            continue
        if evidence:
            alert.evidence = evidence
        else:
            raising.resolve(session, alert)


def _loaded(rules: Sequence[AlertRule]) -> list[Rule]:
    return [(rule, _condition(rule)) for rule in rules]


def _condition(rule: AlertRule) -> BaseCondition:
    return CONDITION.validate_python(rule.condition)


def _matches(rules: Sequence[Rule], event: events.Event) -> Iterator[Match]:
    """Evaluate the rules that apply to an event's family and listen to events of its type."""
    for rule, condition in rules:
        if rule.family_id in (None, event.family_id) and isinstance(event, condition.listens_to):
            yield Match(rule, condition, condition.match(event))


def evaluate(session: Session, checkpoint: Checkpoint, event: events.Event) -> list[Alert]:
    """Raise and resolve the alerts of a checkpoint, and resolve those of its ancestors that the event clears.

    Call it in the transaction that wrote what the event reports. Returns the alerts now raised.
    """
    ancestors = [
        (alert, rule, condition)
        for alert, rule in queries.unresolved(session, verdicts.ancestors(session, checkpoint))
        if isinstance(event, (condition := _condition(rule)).listens_to)
    ]
    raised = []
    for rule, condition, evidence in _matches(_loaded(queries.rules_for(session, event.family_id)), event):
        earlier = [alert.evidence for alert, other, _ in ancestors if other is rule]
        known = evidence is not None and any(condition.continues(evidence, rows) for rows in earlier)
        key = raising.key(rule, checkpoint.id)
        alert = queries.newest(session, key)
        standing = alert.evidence if alert is not None and alert.state != AlertState.RESOLVED else []
        rows = [row for row in standing if condition.keeps(event, row)] + ([] if known else evidence or [])
        if rows:
            alert = alert or raising.new(rule, key, family_id=event.family_id, checkpoint_id=checkpoint.id)
            summary = f"{checkpoint.name}: {condition.summary(event, rows)}"
            raised.append(raising.put(session, alert, summary, rows[:MOST_ROWS]))
        elif alert is not None and standing:
            raising.resolve(session, alert, seen_at=checkpoint)
    for alert, _, condition in ancestors:
        if condition.clears(event, alert.evidence):
            raising.resolve(session, alert, seen_at=checkpoint)
    return [alert for alert in raised if alert is not None]


def _family_events(session: Session, rules: Sequence[Rule]) -> Iterator[events.FamilyEvent]:
    """The family events that a sweep passes to the rules."""
    heard = {condition.listens_to for _, condition in rules}
    if events.LastJudged in heard:
        now = clock.utcnow()
        for family, judged_at in queries.last_judged(session):
            yield events.LastJudged(family_id=family.id, at=judged_at or family.created_at, now=now)
    if events.RunsFailed in heard:
        by_kind = groupby(queries.failures(session), key=lambda row: (row[0].family_id, row[0].kind))
        for (family_id, kind), failures in by_kind:
            yield events.RunsFailed(family_id=family_id, kind=kind, failures=list(failures))


def _raise_paused_webhooks(session: Session) -> set[str]:
    """Raise an alert for each paused webhook, and return the keys of these alerts."""
    keys = set()
    for webhook in webhooks.paused(session):
        alert = Alert(
            kind=WEBHOOK_PAUSED,
            key=f"{WEBHOOK_PAUSED}:{webhook.id}",
            webhook_id=webhook.id,
            created_at=clock.utcnow(),
        )
        # The host alone: the rest of a URL is often a secret, and other webhooks receive this alert.
        name = f"{webhook.id} ({urlsplit(webhook.url).hostname})"
        summary = f"webhook {name} is paused: {webhook.disabled_reason}; its deliveries wait until it is enabled"
        paused_at = webhook.paused_at.isoformat() if webhook.paused_at else None
        _raise_once(session, alert, summary, [{"webhook": webhook.id, "paused_at": paused_at}])
        keys.add(alert.key)
    return keys


def _raise_once(session: Session, new: Alert, summary: str, evidence: Evidence) -> None:
    alert = queries.newest(session, new.key)
    if alert is None or alert.state == AlertState.RESOLVED:
        if alert is not None and all(row in alert.evidence for row in evidence):
            return
        alert = new
    try:
        with session.begin_nested():
            raising.put(session, alert, summary, evidence)
    except IntegrityError:  # another sweep has just raised it
        return


def _by_id(look_up: Callable[[Sequence[int]], Mapping[int, str]], names: Collection[str]) -> dict[str, str]:
    words = look_up([parse_feature_id(name) for name in names])
    return {feature_id(number): word for number, word in words.items()}


def _fvu(checkpoint: Checkpoint | None) -> float | None:
    value = (checkpoint.quality or {}).get("fvu") if checkpoint else None
    return float(value) if isinstance(value, int | float) else None
