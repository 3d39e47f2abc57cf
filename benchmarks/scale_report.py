"""The report of `benchmarks.scale`: tables, power laws, and their extrapolation to a larger size."""

from typing import Any

import numpy as np

TARGET = {"latents": 131_072, "width": 4096, "positions": 10**8}
AXES = ("positions", "width", "latents")
BATCH, K = 2048, 32
Point = dict[str, Any]


def power_law(points: list[Point], value: str) -> tuple[np.ndarray, float]:
    """Exponents of positions, width and latents, and the logarithm of the factor, by least squares of logarithms."""
    left = np.array([[*(np.log(_size(point, axis)) for axis in AXES), 1.0] for point in points])
    solved = np.linalg.lstsq(left, np.log([max(point[value], 1e-6) for point in points]), rcond=None)[0]
    return solved[:-1], float(solved[-1])


def _size(point: Point, axis: str) -> float:
    """Width is over all concatenated sources."""
    return point[axis] * (point.get("checkpoints", 1) if axis == "width" else 1)


def at(law: tuple[np.ndarray, float], target: Point) -> float:
    """The value of a power law at a size."""
    return float(np.exp(law[0] @ np.log([target[axis] for axis in AXES]) + law[1]))


def page(points: list[Point], bases: dict[str, Point], threads: int) -> str:
    """The page as Markdown."""
    kinds = {kind: [point for point in points if point["kind"] == kind] for kind in bases}
    stream = {point["from"]: point for point in points if point["kind"] == "stream"}
    lines = [
        "# How time and memory grow",
        "",
        f"Written by `python -m benchmarks.scale`, on {threads} CPU threads. Every row is a process of its own; "
        f"memory is what it adds to its data. {K} latents are active at a position; a step takes {BATCH:,} positions.",
        "",
        "## Fit",
        "",
        "One step; the width is that of each checkpoint.",
        "",
        *_table(
            ["positions", "checkpoints", "width", "latents", "ms/step", "memory, GB"],
            [[p["positions"], p["checkpoints"], p["width"], p["latents"], p["step_ms"], p["memory_gb"]]
             for p in kinds["fit"]],
        ),
        "",
        "## Regression of an extension",
        "",
        "Left side (Gram and its factor, or the preconditioner), the decoder of one checkpoint, the influences of its "
        "20 folds, and all that an extension needs: one left side, decoders and influences of two checkpoints. A tenth "
        "of the latents are near-duplicates of others, which makes conjugate gradient slow.",
    ]  # fmt: skip
    for kind in ("cholesky", "conjugate gradient"):
        columns = [
            "positions",
            "width",
            "latents",
            "left side, s",
            "decoder, s",
            "influences, s",
            "all, s",
            "memory, GB",
        ]
        keys = ["positions", "width", "latents", "left_s", "solve_s", "influences_s", "seconds", "memory_gb"]
        if kind != "cholesky":
            columns, keys = [*columns, "steps"], [*keys, "iterations"]
        lines += ["", f"### {kind.capitalize()}", "", *_table(columns, [[p[key] for key in keys] for p in kinds[kind]])]
    lines += ["", "## Power laws and extrapolation", "", *_extrapolation(kinds)]
    if stream:
        memory, disk = stream["memory"], stream["disk"]
        lines += [
            "",
            "## Streaming",
            "",
            f"One pass over {disk['positions']:,} positions x {disk['width']} ("
            f"{disk['positions'] * disk['width'] * 4 / 1e9:.2f} GB), ten times the window of {disk['window']:,}; "
            f"{disk['latents']:,} latents. The files' pages are dropped from memory before the fit.",
            "",
            *_table(
                ["activations from", "ms/step", "median", "memory, GB"],
                [[p["from"], p["step_ms"], p["median_ms"], p["memory_gb"]] for p in (memory, disk)],
            ),
            "",
            f"From disk a step takes {disk['step_ms'] / memory['step_ms']:.2f} times as long as from memory.",
        ]
    return "\n".join(lines) + "\n"


def _extrapolation(kinds: dict[str, list[Point]]) -> list[str]:
    """Exponents, and values at the target."""
    rows = []
    for kind, value, unit in (
        ("fit", "step_ms", "ms/step"),
        ("fit", "memory_gb", "GB"),
        ("cholesky", "seconds", "s"),
        ("cholesky", "memory_gb", "GB"),
        ("conjugate gradient", "seconds", "s"),
        ("conjugate gradient", "memory_gb", "GB"),
    ):
        law = power_law(kinds[kind], value)
        rows.append([kind, unit, *(f"{exponent:.2f}" for exponent in law[0]), _number(at(law, TARGET))])
    steps = TARGET["positions"] // BATCH
    days = at(power_law(kinds["fit"], "step_ms"), TARGET) * steps / 1e3 / 86_400
    size = " x ".join(f"{TARGET[axis]:,} {axis}" if axis != "width" else f"width {TARGET[axis]:,}" for axis in
                      ("latents", "width", "positions"))  # fmt: skip
    return [
        "value = c x positions^a x width^b x latents^c over the rows above. The last column is **extrapolated, not "
        f"measured**: {size}, on this machine's cores, assuming enough memory. The rows are small, where overheads "
        "that do not grow hide a part of the exponents; so real times may be longer.",
        "",
        *_table(["what", "unit", "positions^", "width^", "latents^", "extrapolated"], rows),
        "",
        f"**Extrapolated**: one pass of a fit over them, {steps:,} steps: {_number(days)} days of these cores.",
    ]


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    cells = [[_number(cell) if isinstance(cell, int | float) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [head, ["---:"] * len(head), *cells]]


def _number(value: float) -> str:
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
