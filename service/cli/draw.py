"""Trajectories in one line of text."""

from collections.abc import Mapping, Sequence

from featurewatch.service.client.types import Point
from featurewatch.service.verdicts.statuses import GONE

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], *, full: float = 1.0) -> str:
    """One bar per value: the lowest for 0 and less, the highest for `full` or, if larger, the largest value.

    `·` marks a missing value.
    """
    top = max([full, *(value for value in values if value is not None)])
    steps = len(_BARS) - 1
    return "".join("·" if value is None else _BARS[round(min(max(value / top, 0.0), 1.0) * steps)] for value in values)


def levels(points: Sequence[Point]) -> list[float | None]:
    """How much of its direction a feature writes in each checkpoint, relative to the first one that has it.

    Stored ratios are against the parent, or against the checkpoint where the feature was last present, so they are
    multiplied along the chain (docs/adr/0009). None if a ratio is missing.
    """
    by_checkpoint: dict[str, float | None] = {}
    before: Mapping[str, Point] = {point["checkpoint"]: point for point in points}
    for point in points:
        last = before.get(point["baseline"] or "")
        while last is not None and last["status"] in GONE:
            last = before.get(last["baseline"] or "")
        if last is None:
            by_checkpoint[point["checkpoint"]] = 1.0
            continue
        level, ratio = by_checkpoint.get(last["checkpoint"]), point["projection_ratio"]
        by_checkpoint[point["checkpoint"]] = None if level is None or ratio is None else level * ratio
    return [by_checkpoint[point["checkpoint"]] for point in points]


def course(points: Sequence[Point]) -> str | None:
    """`▇▇▂▁  100%, 98%, 24%, 2%`: what is left in each checkpoint. None if there is only one checkpoint."""
    left = levels(points)
    if len(left) < 2:
        return None
    texts = ["-" if value is None else f"{max(value, 0.0):.0%}" for value in left]
    if len(texts) > 8:
        texts = [*texts[:3], "...", *texts[-3:]]
    return f"{sparkline(left)}  {', '.join(texts)}"
