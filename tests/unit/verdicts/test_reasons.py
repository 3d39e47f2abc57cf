"""Why a feature could not be judged: read from stored figures alone, it is the condition of the rule that failed."""

import numpy as np
import pytest

from featurewatch.service.verdicts.judge import Evidence, Judgement, judge, standard_error
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.reasons import Figures, Reason, reasons
from featurewatch.service.verdicts.statuses import Status

FOLDS, BACKGROUND = 20, 60
POLICY = Policy()
# (ratio, standard error, firings, documents, readability, z of the baseline's strength) -> why
CASES: list[tuple[tuple[float, float, int, int, float, float], Reason]] = [
    ((1.0, 0.03, 12, 10, 0.8, 50.0), Reason.FEW_FIRINGS),
    ((1.0, 0.03, 12, 2, 0.8, 50.0), Reason.FEW_FIRINGS),
    ((1.0, 0.03, 500, 3, 0.8, 50.0), Reason.FEW_DOCUMENTS),
    ((1.0, 0.03, 500, 50, 0.8, 1.2), Reason.NO_BASELINE),
    ((0.55, 0.10, 500, 50, 0.8, 50.0), Reason.WIDE_INTERVAL),
    ((1.8, 0.30, 500, 50, 0.8, 50.0), Reason.WIDE_INTERVAL),
    ((1.2, 0.80, 500, 50, 0.8, 50.0), Reason.WIDE_INTERVAL),
    ((0.44, 0.022, 500, 50, 0.8, 50.0), Reason.NOT_SIGNIFICANT),
    ((1.0, 0.03, 500, 50, 0.05, 50.0), Reason.UNREADABLE),
]


def _replicates(value: float, error: float) -> np.ndarray:
    pattern = np.resize([1.0, -1.0], FOLDS) * error / np.sqrt(FOLDS - 1)
    return np.concatenate([[value], value + pattern]).astype(np.float32)


@pytest.fixture(scope="module")
def judged() -> tuple[Evidence, Judgement]:
    """The cases, and many features to which nothing happened."""
    every = [case for case, _ in CASES] + [(1.0, 0.03, 500, 50, 0.8, 50.0)] * BACKGROUND
    ratio, error, firings, documents, readability, z = (np.array(column) for column in zip(*every, strict=True))
    projection = np.stack([_replicates(r, e) for r, e in zip(ratio, error, strict=True)], 1)
    assert standard_error(projection)[0] == pytest.approx(0.03, rel=1e-3)
    evidence = Evidence(
        projection=projection,
        strength_ratio=projection.copy(),
        orthogonal=np.full_like(projection, 0.1),
        firings=firings.astype(np.int64),
        documents=documents.astype(np.int64),
        readability=readability.astype(np.float32),
        readability_before=np.full(len(every), 0.8, dtype=np.float32),
        baseline_z=z.astype(np.float32),
        there_before=np.ones(len(every), dtype=bool),
        born_here=np.zeros(len(every), dtype=bool),
    )
    return evidence, judge(evidence, POLICY)


def test_the_reason_is_the_condition_that_failed(judged: tuple[Evidence, Judgement]) -> None:
    evidence, judgement = judged
    unsure = [place for place, status in enumerate(judgement.status) if status == Status.INDETERMINATE]
    assert unsure == list(range(len(CASES)))
    figures = Figures(
        evidence.firings[unsure],
        evidence.documents[unsure].astype(np.float32),
        judgement.projection_ratio_lo[unsure],
        judgement.projection_ratio_hi[unsure],
    )
    assert reasons(figures, POLICY) == [reason for _, reason in CASES]


def test_documents_that_are_not_known() -> None:
    nan = np.array([np.nan])
    assert reasons(Figures(np.array([500]), nan, nan, nan), POLICY) == [Reason.NO_BASELINE]
    assert reasons(Figures(np.zeros(0, dtype=np.int64), nan[:0], nan[:0], nan[:0]), POLICY) == []
