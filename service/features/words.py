"""What happened to a feature and how sure that is, in plain words. Pure text, the same for `report` and `diff`.

Labels and tokens come from outside: control and format characters are taken out here, and whoever shows a text as
Markdown or HTML escapes it.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

from featurewatch.service.features.schemas import Example, FeatureRow
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.reasons import Reason
from featurewatch.service.verdicts.statuses import GONE

_MOST_LETTERS = 80
_TOKENS = 3
_TIMES = 2.0
"""From here on a ratio is said in times, not in per cent."""


def plain(text: str, most: int = _MOST_LETTERS) -> str:
    """Text on one line, without characters that act on a terminal or turn the direction of writing; at most so long."""
    flat = _visible(text).strip()
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def about(label: str | None, auto_label: str | None) -> str:
    """What a feature is about: a person's label, else the automatic one; empty where there is neither."""
    if label and plain(label):
        return f"“{plain(label)}”"
    automatic = plain(auto_label or "")
    return f"on {automatic}" if automatic and not automatic.startswith("before ") else automatic


def name_of(feature_id: str, label: str | None, auto_label: str | None) -> str:
    """A feature as a sentence names it: `F17 (“promises”)`, `F17 (on “stop”, “halt”)` or `F17`."""
    what = about(label, auto_label)
    return f"{feature_id} ({what})" if what else feature_id


def passage(example: Example, letters: int = 60) -> tuple[str, str, str] | None:
    """Text before, at and after an example's token, on one line, for people; None where the family has no text."""
    if example.token is None:
        return None
    before, token, after = (_visible(text or "") for text in (example.text_before, example.token, example.text_after))
    inner = token.strip()
    if inner != token and inner:
        before = before.rstrip() + " " if token[:1].isspace() else before
        after = " " + after.lstrip() if token[-1:].isspace() else after
    begin = before if len(before) <= letters else "…" + before[-letters:]
    end = after if len(after) <= letters else after[:letters] + "…"
    return begin.lstrip(), inner or "␣", end.rstrip()


def share(value: float) -> str:
    """A ratio as people say it: 24%, 3.1 times; under 0 where a direction is written the other way, or by noise."""
    if value >= _TIMES:
        return f"{value:.2g} times" if value < 10 else f"{value:.0f} times"
    return f"{round(value, 2) + 0.0:.0%}"  # no -0%


def with_interval(value: float | None, interval: Sequence[float | None] | None, confidence: float) -> str:
    """`24% (95% interval 18 to 31%)`, `nothing (95% interval -14 to -1%)`."""
    if value is None:
        return "an unknown part"
    said = share(value) if round(value, 2) > 0 else "nothing"
    if not interval or interval[0] is None or interval[1] is None:
        return said
    return f"{said} ({confidence:.0%} interval {between(interval[0], interval[1])})"


def between(low: float, high: float) -> str:
    """`18 to 31%`, `2.8 to 3.4 times`, `90% to 2.1 times`."""
    first, last = share(low), share(high)
    for unit in ("%", " times"):
        if first.endswith(unit) and last.endswith(unit):
            first = first.removesuffix(unit)
    return f"{first} to {last}"


def what_happened(row: FeatureRow, names: Mapping[str, str], policy: Policy) -> str:
    """A sentence: what became of the feature, how much is left, and of successors, who they are.

    names: id -> `name_of` of the feature and of its successors.
    """
    left = with_interval(row.projection_ratio, row.projection_ratio_ci, policy.confidence)
    if row.previous_status in GONE and row.status in ("suppressed", "emerged"):
        weakly = ", but suppressed" if row.status == "suppressed" else ""
        said = f"is back{weakly}: it is written at {left}{_of(row)} what it was when it was last there."
    elif row.status == "suppressed":
        said = f"was suppressed: {left} of its own direction is still written.{_not_enough(row, names)}"
    elif row.status == "absent":
        others = _not_enough(row, names) or " No other feature took over."
        said = f"is absent: {left} of its own direction is still written.{others}"
    elif row.status == "replaced":
        said = f"was {_replaced(row, names)} Of its own direction {left} is still written."
    elif row.status == "relocated":
        said = f"was relocated: {_relocated(row, left, policy)}"
    elif row.status == "amplified":
        said = f"was amplified: its own direction is written at {left}{_of(row)} its former strength."
    elif row.status == "emerged":
        where = f"{_rate(row.firing_rate)} of the positions ({row.firings:,} firings)"
        said = f"emerged: {row.baseline or 'the baseline'} does not write it. It fires on {where}."
    else:
        said = f"is {row.status}."
    return f"{names.get(row.id, row.id)} {said}"


def in_short(row: FeatureRow, names: Mapping[str, str], policy: Policy) -> str:
    """The same as a part of a sentence, for headlines."""
    name = names.get(row.id, row.id)
    left = with_interval(row.projection_ratio, row.projection_ratio_ci, policy.confidence)
    if row.previous_status in GONE and row.status in ("suppressed", "emerged"):
        return f"{name} is back at {left}"
    if row.status in ("suppressed", "amplified"):
        return f"{name} was {row.status} to {left}"
    if row.status == "absent":
        return f"{name} is absent, {left} is left"
    if row.status == "replaced" and row.successors:
        return f"{name} was replaced by {_listed([successor.id for successor in row.successors])}"
    return f"{name} {'emerged' if row.status == 'emerged' else f'was {row.status}'}"


def how_sure(row: FeatureRow, policy: Policy) -> str:
    """The q-value in words: what the false discovery rate says of the findings, never of this one alone."""
    q = row.q_value
    if q is not None and q <= policy.fdr:
        said = f"q = {q:.2g}" if q >= 0.0001 else "q under 0.0001"
        return f"{said}: of all findings here that are at least this sure, {_odds(q)} are expected to be false."
    if row.status == "emerged" and row.projection_ratio is None:
        return (
            "No q-value: it is called new because it is surely written and can be read here, while the baseline "
            "surely holds less than half of it."
        )
    if row.status == "relocated":
        return "Judged at the checkpoint where it happened, on the way here."
    return "By its interval alone: it was gone at the baseline, and coming back has no test of its own."


def why_not(row: FeatureRow, reason: Reason, documents: int | None, policy: Policy) -> str:
    """Why a feature could not be judged, with its figures."""
    if reason == Reason.FEW_FIRINGS:
        return f"it fires on {_many(row.firings, 'position')} of the probe corpus; {policy.min_firings} are needed"
    if reason == Reason.FEW_DOCUMENTS:
        return f"it fires in {_many(documents or 0, 'document')}; {policy.min_documents} are needed for an interval"
    if reason == Reason.NO_BASELINE:
        return f"its strength at {row.baseline or 'the baseline'} is not over its noise, so there is no ratio to take"
    interval = with_interval(row.projection_ratio, row.projection_ratio_ci, policy.confidence)
    if reason == Reason.WIDE_INTERVAL:
        low, high = row.projection_ratio_ci or (None, None)
        lines = [policy.suppressed_below, policy.amplified_above]
        crossed = [share(line) for line in lines if low is not None and high is not None and low <= line <= high]
        return f"{interval} is still written: that reaches across {' and '.join(crossed) or 'a threshold'}"
    if reason == Reason.NOT_SIGNIFICANT:
        q = "" if row.q_value is None else f": q = {row.q_value:.2g}"
        return f"{interval} is still written, but among so many features and versions that may be chance{q}"
    found = "" if row.readability is None else f" (readability {row.readability:.2f})"
    return f"{interval} is still written, but the checkpoint's own encoder does not find it{found}"


def detectable(minimum: float | None) -> str:
    """What could have been seen."""
    if minimum is None:
        return "With these data no change of it could have been told."
    return f"A fall to {share(minimum)} or less could have been told from no change."


REASONS: dict[Reason, str] = {
    Reason.FEW_FIRINGS: "too few firings on the probe corpus",
    Reason.FEW_DOCUMENTS: "firings in too few documents",
    Reason.NO_BASELINE: "no strength at the baseline that is over its noise",
    Reason.WIDE_INTERVAL: "an interval that crosses a threshold",
    Reason.NOT_SIGNIFICANT: "outside the band, but not significantly among so many features",
    Reason.UNREADABLE: "written, but not found by the checkpoint's own encoder",
}


def _visible(text: str) -> str:
    """Blanks, and what cannot be seen or acts on a terminal, as single spaces."""
    shown = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)
    return re.sub(r"\s+", " ", shown)


def _of(row: FeatureRow) -> str:
    """24% of it, but 3.1 times it."""
    return "" if (row.projection_ratio or 0.0) >= _TIMES else " of"


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
    """`replaced by F20, which fires on 92% of its activation.`"""
    successors = row.successors
    if not successors:
        return "replaced."
    if len(successors) > 1:
        listed = _listed([names.get(successor.id, successor.id) for successor in successors])
        shares = [f"{successor.cofiring:.0%}" for successor in successors if successor.cofiring is not None]
        rest = f", which fire on {_listed(shares)} of its activation" if len(shares) == len(successors) else ""
        return f"replaced by {listed} together{rest}."
    one = successors[0]
    rest = "" if one.cofiring is None else f", which fires on {one.cofiring:.0%} of its activation"
    also = " and takes the place of other features too" if one.kind == "merged" else ""
    return f"replaced by {names.get(one.id, one.id)}{rest}{also}."


def _not_enough(row: FeatureRow, names: Mapping[str, str]) -> str:
    """Features that fire in its place but do not carry enough to be called successors."""
    if not row.successors:
        return ""
    listed = _listed([names.get(successor.id, successor.id) for successor in row.successors[:_TOKENS]])
    verbs = ("fires", "carries") if len(row.successors) == 1 else ("fire", "carry")
    return f" Where it fired, {listed} {verbs[0]} now, but {verbs[1]} too little of it to have replaced it."


def _relocated(row: FeatureRow, left: str, policy: Policy) -> str:
    low = row.projection_ratio_ci[0] if row.projection_ratio_ci else None
    if low is not None and low >= policy.suppressed_below:
        # Any two checkpoints: the levels go on with the direction that it has had since then.
        return f"it is written along another direction than at {row.baseline or 'the baseline'}, and no weaker."
    moved = "" if row.strength_ratio is None else f", at {share(row.strength_ratio)} of its former strength"
    return f"{left} of its own direction is still written; the rest goes along another direction{moved}."
