"""Sentences about features: what happened and how certain it is. The same for `report` and `diff`.

Labels and tokens are untrusted text. Control and format characters are removed; whoever shows a text as Markdown or
HTML escapes it.
"""

import math
from collections.abc import Mapping, Sequence

from featurewatch.service.features.schemas import Example, FeatureRow
from featurewatch.service.kit.text import plain, visible
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.reasons import Reason
from featurewatch.service.verdicts.statuses import GONE, Status

_TOKENS = 3
_TIMES = 2.0
"""Ratios from here on are given in times, not in percent."""


def about(label: str | None, auto_label: str | None) -> str:
    """What a feature is about: a person's label, otherwise the automatic one; empty if it has neither."""
    if label and plain(label):
        return f"“{plain(label)}”"
    automatic = plain(auto_label or "")
    return f"on {automatic}" if automatic and not automatic.startswith("before ") else automatic


def name_of(feature_id: str, label: str | None, auto_label: str | None) -> str:
    """The name of a feature in a sentence: `F17 (“promises”)`, `F17 (on “stop”, “halt”)` or `F17`."""
    what = about(label, auto_label)
    return f"{feature_id} ({what})" if what else feature_id


def passage(example: Example, letters: int = 60) -> tuple[str, str, str] | None:
    """Text before, at and after an example's token, on one line; None if the family has no text."""
    if example.token is None:
        return None
    before, token, after = (visible(text or "") for text in (example.text_before, example.token, example.text_after))
    inner = token.strip()
    if inner != token and inner:
        before = before.rstrip() + " " if token[:1].isspace() else before
        after = " " + after.lstrip() if token[-1:].isspace() else after
    begin = before if len(before) <= letters else "…" + before[-letters:]
    end = after if len(after) <= letters else after[:letters] + "…"
    return begin.lstrip(), inner or "␣", end.rstrip()


def share(value: float) -> str:
    """A ratio for people: 24%, 3.1 times. Negative where a direction is written the other way, or by noise."""
    if value >= _TIMES:
        return f"{value:.2g} times" if value < 10 else f"{value:.0f} times"
    return f"{round(value, 2) + 0.0:.0%}"  # no -0%


def with_interval(value: float | None, interval: Sequence[float | None] | None, confidence: float) -> str:
    """`24% (95% CI 18 to 31%)`."""
    if value is None:
        return "an unknown share"
    if not interval or interval[0] is None or interval[1] is None:
        return share(value)
    return f"{share(value)} ({confidence:.0%} CI {between(interval[0], interval[1])})"


def between(low: float, high: float) -> str:
    """`18 to 31%`, `2.8 to 3.4 times`, `90% to 2.1 times`."""
    first, last = share(low), share(high)
    for unit in ("%", " times"):
        if first.endswith(unit) and last.endswith(unit):
            first = first.removesuffix(unit)
    return f"{first} to {last}"


def what_happened(row: FeatureRow, names: Mapping[str, str], policy: Policy) -> str:
    """A sentence: what happened to the feature, how much of it is left, and which features replaced it.

    names: id -> `name_of` of the feature and of its successors.
    """
    name, written = names.get(row.id, row.id), _written(row, policy)
    match row.status:
        case _ if _is_back(row):
            weakly = ", but suppressed" if row.status == Status.SUPPRESSED else ""
            clause = f"is back{weakly}: {_written(row, policy, 'its strength when it was last present')}."
        case Status.SUPPRESSED:
            clause = f"was suppressed: {written}.{_too_little(row, names)}"
        case Status.ABSENT:
            clause = f"is absent: {written}.{_too_little(row, names) or ' No other feature replaced it.'}"
        case Status.REPLACED:
            clause = f"was {_replaced(row, names)} {name} {written.removeprefix('it ')}."
        case Status.RELOCATED:
            clause = f"was relocated: {_relocated(row, policy)}"
        case Status.EMERGED:
            where = f"{_rate(row.firing_rate)} of the positions ({row.firings:,} firings)"
            clause = f"emerged: {row.baseline or 'the baseline'} does not have it. It is active on {where}."
        case _:
            clause = f"was {row.status}: {written}." if row.status.row.changed else f"is {row.status}."
    return f"{name} {clause}"


def in_short(row: FeatureRow, names: Mapping[str, str], policy: Policy) -> str:
    """The same as part of a sentence, for headlines."""
    name = names.get(row.id, row.id)
    left = with_interval(row.projection_ratio, row.projection_ratio_ci, policy.confidence)
    if _is_back(row):
        return f"{name} is back at {left}"
    match row.status:
        case Status.ABSENT:
            return f"{name} is absent ({left} left)"
        case Status.REPLACED if row.successors:
            return f"{name} was replaced by {_listed([successor.id for successor in row.successors])}"
        case Status.REPLACED | Status.RELOCATED:
            return f"{name} was {row.status}"
        case Status.EMERGED:
            return f"{name} emerged"
    return f"{name} was {row.status} to {left}"


def how_sure(row: FeatureRow, policy: Policy) -> str:
    """The q-value in words: what the false discovery rate says about the findings, never about this one alone."""
    q = row.q_value
    if q is not None and q <= policy.fdr:
        shown = f"q = {q:.2g}" if q >= 0.0001 else "q < 0.0001"
        return f"{shown}: of all findings here that are at least this certain, {_odds(q)} are expected to be false."
    if row.status == Status.EMERGED and row.projection_ratio is None:
        return (
            "No q-value. It counts as new because it is clearly written and readable here, while the baseline clearly "
            "has less than half of it."
        )
    if row.status == Status.RELOCATED:
        return "Judged at the checkpoint where the relocation happened."
    return "Judged by its interval alone: it was gone at the baseline, and there is no test for a return."


def why_not(row: FeatureRow, reason: Reason, documents: int, policy: Policy) -> str:
    """Why a feature could not be judged, with its figures."""
    if reason == Reason.FEW_FIRINGS:
        return f"active on {_many(row.firings, 'position')} of the probe corpus; at least {policy.min_firings} needed"
    if reason == Reason.FEW_DOCUMENTS:
        return f"active in {_many(documents, 'document')}; an interval needs at least {policy.min_documents}"
    if reason == Reason.NO_BASELINE:
        return f"its strength at {row.baseline or 'the baseline'} is within the noise, so there is no ratio"
    ratio = f"ratio {with_interval(row.projection_ratio, row.projection_ratio_ci, policy.confidence)}"
    if reason == Reason.WIDE_INTERVAL:
        low, high = row.projection_ratio_ci or (None, None)
        thresholds = [policy.suppressed_below, policy.amplified_above]
        crossed = [share(one) for one in thresholds if low is not None and high is not None and low <= one <= high]
        return f"{ratio}: the interval crosses {' and '.join(crossed) or 'a threshold'}"
    if reason == Reason.NOT_SIGNIFICANT:
        q = "" if row.q_value is None else f" (q = {row.q_value:.2g})"
        correction = "after correcting for the number of features and versions"
        return f"{ratio}: outside the band, but not significant {correction}{q}"
    readability = "" if row.readability is None else f" (readability {row.readability:.2f})"
    return f"{ratio}: written, but not readable by the checkpoint's own encoder{readability}"


def detectable(minimum: float | None) -> str:
    """The smallest change that the data could have shown."""
    if minimum is None:
        return "There are too few data to detect a change in it."
    return f"A fall to {share(minimum)} or less would have been detected."


REASONS: dict[Reason, str] = {
    Reason.FEW_FIRINGS: "too few firings on the probe corpus",
    Reason.FEW_DOCUMENTS: "firings in too few documents",
    Reason.NO_BASELINE: "strength at the baseline within the noise",
    Reason.WIDE_INTERVAL: "interval crosses a threshold",
    Reason.NOT_SIGNIFICANT: "outside the band, but not significant after correcting for the number of features",
    Reason.UNREADABLE: "written, but not readable by the checkpoint's own encoder",
}


def _is_back(row: FeatureRow) -> bool:
    """Whether the feature was gone at the baseline and is written again."""
    return row.previous_status in GONE and row.status in (Status.SUPPRESSED, Status.EMERGED)


def _written(row: FeatureRow, policy: Policy, before: str = "its former strength") -> str:
    """`it is written along its direction at 24% (95% CI 18 to 31%) of its former strength`."""
    ratio, ends = row.projection_ratio, row.projection_ratio_ci
    if ratio is not None and round(ratio, 2) <= 0:
        interval = "" if not ends or None in ends else f", {policy.confidence:.0%} CI {ends[0]:.2f} to {ends[1]:.2f}"
        return f"it is no longer written along its direction (ratio {ratio:.2f}{interval})"
    of = "" if (ratio or 0.0) >= _TIMES else " of"  # 24% of it, but 3.1 times it
    return f"it is written along its direction at {with_interval(ratio, ends, policy.confidence)}{of} {before}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _odds(q: float) -> str:
    if q < 0.001:
        return "fewer than 1 in 1,000"
    if q < 0.01:
        return f"at most {math.ceil(q * 1000 - 1e-9)} in 1,000"
    return f"at most {math.ceil(q * 100 - 1e-9)} in 100"


def _rate(rate: float) -> str:
    return f"{rate:.1%}" if rate >= 0.001 else f"{rate:.2%}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _replaced(row: FeatureRow, names: Mapping[str, str]) -> str:
    """`replaced by F20, which is active on 92% of its activation.`"""
    successors = row.successors
    if not successors:
        return "replaced."
    if len(successors) > 1:
        listed = _listed([names.get(successor.id, successor.id) for successor in successors])
        shares = [f"{successor.cofiring:.0%}" for successor in successors if successor.cofiring is not None]
        rest = f", which are active on {_listed(shares)} of its activation" if len(shares) == len(successors) else ""
        return f"replaced by {listed} together{rest}."
    successor = successors[0]
    rest = "" if successor.cofiring is None else f", which is active on {successor.cofiring:.0%} of its activation"
    also = " and replaces other features too" if successor.kind == "merged" else ""
    return f"replaced by {names.get(successor.id, successor.id)}{rest}{also}."


def _too_little(row: FeatureRow, names: Mapping[str, str]) -> str:
    """Features that are active in its place but do not carry enough to count as successors."""
    if not row.successors:
        return ""
    listed = _listed([names.get(successor.id, successor.id) for successor in row.successors[:_TOKENS]])
    verbs = ("is", "carries") if len(row.successors) == 1 else ("are", "carry")
    return f" {listed} {verbs[0]} now active in its place, but {verbs[1]} too little of it to count as a replacement."


def _relocated(row: FeatureRow, policy: Policy) -> str:
    low = row.projection_ratio_ci[0] if row.projection_ratio_ci else None
    if low is not None and low >= policy.suppressed_below:
        # Any two checkpoints: its levels continue along the direction that it has had since the relocation.
        return f"it is as strong as at {row.baseline or 'the baseline'}, but along another direction."
    elsewhere = "" if row.strength_ratio is None else f", at {share(row.strength_ratio)} of its former strength"
    return f"{_written(row, policy)}; the rest is written along another direction{elsewhere}."
