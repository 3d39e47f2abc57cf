"""Courses in one line of text."""

from collections.abc import Mapping, Sequence

from featurewatch.service.client.types import Point
from featurewatch.service.verdicts.statuses import GONE

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], *, full: float = 1.0) -> str:
    """A bar for each value: the lowest for 0 and less, the highest for `full`, or the largest where that is more.

    `·` where there is no value.
    """
    top = max([full, *(value for value in values if value is not None)])
    steps = len(_BARS) - 1
    return "".join("·" if value is None else _BARS[round(min(max(value / top, 0.0), 1.0) * steps)] for value in values)


def levels(points: Sequence[Point]) -> list[float | None]:
    """How much of its direction a feature writes in each checkpoint, over the first that has it: ratios are against
    the parent, or where it was last there, so they are chained (docs/adr/0009). None where a ratio is missing.
    """
    found: dict[str, float | None] = {}
    before: Mapping[str, Point] = {point["checkpoint"]: point for point in points}
    for point in points:
        last = before.get(point["baseline"] or "")
        while last is not None and last["status"] in GONE:
            last = before.get(last["baseline"] or "")
        if last is None:
            found[point["checkpoint"]] = 1.0
            continue
        level, ratio = found.get(last["checkpoint"]), point["projection_ratio"]
        found[point["checkpoint"]] = None if level is None or ratio is None else level * ratio
    return [found[point["checkpoint"]] for point in points]


def course(points: Sequence[Point]) -> str | None:
    """`▇▇▂▁  100%, 98%, 24%, 2%`: what is left in each checkpoint; None where there is only one."""
    left = levels(points)
    if len(left) < 2:
        return None
    said = ["-" if value is None else f"{max(value, 0.0):.0%}" for value in left]
    shown = said if len(said) <= 8 else [*said[:3], "...", *said[-3:]]
    return f"{sparkline(left)}  {', '.join(shown)}"
