"""What changed between two checkpoints, in plain words: which findings come first, and what could not be judged.

One place for `report` and `diff`. The words are in `service.features.words`; here it is chosen what they are said of.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from sqlalchemy.orm import Session

from featurewatch.service.features import codes, logic, queries, words
from featurewatch.service.features.logic import Comparison
from featurewatch.service.features.queries import Filter
from featurewatch.service.features.schemas import (
    Diff,
    FeatureRow,
    Finding,
    NotJudged,
    ReasonCount,
    Summary,
    Unjudged,
)
from featurewatch.service.features.sorting import Order, least_changes, order_of
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.kit.pages import Pager
from featurewatch.service.models import Checkpoint
from featurewatch.service.verdicts.arrays import among
from featurewatch.service.verdicts.generations import ancestry, fitted_fvu
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.reasons import Figures, Reason, reasons
from featurewatch.service.verdicts.statuses import BY_CODE, CHANGED, Status
from featurewatch.service.verdicts.table import Table

FINDINGS = 20
PLACES = 3
"""Findings that each status has for sure, so that hundreds of one do not hide the only one of another."""
EXAMPLES = 3
NAMED = 5
_IN_HEADLINE = 3
_LOW_VALID_SHARE, _TURNED = 0.8, 0.8
_SCALE = 1.5


def diff(
    session: Session, artifacts: ArtifactStore, paging: Pager, comparison: Comparison, wanted: Filter, order: Order
) -> Diff:
    """A comparison with its baseline in words, with a page of its features."""
    assert comparison.baseline is not None
    numbers, cursor = logic.page_numbers(session, paging, comparison, wanted, order)
    counts = logic.counts(session, comparison)
    findings = summary(session, artifacts, comparison, counts, wanted, also=numbers)
    return Diff(
        **dict(findings),
        **{"from": comparison.baseline.name, "to": comparison.checkpoint.name},
        counts={status: counts.get(status, 0) for status in Status},
        data=[comparison.shown[number] for number in numbers],
        next_cursor=cursor,
    )


def summary(
    session: Session,
    artifacts: ArtifactStore,
    asked: Comparison,
    counts: dict[str, int],
    wanted: Filter | None = None,
    also: Sequence[int] = (),
) -> Summary:
    """What a comparison found, in words. counts: of all its features by status; `wanted` chooses among the findings.

    also: numbers of other features that will be shown, and are looked up with the rest, into `asked.shown`.
    """
    policy = Policy.model_validate(asked.family.policy)
    wanted = wanted or Filter()
    chosen, unsure = _choose(session, asked, wanted), _unsure(session, asked, wanted, policy)
    shown = logic.shown(session, asked, [*chosen, *also, *unsure.first])
    rows = [shown[number] for number in chosen]
    names = _names(session, asked, rows)
    examples = codes.examples_of(session, artifacts, asked.family, chosen, EXAMPLES)
    findings = [
        Finding(
            feature=row,
            what=words.what_happened(row, names, policy),
            how_sure=words.how_sure(row, policy),
            examples=examples[parse_feature_id(row.id)],
        )
        for row in rows
    ]
    fitting = sum(logic.counts(session, asked, changed(wanted)).values())
    short = [words.in_short(row, names, policy) for row in rows[:_IN_HEADLINE]]
    return Summary(
        headline=_headline(session, asked, counts, fitting, short),
        changed=fitting,
        findings=findings,
        not_judged=_not_judged(unsure, shown, policy),
        caveats=_caveats(session, asked, policy),
    )


def changed(wanted: Filter) -> Filter:
    """The filter, of features that changed alone."""
    statuses = [status for status in CHANGED if not wanted.statuses or status in wanted.statuses]
    return replace(wanted, statuses=tuple(statuses), changed=True)


def _choose(session: Session, asked: Comparison, wanted: Filter) -> list[int]:
    """Numbers of the features that are told of, what to look at first before the others."""
    every, table = changed(wanted), asked.table
    order = order_of("least_change", None)

    def first(part: Filter) -> list[int]:
        return order.first(table, logic.chosen(session, asked, part), None, FINDINGS).tolist()

    if not every.statuses:
        return []
    watched = [] if wanted.watched is False else first(replace(every, watched=True))
    groups = [first(replace(every, statuses=(status,))) for status in every.statuses]
    certain = [place for group in groups for place in group[:PLACES]]
    others = [place for group in groups for place in group[PLACES:]]
    taken = dict.fromkeys([*watched, *certain, *others][::-1])
    ranked = np.array(list(reversed(taken))[:FINDINGS], dtype=np.int64)
    numbers = table.numbers[ranked]
    severity = np.array([BY_CODE[code].row.severity for code in table.statuses[ranked].tolist()])
    keys = (numbers, -least_changes(table, ranked), severity, ~among(numbers, asked.watched))
    return numbers[np.lexsort(keys)].tolist()


def _names(session: Session, asked: Comparison, rows: Sequence[FeatureRow]) -> dict[str, str]:
    """Feature id -> how sentences name it, of these features and their successors."""
    own = {row.id: words.name_of(row.id, row.label, row.auto_label) for row in rows}
    others = {successor.id for row in rows for successor in row.successors} - set(own)
    found = queries.names(session, asked.family.id, [parse_feature_id(one) for one in others])
    return own | {
        feature_id(number): words.name_of(feature_id(number), feature.label, feature.auto_label)
        for number, feature in found.items()
    }


class _Unsure(NamedTuple):
    """The features that could not be judged."""

    why: list[Reason]
    watched: int
    first: dict[int, tuple[Reason, float]]
    """number -> why, and in how many documents it fires: of those that are named"""


def _unsure(session: Session, asked: Comparison, wanted: Filter, policy: Policy) -> _Unsure:
    part = Filter(("indeterminate",), wanted.q, wanted.tag, wanted.watched)
    table, places = asked.table, logic.chosen(session, asked, part)
    numbers, firings = table.numbers[places], table.figures["firings"][places]
    low, high, documents = (
        table.figures[name][places] for name in ("projection_ratio_lo", "projection_ratio_hi", "documents")
    )
    why = reasons(Figures(firings, documents, low, high), policy)
    watched = among(numbers, asked.watched)
    order = np.lexsort((numbers, -firings, ~watched))[:NAMED].tolist()
    first = {int(numbers[place]): (why[place], float(documents[place])) for place in order}
    return _Unsure(why, int(watched.sum()), first)


def _not_judged(unsure: _Unsure, shown: dict[int, FeatureRow], policy: Policy) -> NotJudged:
    return NotJudged(
        features=len(unsure.why),
        watched=unsure.watched,
        reasons=[
            ReasonCount(reason=reason, text=words.REASONS[reason], features=count)
            for reason, count in Counter(unsure.why).most_common()
        ],
        named=[
            _unjudged(shown[number], reason, documents, policy) for number, (reason, documents) in unsure.first.items()
        ],
    )


def _unjudged(row: FeatureRow, reason: Reason, documents: float, policy: Policy) -> Unjudged:
    known = None if np.isnan(documents) else int(documents)
    return Unjudged(
        feature=row,
        reason=reason,
        why=words.why_not(row, reason, known, policy),
        detectable=words.detectable(row.minimum_detectable_ratio),
    )


def _headline(session: Session, asked: Comparison, counts: dict[str, int], fitting: int, shown: Sequence[str]) -> str:
    total, present, unsure = sum(counts.values()), counts.get("present", 0), counts.get("indeterminate", 0)
    rest = f"{present:,} {'is' if present == 1 else 'are'} present"
    rest += f", {unsure:,} could not be judged" if unsure else ""
    if asked.baseline is None:
        first = f"{asked.checkpoint.name} is the first of its lineage: there is nothing to compare it with"
        return f"{first}. Of {total:,} features {rest}."
    news = sum(logic.counts(session, asked, changed(Filter())).values())
    before = sum(counts.get(status, 0) for status in CHANGED) - news
    rest += f", {before:,} {'was' if before == 1 else 'were'} gone before" if before else ""
    if not news:
        against = f"of {total:,} features, against {asked.baseline.name}"
        return f"Nothing changed that can be told: {against}, {rest}."
    said = f"{news:,} of {total:,} features changed against {asked.baseline.name}"
    if fitting != news:
        said += f", of which {fitting:,} {'fits' if fitting == 1 else 'fit'} what was asked for"
    more = f" and {fitting - len(shown):,} more" if fitting > len(shown) > 0 else ""
    listed = f": {'; '.join(shown)}{more}" if shown else ""
    return f"{said}{listed}. {rest[0].upper()}{rest[1:]}.{_watched(session, asked)}"


def _watched(session: Session, asked: Comparison) -> str:
    """A sentence about the watched features, where there are any."""
    every = logic.counts(session, asked, Filter(watched=True))
    total, unsure = sum(every.values()), every.get("indeterminate", 0)
    if not total:
        return ""
    news = sum(logic.counts(session, asked, changed(Filter(watched=True))).values())
    said = f" Of {total:,} watched {'feature' if total == 1 else 'features'} {news:,} changed"
    return said + (f", {unsure:,} could not be judged." if unsure else ".")


def _caveats(session: Session, asked: Comparison, policy: Policy) -> list[str]:
    """What stands against relying on the verdicts, a sentence each."""
    here = asked.checkpoint
    found = _of_dictionary(session, here, policy)
    for one in filter(None, (here, asked.baseline)):
        share = (one.quality or {}).get("valid_share")
        if share is not None and share < _LOW_VALID_SHARE:
            found.append(
                f"Only {share:.0%} of the positions can be compared at {one.name}: its tokens end elsewhere, or "
                "attention sinks were masked out. Verdicts are about these positions alone."
            )
    if asked.baseline is None:
        return found
    if asked.stored and here.deleted_parents:
        names = ", ".join(one["name"] for one in here.deleted_parents)
        found.append(
            f"{here.name} was first judged against {names}, since deleted. It was judged anew against "
            f"{asked.baseline.name}, from stored measurements."
        )
    if asked.stored:
        cosine, size = _mean_cosine(asked.table), (here.quality or {}).get("size_factor")
        if cosine is not None and cosine < _TURNED:
            found.append(
                f"Directions turned on the whole (mean cosine {cosine:.2f} over the features that are there in both): "
                "a change of basis, or training that reached all of the model. Ratios of single features are less sure."
            )
        if size and not 1 / _SCALE <= size <= _SCALE:
            found.append(
                f"Everything is written at {words.share(size)} of the former scale; ratios are relative to that."
            )
    if here.generation != asked.baseline.generation:
        found.append(
            f"{here.name} and {asked.baseline.name} were judged with dictionaries of different generations "
            f"({here.generation} and {asked.baseline.generation}): they are compared over the features that both have."
        )
    return found


def _mean_cosine(table: Table) -> float | None:
    """Of the directions with the parent's, over the features that are there in both."""
    cosines = table.figures["direction_cosine"][table.having([Status.PRESENT, Status.AMPLIFIED])]
    cosines = cosines[~np.isnan(cosines)]
    return float(cosines.mean()) if len(cosines) else None


def _of_dictionary(session: Session, here: Checkpoint, policy: Policy) -> list[str]:
    """Whether the dictionary describes the checkpoint about as well as what it was fitted on."""
    quality = here.quality or {}
    if not quality.get("refit_advised"):
        return []
    first, fvu = fitted_fvu(ancestry(session, here)), quality.get("fvu")
    figures = f" (FVU {fvu:.3g}, {first:.3g} where it was fitted)" if fvu is not None and first else ""
    return [
        f"The dictionary leaves more than {policy.max_fvu_ratio:g} times as much of {here.name} unexplained as of what "
        f"it was fitted on{figures}: what it misses cannot be judged. A re-fit is advised."
    ]
