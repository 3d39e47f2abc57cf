"""The rule that says where a feature is active compared with the baseline. Pure numpy, like `service.verdicts.judge`.

Shares are ratios of sums over documents, with jackknife intervals over folds of documents. A share counts if it is over
`places_share` and significantly over `places_floor`, which noise does not reach. The test is on the difference of the
sums (gained - floor x before), which is also defined for features that were hardly active at the baseline.
docs/verdicts.md describes the rule.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from featurewatch.service.verdicts.activity import Comparison
from featurewatch.service.verdicts.intervals import t_of
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.significance import benjamini_hochberg
from featurewatch.service.verdicts.statuses import Places

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

NEARLY_EMPTY = 0.8
"""A feature that lost more than this share and gained little may be gone: what is left can be its neighbours."""


@dataclass(frozen=True)
class Placement:
    """Where m features are active, [m] each; NaN where there is no figure."""

    codes: NDArray[np.int8]
    """of `Places`"""
    concentrated: Bools
    """Broadened because of a large gain in single documents"""
    emptied: Bools
    """Its own code is nearly empty"""
    places_q_value: Floats
    firing_rate_before: Floats
    firing_rate_ratio: Floats
    firing_rate_ratio_lo: Floats
    firing_rate_ratio_hi: Floats
    gained_share: Floats
    gained_share_lo: Floats
    gained_share_hi: Floats
    lost_share: Floats
    lost_share_lo: Floats
    lost_share_hi: Floats
    kept_amplitude: Floats
    kept_amplitude_lo: Floats
    kept_amplitude_hi: Floats
    gained_documents: Floats
    amplitude: Floats
    """Mean activation where the feature is active, divided by that at the baseline"""

    @property
    def places(self) -> list[Places]:
        """The words themselves."""
        by_code = {word.code: word for word in Places}
        return [by_code[code] for code in self.codes.tolist()]


def place(comparison: Comparison, policy: Policy, level: float) -> Placement:
    """Say where every feature is active. level: largest q-value that is significant."""
    sums, share, threshold = comparison.sums, policy.places_share, comparison.threshold
    active_before = sums.firings_before.sum(0)
    firings = np.maximum(active_before, sums.firings.sum(0))
    documents = np.maximum(comparison.documents_before, comparison.documents)
    mean_before, mean = _mean(sums.before, sums.firings_before), _mean(sums.now, sums.firings)
    visible = np.fmax(mean_before, mean) >= policy.min_visibility * threshold
    enough = (firings >= policy.min_firings) & (documents >= policy.min_documents) & visible
    gained = _ratio(sums.gained, sums.before, policy)
    lost = _ratio(sums.lost, sums.before, policy)
    kept = _ratio(sums.kept_now, sums.kept_before, policy)
    rate = _ratio(sums.firings, sums.firings_before, policy)
    excess = [_excess(part, sums.before, policy.places_floor) for part in (sums.gained, sums.lost)]
    q = benjamini_hochberg(np.where(enough, np.stack(excess), np.nan).ravel()).reshape(2, -1)
    significant, changed = q <= level, np.stack([sums.gained.sum(0), sums.lost.sum(0)])
    over_gained, over_lost = significant & (changed > share * sums.before.sum(0))
    concentrated = (
        enough & (comparison.gains.largest > policy.trigger_gain) & (comparison.gains.firings >= policy.trigger_firings)
    )
    nearly_empty = over_lost & (lost[0] > NEARLY_EMPTY)
    # That it changed is significant. Where the rest is, its interval says, as for absent and suppressed.
    elsewhere = nearly_empty & (gained[1] > policy.places_floor)
    broadened = over_gained | concentrated | elsewhere
    in_band = (kept[1] >= 1 / policy.kept_band) & (kept[2] <= policy.kept_band)
    emptied = nearly_empty & ~broadened
    codes = np.full(len(firings), Places.INDETERMINATE.code, dtype=np.int8)
    codes[enough & (gained[2] < share) & (lost[2] < share)] = Places.SAME.code
    codes[over_lost & ~broadened & ~emptied & in_band] = Places.NARROWED.code
    codes[broadened & ~over_lost] = Places.BROADENED.code
    codes[broadened & over_lost] = Places.DISPLACED.code

    def known(values: NDArray[Any]) -> Floats:
        return np.where(enough, values, np.nan).astype(np.float32)

    return Placement(
        codes=codes,
        concentrated=concentrated,
        emptied=emptied,
        places_q_value=known(q.min(0)),
        firing_rate_before=known(active_before / max(comparison.positions, 1)),
        firing_rate_ratio=known(rate[0]),
        firing_rate_ratio_lo=known(rate[1]),
        firing_rate_ratio_hi=known(rate[2]),
        gained_share=known(gained[0]),
        gained_share_lo=known(gained[1]),
        gained_share_hi=known(gained[2]),
        lost_share=known(lost[0]),
        lost_share_lo=known(lost[1]),
        lost_share_hi=known(lost[2]),
        kept_amplitude=known(kept[0]),
        kept_amplitude_lo=known(kept[1]),
        kept_amplitude_hi=known(kept[2]),
        gained_documents=known(comparison.gains.documents),
        amplitude=known(mean / mean_before),
    )


def _mean(activation: NDArray[np.float64], firings: NDArray[np.float64]) -> NDArray[np.float64]:
    """[m] mean activation where the feature is active, from sums over folds; NaN if it is active nowhere."""
    count = firings.sum(0)
    return np.divide(activation.sum(0), count, out=np.full(len(count), np.nan), where=count > 0)


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64], policy: Policy) -> NDArray[np.float64]:
    """A ratio of sums over folds [K, m] with its interval: [3, m], NaN where the denominator is 0."""
    k = len(over)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = over.sum(0) / under.sum(0)
        replicates = (over.sum(0) - over) / (under.sum(0) - under)
        error = np.sqrt((k - 1) / k * np.square(replicates - replicates.mean(0)).sum(0))
    value = np.where(np.isfinite(value), value, np.nan)
    reach = t_of(k, policy) * error
    return np.stack([value, np.maximum(value - reach, 0), value + reach])


def _excess(part: NDArray[np.float64], whole: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """[m] two-sided p-values of part = share x whole, from sums over folds [K, m]; 1 where the part is smaller."""
    difference = part - share * whole
    k, total = len(difference), difference.sum(0)
    error = np.sqrt(k / max(k - 1, 1) * np.square(difference - difference.mean(0)).sum(0))
    p = np.ones(len(total))
    above = total > 0
    p[above] = 2 * stdtr(k - 1, -total[above] / np.maximum(error[above], 1e-12 * np.abs(total[above])))
    return p
