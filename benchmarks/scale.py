"""How the time and memory of fits and extensions grow: `python -m benchmarks.scale` writes docs/scale.md.

Every point runs in its own process, so that its peak memory can be measured. Positions, width and latents vary one at a
time from a base; a power law is fitted to all points by least squares of the logarithms, and extrapolated. Takes under
ten minutes on two idle cores. `--quick` is a smoke test of a minute and writes nothing.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.fit_data import Planted, draw_code
from benchmarks.scale_report import page
from featurewatch.workers.activations.store import open_activations
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import fit
from featurewatch.workers.crosscoder.fit.order import RUN
from featurewatch.workers.crosscoder.regress import Regression, assign_folds

K, BATCH, FOLDS = 32, 2048, 20
TWINS = 0.1
"""Share of latents that nearly duplicate another one, which makes the regression hard."""
FIT = {"positions": 16_384, "width": 512, "latents": 2048, "checkpoints": 1}
EXTENSION = {"positions": 20_000, "width": 256, "latents": 2048}
SWEEPS: dict[str, dict[str, list[int]]] = {
    "fit": {
        "latents": [1024, 4096, 8192, 16_384],
        "width": [128, 256, 1024],
        "positions": [65_536, 262_144],
        "checkpoints": [2, 4],
    },
    "cholesky": {"latents": [1024, 4096, 8192], "width": [128, 512, 1024], "positions": [10_000, 40_000, 80_000]},
    "conjugate gradient": {
        "latents": [1024, 4096, 8192, 16_384],
        "width": [128, 512, 1024],
        "positions": [10_000, 40_000, 80_000],
    },
}
WINDOWS, WINDOW = 10, 40_960


def main() -> None:
    """Measure every point, or a single one in this process."""
    parser = argparse.ArgumentParser(description="How time and memory grow with the size of the problem.")
    parser.add_argument("--quick", action="store_true", help="small points, nothing written")
    parser.add_argument("--json", action="store_true", help="the points as one object on standard output")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "scale.md")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(options.point | KINDS[options.point["kind"]](options.point)))
        return
    points = []
    for point in _points(options.quick):
        points.append(_apart(point))
        print(points[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(points))
    text = page(points, {"fit": FIT, "cholesky": EXTENSION, "conjugate gradient": EXTENSION}, torch.get_num_threads())
    if options.quick:
        print(text, file=sys.stderr)
    else:
        options.out.write_text(text)


def _points(quick: bool) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for kind, axes in SWEEPS.items():
        base = FIT if kind == "fit" else EXTENSION
        base = {axis: value // 4 if quick and axis != "checkpoints" else value for axis, value in base.items()}
        points.append({"kind": kind, "axis": "base"} | base)
        for axis, values in axes.items():
            chosen = [base[axis] * 2] if quick else values
            points += [{"kind": kind, "axis": axis} | base | {axis: value} for value in chosen]
    window = WINDOW // 10 if quick else WINDOW
    streams = [{"kind": "stream", "from": place, "positions": WINDOWS * window, "window": window, "width": 512,
                "latents": 512 if quick else 2048} for place in ("memory", "disk")]  # fmt: skip
    return points + streams


def _apart(point: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{point} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def fit_point(point: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a step, and memory that the fit adds to the activations."""
    sources = point["checkpoints"]
    layout = Layout((point["width"],) * sources, tuple(range(sources)))
    x = torch.randn(point["positions"], layout.width, generator=torch.Generator().manual_seed(0))
    memory = Memory()
    config = FitConfig(point["latents"], K, steps=12, batch_size=BATCH)
    took = _steps(lambda rows: x[rows], len(x), layout, config)
    return {"step_ms": statistics.median(took[2:]) * 1e3, "memory_gb": memory.added()}


def _steps(read: Callable[[Tensor], Tensor], n: int, layout: Layout, config: FitConfig, **more: Any) -> list[float]:
    ends = [time.perf_counter()]
    fit(read, n, layout, config, on_step=lambda state: ends.append(time.perf_counter()), **more)
    return np.diff(ends).tolist()


def regression_point(point: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the left side, of one checkpoint's decoder and of the influences of all folds."""
    n, m, width = point["positions"], point["latents"], point["width"]
    random = np.random.default_rng(0)
    twins = round(m * TWINS)
    own = draw_code(Planted((width,), m - twins, K / (1 + TWINS)), n, random).tocsc()
    copies = own[:, random.choice(m - twins, twins, replace=False)]
    copies.data = copies.data * np.exp(0.05 * random.standard_normal(len(copies.data), np.float32))
    code = Code.from_scipy(scipy.sparse.hstack([own, copies]).tocsr())
    x = code.decode(torch.randn(m, width) / width**0.5) + 0.3 * torch.randn(n, width) / width**0.5
    folds = assign_folds(torch.arange(n) // 100, FOLDS)

    def read(rows: Tensor) -> Tensor:
        return x[rows]

    memory, marks = Memory(), [time.perf_counter()]
    up_to = m if point["kind"] == "cholesky" else 0
    regression = Regression(code, torch.arange(n), folds, dense_up_to=up_to)
    marks.append(time.perf_counter())
    solution = regression.solve(read)
    marks.append(time.perf_counter())
    iterations = getattr(regression.left, "iterations", 0)
    influences = regression.influences(read, solution)
    next(influences)  # with the inverse, where there is one
    marks.append(time.perf_counter())
    for _ in range(2):
        next(influences)
    last = time.perf_counter()
    left, solve, first = np.diff(marks).tolist()
    rest = (last - marks[-1]) / 2 * (FOLDS - 1)
    # Of an extension: one left side, and decoders and influences of parent and new checkpoint.
    return {
        "left_s": left,
        "solve_s": solve,
        "influences_s": first + rest,
        "seconds": left + 2 * (solve + first + rest),
        "iterations": iterations,
        "memory_gb": memory.added(),
    }


def stream_point(point: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a step over one pass of activations that exceed the window tenfold."""
    n, width = point["positions"], point["width"]
    with tempfile.TemporaryDirectory(prefix="featurewatch-scale-") as place:
        folder = Path(place)
        shards = []
        generator = torch.Generator().manual_seed(0)
        for number, start in enumerate(range(0, n, WINDOW)):
            shards.append(f"x-{number:05d}.safetensors")
            part = torch.randn(min(WINDOW, n - start), width, generator=generator)
            save_file({"activations": part}, folder / shards[-1])
        save_file({"document": torch.arange(n) // 100}, folder / "documents.safetensors")
        manifest = {"format": "featurewatch-activations/1", "model": "random", "positions": n,
                    "hook_points": {"x": {"d_model": width, "shards": shards}},
                    "documents": "documents.safetensors"}  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        held = None
        if point["from"] == "memory":
            held = open_activations(folder, hook_points=["x"]).read("x", slice(0, n))
        for shard in shards:  # none of the files' pages is left in memory, and each is wanted once
            with (folder / shard).open("rb+") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        opened = open_activations(folder, hook_points=["x"])
        config = FitConfig(point["latents"], K, steps=n // BATCH, batch_size=BATCH, window=point["window"])
        memory = Memory()
        if held is not None:
            took = _steps(lambda rows: held[rows], n, Layout((width,)), config)
        else:
            took = _steps(
                lambda rows: opened.read("x", rows.numpy()), n, Layout((width,)), config,
                read_ahead=lambda runs: opened.read_ahead(runs.numpy(), RUN),
            )  # fmt: skip
    return {"step_ms": statistics.fmean(took) * 1e3, "median_ms": statistics.median(took) * 1e3,
            "memory_gb": memory.added()}  # fmt: skip


class Memory:
    """Measure the growth of the process's memory."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.before = _status("VmRSS")

    def added(self) -> float:
        """Peak memory in GB above the initial memory."""
        return (_status("VmHWM") - self.before) / 1e6


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


KINDS = {
    "fit": fit_point,
    "cholesky": regression_point,
    "conjugate gradient": regression_point,
    "stream": stream_point,
}

if __name__ == "__main__":
    main()
