"""Rules of a gate on the verdicts as a whole, on reports that are made up."""

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from featurewatch.service.cli.base import UsageError
from featurewatch.service.cli.gate import judgeable, policy
from featurewatch.service.cli.gate.policy import Dictionary, Shares

LIMITS = Shares(absent=0.1, indeterminate=0.3, retired=0.5)
FITS = Dictionary(refit_advised=False, fvu_ratio=2.0, valid_share=0.5)
GOOD = {"fvu": 0.2, "valid_share": 0.98, "refit_advised": False}


def report(*, new: int | None = None, refit: Any = None, reasons: dict[str, int] | None = None, **counts: int) -> Any:
    """A report with these counts. new: how many of the absent ones became so here; all of them, unless it is given."""
    every = {"present": 0, "absent": 0, "emerged": 0, "indeterminate": 0} | counts
    known = reasons or {"wide_interval": every["indeterminate"]}
    return {
        "features": sum(every.values()),
        "counts": every,
        "new_counts": {"absent": every["absent"] if new is None else new},
        "not_judged": {"reasons": [{"reason": name, "text": name, "features": n} for name, n in known.items()]},
        "refit": refit,
    }


def failed(document: Any) -> set[str]:
    return {one.rule.partition(".")[2] for one in judgeable.shares(LIMITS, document, ()) if not one.passed}


@pytest.mark.parametrize(
    ("document", "rules"),
    [
        (report(present=900, absent=150), {"absent"}),
        (report(present=950, absent=90), set()),
        (report(present=900, absent=150, new=20), set()),  # the others were gone before
        (report(present=100, absent=900, new=100), {"absent"}),  # half of the 200 that were still there
        (report(present=600, indeterminate=400), {"indeterminate"}),
        (report(present=800, indeterminate=200), set()),
        (report(present=7, indeterminate=3), set()),  # of ten, three say little
        (report(indeterminate=10), {"indeterminate"}),
        (report(present=9, absent=1), set()),
        (report(absent=10), {"absent"}),
        # Features that the corpus has no text for are the family's matter, and do not dilute the others either.
        (report(present=400, indeterminate=600, reasons={"few_firings": 500, "few_documents": 100}), set()),
        (report(present=80, absent=30, indeterminate=900, reasons={"few_firings": 900}), {"absent"}),
        (report(emerged=500, indeterminate=400), {"indeterminate"}),  # new features do not count as existing ones
        (report(), set()),
        (report(present=10, indeterminate=1), set()),  # a first checkpoint
    ],
)
def test_shares(document: Any, rules: set[str]) -> None:
    assert failed(document) == rules


@pytest.mark.parametrize(("retired", "broken"), [(600, {"retired"}), (300, set())])
def test_what_a_refit_lost(retired: int, broken: set[str]) -> None:
    refit = {"why": "asked for", "carried": 350, "retired": retired, "split": 25, "merged": 25, "new": 5000}
    assert failed(report(present=1000, refit=refit)) == broken


def test_a_share_exceeds_its_limit_by_its_lower_bound() -> None:
    """The lower end of Wilson's interval."""
    assert judgeable.least_share(0, 0) == judgeable.least_share(0, 40) == 0
    for part, whole in ((10, 10), (3, 10), (1, 40), (3000, 10000)):
        interval = binomtest(part, whole).proportion_ci(method="wilson")
        assert judgeable.least_share(part, whole) == pytest.approx(interval.low, abs=1e-5)
    one = next(judgeable.shares(Shares(absent=0), report(present=99, absent=1), ("F1 is absent: nothing is left",)))
    assert (one.passed, one.evidence) == (False, ("F1 is absent: nothing is left",))
    assert next(judgeable.shares(Shares(absent=0), report(present=99), ())).passed


@pytest.mark.parametrize(
    ("quality", "fitted", "rules"),
    [
        (GOOD, 0.15, set()),
        (GOOD, None, set()),  # fitted on this checkpoint
        (GOOD | {"fvu": 0.5}, 0.2, {"fvu_ratio"}),
        (GOOD | {"refit_advised": True}, 0.15, {"refit_advised"}),
        (GOOD | {"valid_share": 0.4}, 0.15, {"valid_share"}),
        ({}, None, set()),  # what was not measured breaks no rule
    ],
)
def test_the_dictionary(quality: dict[str, Any], fitted: float | None, rules: set[str]) -> None:
    document: Any = {"quality": quality, "fitted_fvu": fitted, "caveats": ["A re-fit is advised."]}
    outcomes = list(judgeable.dictionary(FITS, document))
    assert {one.rule for one in outcomes if not one.passed} == {f"dictionary.{rule}" for rule in rules}
    assert len(outcomes) == 3 and not list(judgeable.dictionary(Dictionary(), document))


def test_a_policy_file_has_the_thresholds(tmp_path: Path) -> None:
    file = tmp_path / "gate.toml"
    file.write_text("[shares]\nabsent = 0.02\n[dictionary]\nrefit_advised = false\n", encoding="utf-8")
    gate = policy.load(str(file))
    assert (gate.shares.absent, gate.shares.indeterminate, gate.dictionary.refit_advised) == (0.02, None, False)
    for text in ("[shares]\nabsent = 2", "[shares]\ngone = 0.1", "[dictionary]\nrefit_advised = true",
                 "[dictionary]\nfvu_ratio = 0.5", "[dictionary]\nfvu_ratio = inf"):  # fmt: skip
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=r"gate\.toml is not a valid gate policy: (shares|dictionary)\."):
            policy.load(str(file))
    default = policy.load("default")
    assert not {None} & {*default.shares.model_dump().values(), *default.dictionary.model_dump().values()}


def test_the_guide_has_the_default() -> None:
    """Every limit of `--gate default` that is a number."""
    page = (Path(__file__).parents[2] / "docs" / "guide-ci.md").read_text(encoding="utf-8")
    for table in ("shares", "dictionary", "quality"):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{table}` |"))
        limits = policy.DEFAULT.model_dump()[table].items()
        assert row == f"| `{table}` | " + ", ".join(f"`{name} = {str(limit).lower()}`" for name, limit in limits) + " |"
