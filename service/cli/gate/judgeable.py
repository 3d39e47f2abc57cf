"""Rules on the verdicts as a whole: whether too many features are gone, or too few could be judged."""

import math
from collections.abc import Iterable, Iterator

from featurewatch.service.cli.gate.outcome import Outcome
from featurewatch.service.cli.gate.policy import Dictionary, Shares
from featurewatch.service.client.types import Report

SILENT = frozenset({"few_firings", "few_documents"})
"""Reasons that depend on the family's corpus and hold in every checkpoint: such features do not count."""
_Z = 1.96


def shares(limits: Shares, report: Report, absent: Iterable[str]) -> Iterator[Outcome]:
    """Rules of the table `[shares]`. absent: one sentence each for the first features that became absent."""
    counts, reasons = report["counts"], report["not_judged"]["reasons"]
    silent = sum(row["features"] for row in reasons if row["reason"] in SILENT)
    became = report["new_counts"]["absent"]
    # Excludes features that were already absent and new ones, of which a broken checkpoint may have many.
    existing = report["features"] - silent - (counts["absent"] - became) - counts["emerged"]
    which = "of the existing features that fire often enough"
    if limits.absent is not None:
        failure = _over(became, existing, limits.absent, "existing features became absent")
        asked = f"at most {limits.absent:.0%} {which} become absent"
        yield Outcome("shares.absent", asked, failure, tuple(absent) if failure else ())
    if limits.indeterminate is not None:
        unsure = counts["indeterminate"] - silent
        failure = _over(unsure, existing, limits.indeterminate, "existing features cannot be judged")
        why = [f"{row['features']:,}: {row['text']}" for row in reasons if row["reason"] not in SILENT]
        asked = f"at most {limits.indeterminate:.0%} {which} cannot be judged"
        yield Outcome("shares.indeterminate", asked, failure, tuple(why) if failure else ())
    if limits.retired is not None:
        refit, failure = report["refit"], ""
        if refit:
            total = refit["carried"] + refit["retired"] + refit["split"] + refit["merged"]
            failure = _over(refit["retired"], total, limits.retired, "features were not carried over by the re-fit")
        asked = f"a re-fit retires at most {limits.retired:.0%} of the previous generation's features"
        yield Outcome("shares.retired", asked, failure)


def dictionary(limits: Dictionary, report: Report) -> Iterator[Outcome]:
    """Rules of the table `[dictionary]`."""
    quality, fitted = report["quality"], report["fitted_fvu"]
    if limits.refit_advised is not None:
        asked = "the dictionary describes the checkpoint well enough that no re-fit is advised"
        failure = "a re-fit is advised: the dictionary does not describe this checkpoint well enough"
        caveats = tuple(text for text in report["caveats"] if "re-fit is advised" in text)
        broken = (failure, caveats) if quality.get("refit_advised") else ()
        yield Outcome("dictionary.refit_advised", asked, *broken)
    if limits.fvu_ratio is not None:
        fvu, failure = quality.get("fvu"), ""
        if fvu is not None and fitted and not fvu <= limits.fvu_ratio * fitted:
            failure = (
                f"FVU {fvu:.3g} is {fvu / fitted:.1f} times the {fitted:.3g} of the fit (limit {limits.fvu_ratio:g})"
            )
        asked = f"FVU is at most {limits.fvu_ratio:g} times its value at the fit"
        yield Outcome("dictionary.fvu_ratio", asked, failure)
    if limits.valid_share is not None:
        share, failure = quality.get("valid_share"), ""
        if share is not None and share < limits.valid_share:
            failure = f"only {share:.0%} of the positions can be compared; the minimum is {limits.valid_share:.0%}"
        asked = f"at least {limits.valid_share:.0%} of the positions can be compared"
        yield Outcome("dictionary.valid_share", asked, failure)


def least_share(part: int, whole: int) -> float:
    """Lower end of the 95% interval of a share (Wilson 1927); 0 if `whole` is 0."""
    if not whole:
        return 0.0
    share, z2 = part / whole, _Z * _Z / whole
    spread = _Z * math.sqrt((share * (1 - share) + z2 / 4) / whole)
    return max(0.0, (share + z2 / 2 - spread) / (1 + z2))


def _over(part: int, whole: int, limit: float, what: str) -> str:
    """The failure if even the lower confidence bound of a share exceeds its limit; otherwise empty."""
    least = least_share(part, whole) if part else 0.0
    if least <= limit:
        return ""
    return (
        f"{part:,} of {whole:,} {what} ({part / whole:.0%}, 95% CI lower bound {least:.0%}); the limit is {limit:.0%}"
    )
