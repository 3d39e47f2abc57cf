"""What a judgement says of each feature, as columns of the verdict table."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurewatch.service.kit.ids import feature_id
from featurewatch.service.verdicts.judge import Evidence, Judgement


def verdict_columns(
    numbers: NDArray[np.int64], evidence: Evidence, judgement: Judgement, previous: dict[int, str]
) -> dict[str, list[Any]]:
    """What a judgement says of each feature: all features' values, by columns of `Verdict`."""
    successors = [
        [
            {"id": feature_id(int(numbers[s.column])), "kind": s.kind, "cofiring": round(s.cofiring, 4)}
            for s in (evidence.successors.get(column, ()) if weakened else ())
        ]
        for column, weakened in enumerate(judgement.weakened.tolist())
    ]
    ids = numbers.tolist()
    return {
        "feature": ids,
        "status": [str(status) for status in judgement.status],
        "previous_status": [previous.get(number) for number in ids],
        "change": judgement.change.astype(np.float64).tolist(),
        "firings": evidence.firings.tolist(),
        "successors": successors,
    } | {name: numbers_of(values) for name, values in floats_of(judgement).items()}


def floats_of(judgement: Judgement) -> dict[str, NDArray[np.float64]]:
    """Figures of a judgement by the columns of `Verdict` that hold them, [m] each; NaN where there is none."""
    figures = {
        "projection_ratio": judgement.projection,
        "projection_ratio_lo": judgement.projection_lo,
        "projection_ratio_hi": judgement.projection_hi,
        "strength_ratio": judgement.strength_ratio,
        "strength_ratio_lo": judgement.strength_lo,
        "strength_ratio_hi": judgement.strength_hi,
        "orthogonal_ratio": judgement.orthogonal,
        "q_value": judgement.q_value,
        "minimum_detectable_ratio": judgement.minimum_detectable,
    }
    return {name: values.astype(np.float64) for name, values in figures.items()}


def numbers_of(values: NDArray[np.floating]) -> list[float | None]:
    """Floats for the database, NaN as None."""
    return [None if value != value else value for value in values.astype(np.float64).tolist()]  # noqa: PLR0124
