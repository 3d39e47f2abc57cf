"""The result of a judgement, as columns of the verdict table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurewatch.service.kit.ids import feature_id
from featurewatch.service.verdicts.figures import FIGURES
from featurewatch.service.verdicts.judge import Evidence, Judgement
from featurewatch.service.verdicts.statuses import PLACES_BY_CODE


def verdict_columns(
    numbers: NDArray[np.int64],
    evidence: Evidence,
    judgement: Judgement,
    previous: Mapping[int, str],
    measured: Mapping[str, NDArray[Any]],
) -> dict[str, list[Any]]:
    """Columns of `Verdict` for the features `numbers` [m]. measured: figure -> [m], of those that workers measure."""
    successors = [
        [
            {"id": feature_id(int(numbers[s.column])), "kind": s.kind, "cofiring": round(s.cofiring, 4)}
            for s in (evidence.successors.get(column, ()) if weakened else ())
        ]
        for column, weakened in enumerate(judgement.weakened.tolist())
    ]
    ids = numbers.tolist()
    figures = judged_figures(evidence, judgement) | dict(measured)
    return {
        "feature": ids,
        "status": [status.value for status in judgement.status],
        "previous_status": [previous.get(number) for number in ids],
        "places": [PLACES_BY_CODE[code].value if code >= 0 else None for code in judgement.places.tolist()],
        "successors": successors,
    } | {name: values_of(values) for name, values in figures.items()}


def judged_figures(evidence: Evidence, judgement: Judgement) -> dict[str, NDArray[Any]]:
    """Column -> [m], of the figures that follow from a judgement; NaN where there is none."""
    nothing = np.full(len(judgement.codes), np.nan, dtype=np.float32)
    figures: dict[str, NDArray[Any]] = {}
    for figure in FIGURES:
        for column in () if figure.measured else figure.columns:
            if figure.placed:
                figures[column] = getattr(judgement.placement, column, nothing)
            else:
                figures[column] = figure.of(evidence, judgement) if figure.of else getattr(judgement, column)
    return figures


def values_of(values: NDArray[Any]) -> list[Any]:
    """Numbers in the form that the database accepts, NaN as None."""
    if values.dtype.kind != "f":
        return values.tolist()
    return [None if value != value else value for value in values.astype(np.float64).tolist()]  # noqa: PLR0124
