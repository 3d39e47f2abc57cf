"""What changed between two checkpoints: which findings come first, which features could not be judged, and caveats.

Used by both `report` and `diff`. This module chooses the features; `service.features.words` has the sentences.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from featurewatch.service.features import codes, logic, queries, schemas, words
from featurewatch.service.features.logic import Comparison
from featurewatch.service.features.queries import Filter
from featurewatch.service.features.sorting import Order, least_changes, order_of
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.kit.pages import Pager
from featurewatch.service.models import Checkpoint
from featurewatch.service.verdicts.arrays import among
from featurewatch.service.verdicts.generations import ancestry, fitted_fvu
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.reasons import Figures, Reason, reasons
from featurewatch.service.verdicts.statuses import BY_CODE, CHANGED, PLACES_BY_CODE, PLACES_CHANGED, Places, Status
from featurewatch.service.verdicts.table import Table

FINDINGS = 20
GUARANTEED = 3
"""Findings reserved for each status, so that hundreds of one do not hide the only one of another."""
EXAMPLES = 3
NAMED = 5
_IN_HEADLINE = 3
_LOW_VALID_SHARE, _TURNED = 0.8, 0.8
_SCALE = 1.5


def diff(
    session: Session, artifacts: ArtifactStore, paging: Pager, comparison: Comparison, wanted: Filter, order: Order
) -> schemas.Diff:
    """A comparison with its baseline in words, with a page of its features."""
    assert comparison.baseline is not None
    numbers, cursor = logic.page_numbers(session, paging, comparison, wanted, order)
    counts = logic.counts(session, comparison)
    findings = summary(session, artifacts, comparison, counts, wanted, also=numbers)
    return schemas.Diff(
        **dict(findings),
        **{"from": comparison.baseline.name, "to": comparison.checkpoint.name},
        counts={status: counts.get(status, 0) for status in Status},
        places=logic.place_counts(comparison),
        data=[comparison.shown[number] for number in numbers],
        next_cursor=cursor,
    )


def summary(
    session: Session,
    artifacts: ArtifactStore,
    comparison: Comparison,
    counts: dict[str, int],
    wanted: Filter | None = None,
    also: Sequence[int] = (),
) -> schemas.Summary:
    """A comparison in words. counts: status -> number of features, of all. wanted: which findings to include.

    also: numbers of other features that the caller shows; they are looked up together, into `comparison.shown`.
    """
    policy = Policy.model_validate(comparison.family.policy)
    wanted = wanted or Filter()
    chosen, unsure = _choose(session, comparison, wanted), _unsure(session, comparison, wanted, policy)
    shown = logic.shown(session, comparison, [*chosen, *also, *unsure.first])
    rows = [shown[number] for number in chosen]
    names = _names(session, comparison, rows)
    examples = codes.examples_of(session, artifacts, comparison.family, chosen, EXAMPLES)
    findings = [
        schemas.Finding(
            feature=row,
            what=words.what_happened(row, names, policy),
            how_sure=words.how_sure(row, policy),
            examples=examples[parse_feature_id(row.id)],
        )
        for row in rows
    ]
    fitting = sum(logic.counts(session, comparison, changed(wanted)).values())
    short = [words.in_short(row, names, policy) for row in rows[:_IN_HEADLINE]]
    return schemas.Summary(
        headline=_headline(session, comparison, counts, fitting, short),
        changed=fitting,
        findings=findings,
        not_judged=_not_judged(unsure, shown, policy),
        caveats=_caveats(session, comparison, policy),
    )


def changed(wanted: Filter) -> Filter:
    """The filter, restricted to features that changed."""
    statuses = [status for status in CHANGED if not wanted.statuses or status in wanted.statuses]
    moved = () if wanted.statuses else PLACES_CHANGED
    return replace(wanted, statuses=tuple(statuses), changed=True, moved=moved)


def _choose(session: Session, comparison: Comparison, wanted: Filter) -> list[int]:
    """Numbers of the features to report, most important first."""
    every, table = changed(wanted), comparison.table
    order = order_of("least_change", None)

    def first(part: Filter) -> list[int]:
        return order.first(table, logic.chosen(session, comparison, part), None, FINDINGS).tolist()

    if not every.statuses:
        return []
    moved = [replace(every, statuses=(), changed=False, moved=(), places=(word,)) for word in _places(every)]
    watched = [] if wanted.watched is False else first(replace(every, watched=True))
    groups = [first(replace(every, statuses=(status,), moved=())) for status in every.statuses]
    groups += [first(part) for part in moved]
    reserved = [place for group in groups for place in group[:GUARANTEED]]
    others = [place for group in groups for place in group[GUARANTEED:]]
    taken = dict.fromkeys([*watched, *reserved, *others][::-1])
    ranked = np.array(list(reversed(taken))[:FINDINGS], dtype=np.int64)
    numbers = table.numbers[ranked]
    severity = _severity(table, ranked)
    keys = (numbers, -least_changes(table, ranked), severity, ~among(numbers, comparison.watched))
    return numbers[np.lexsort(keys)].tolist()


def _places(every: Filter) -> list[Places]:
    """The changes of places that match a filter of changed features."""
    return [word for word in PLACES_CHANGED if word in every.moved and (not every.places or word in every.places)]


def _severity(table: Table, ranked: NDArray[np.int64]) -> NDArray[np.int64]:
    """[r] the graver of the severities of a feature's status and places."""
    status = [BY_CODE[code].row.severity for code in table.statuses[ranked].tolist()]
    places = [PLACES_BY_CODE[code].row.severity if code >= 0 else max(status) for code in table.places[ranked].tolist()]
    return np.minimum(status, places)


def _names(session: Session, comparison: Comparison, rows: Sequence[schemas.FeatureRow]) -> dict[str, str]:
    """Feature id -> its name in sentences, for these features and their successors."""
    own = {row.id: words.name_of(row.id, row.label, row.auto_label) for row in rows}
    others = {successor.id for row in rows for successor in row.successors} - set(own)
    successors = queries.names(session, comparison.family.id, [parse_feature_id(id_) for id_ in others])
    return own | {
        feature_id(number): words.name_of(feature_id(number), feature.label, feature.auto_label)
        for number, feature in successors.items()
    }


class _Unsure(NamedTuple):
    """Features that could not be judged."""

    why: list[Reason]
    watched: int
    first: dict[int, tuple[Reason, int]]
    """number -> (reason, documents in which it fires), for the features that are named"""


def _unsure(session: Session, comparison: Comparison, wanted: Filter, policy: Policy) -> _Unsure:
    part = Filter(("indeterminate",), wanted.q, wanted.tag, wanted.watched)
    table, places = comparison.table, logic.chosen(session, comparison, part)
    numbers, firings = table.numbers[places], table.figures["firings"][places]
    low, high, documents = (
        table.figures[name][places] for name in ("projection_ratio_lo", "projection_ratio_hi", "documents")
    )
    why = reasons(Figures(firings, documents, low, high), policy)
    watched = among(numbers, comparison.watched)
    order = np.lexsort((numbers, -firings, ~watched))[:NAMED].tolist()
    documents = np.nan_to_num(documents).astype(int)
    first = {int(numbers[place]): (why[place], int(documents[place])) for place in order}
    return _Unsure(why, int(watched.sum()), first)


def _not_judged(unsure: _Unsure, shown: dict[int, schemas.FeatureRow], policy: Policy) -> schemas.NotJudged:
    return schemas.NotJudged(
        features=len(unsure.why),
        watched=unsure.watched,
        reasons=[
            schemas.ReasonCount(reason=reason, text=words.REASONS[reason], features=count)
            for reason, count in Counter(unsure.why).most_common()
        ],
        named=[
            schemas.Unjudged(
                feature=shown[number],
                reason=reason,
                why=words.why_not(shown[number], reason, documents, policy),
                detectable=words.detectable(shown[number].minimum_detectable_ratio),
            )
            for number, (reason, documents) in unsure.first.items()
        ],
    )


def _headline(
    session: Session, comparison: Comparison, counts: dict[str, int], fitting: int, shown: Sequence[str]
) -> str:
    total, present, unsure = sum(counts.values()), counts.get("present", 0), counts.get("indeterminate", 0)
    rest = f"{present:,} {'is' if present == 1 else 'are'} present"
    rest += f", {unsure:,} could not be judged" if unsure else ""
    if comparison.baseline is None:
        first = f"{comparison.checkpoint.name} is the first of its lineage and has no baseline"
        return f"{first}. Of {total:,} features, {rest}."
    every = changed(Filter())
    news = sum(logic.counts(session, comparison, every).values())
    by_status = sum(logic.counts(session, comparison, replace(every, moved=())).values())
    before = sum(counts.get(status, 0) for status in CHANGED) - by_status
    rest += f", {before:,} {'was' if before == 1 else 'were'} already gone" if before else ""
    if not news:
        return f"No change detected since {comparison.baseline.name}. Of {total:,} features, {rest}."
    changes = f"{news:,} of {total:,} features changed since {comparison.baseline.name}"
    if fitting != news:
        changes += f", of which {fitting:,} {'matches' if fitting == 1 else 'match'} the filter"
    more = f" and {fitting - len(shown):,} more" if fitting > len(shown) > 0 else ""
    listed = f": {'; '.join(shown)}{more}" if shown else ""
    return f"{changes}{listed}. {rest[0].upper()}{rest[1:]}.{_watched(session, comparison)}"


def _watched(session: Session, comparison: Comparison) -> str:
    """A sentence about the watched features; empty if there are none."""
    every = logic.counts(session, comparison, Filter(watched=True))
    total, unsure = sum(every.values()), every.get("indeterminate", 0)
    if not total:
        return ""
    news = sum(logic.counts(session, comparison, changed(Filter(watched=True))).values())
    changes = f" Of {total:,} watched {'feature' if total == 1 else 'features'}, {news:,} changed"
    return changes + (f" and {unsure:,} could not be judged." if unsure else ".")


def _caveats(session: Session, comparison: Comparison, policy: Policy) -> list[str]:
    """Reasons to distrust the verdicts, a sentence each."""
    here = comparison.checkpoint
    caveats = _of_dictionary(session, here, policy)
    for checkpoint in filter(None, (here, comparison.baseline)):
        share = (checkpoint.quality or {}).get("valid_share")
        if share is not None and share < _LOW_VALID_SHARE:
            caveats.append(
                f"Only {share:.0%} of the positions can be compared in {checkpoint.name}, because its tokens have "
                "other boundaries or attention sinks were masked. The verdicts describe only these positions."
            )
    if comparison.baseline is None:
        return caveats
    if not (comparison.table.places >= 0).any():
        caveats.append(
            "Where the features are active was not compared, only how strongly they are written where they used to be "
            "active. Own codes are compared when a checkpoint is judged against its parent."
        )
    if comparison.stored and here.deleted_parents:
        names = ", ".join(one["name"] for one in here.deleted_parents)
        caveats.append(
            f"{here.name} was first judged against {names}, which has since been deleted. It was judged again against "
            f"{comparison.baseline.name} from stored measurements."
        )
    if comparison.stored:
        cosine, size = _mean_cosine(comparison.table), (here.quality or {}).get("size_factor")
        if cosine is not None and cosine < _TURNED:
            caveats.append(
                f"Most directions rotated (mean cosine {cosine:.2f} over the features present in both). The cause is a "
                "change of basis or training that affected the whole model. Ratios of single features are less certain."
            )
        if size and not 1 / _SCALE <= size <= _SCALE:
            caveats.append(
                f"All features are written at {words.share(size)} of the former scale. Ratios are relative to that."
            )
    if here.generation != comparison.baseline.generation:
        caveats.append(
            f"{here.name} and {comparison.baseline.name} were judged with dictionaries of different generations "
            f"({here.generation} and {comparison.baseline.generation}). They are compared over their common features."
        )
    return caveats


def _mean_cosine(table: Table) -> float | None:
    """Mean cosine of the directions with the parent's, over the features present in both."""
    cosines = table.figures["direction_cosine"][table.having([Status.PRESENT, Status.AMPLIFIED])]
    cosines = cosines[~np.isnan(cosines)]
    return float(cosines.mean()) if len(cosines) else None


def _of_dictionary(session: Session, here: Checkpoint, policy: Policy) -> list[str]:
    """A caveat if the dictionary describes the checkpoint much worse than the one it was fitted on."""
    quality = here.quality or {}
    if not quality.get("refit_advised"):
        return []
    first, fvu = fitted_fvu(ancestry(session, here)), quality.get("fvu")
    figures = f" (FVU {fvu:.3g}, {first:.3g} where it was fitted)" if fvu is not None and first else ""
    return [
        f"The dictionary leaves more than {policy.max_fvu_ratio:g} times as much of {here.name} unexplained as of the "
        f"checkpoint it was fitted on{figures}. What it misses cannot be judged. A re-fit is advised."
    ]
