"""The trainer against public ones, interleaved: `python -m benchmarks.fit`, see docs/benchmarks.md.

All trainers run the same steps on the same synthetic activations and take turns of a few steps, so that other load on
the machine affects all of them. Writes docs/benchmarks.md with a plot and the raw figures. `--quick` is a smoke test of
a minute and writes nothing.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from benchmarks.fit_data import Planted, write_activations
from benchmarks.fit_report import summary, write_page
from benchmarks.fit_rounds import FLOOR, OURS, PEERS, ROOT, Results, peers_environment, run_rounds
from benchmarks.peers.participant import Job
from featurewatch.workers.activations.models.loading import compute_dtype
from featurewatch.workers.crosscoder.config import FitConfig
from featurewatch.workers.crosscoder.fit.order import Order

HELD_OUT = 16_384
GPU = {"width": 2304, "latents": 73_728, "k": 100, "batch": 4096, "positions": 400_000, "precision": "bfloat16"}


def main() -> None:
    """Run the benchmark."""
    options = parse(sys.argv[1:])
    job, planted = make_job(options, ""), planted_for(options)
    python = peers_environment(options.environment) if options.peers else Path(sys.executable)
    with tempfile.TemporaryDirectory(prefix="featurewatch-fit-") as folder:
        job = make_job(options, folder)
        say("making the activations")
        write_activations(planted, job.positions + options.held_out, Path(folder, "activations.npy"))
        order = Order(job.positions, job.batch, job.seed, FitConfig.window)
        np.save(Path(folder, "rows.npy"), torch.stack([order.rows(s) for s in range(job.steps)]).numpy())
        native = str(compute_dtype(job.device)).removeprefix("torch.")  # what the service computes in
        results = run_rounds(job, options.peers, options.rounds, python, say, options.rates, native)
    result = {"configuration": configuration(job, planted, options), "machine": machine()} | figures(results, job)
    if not options.quick:
        write_page(result, options.docs)
    print(summary(result), file=sys.stderr if options.json else sys.stdout)
    print(json.dumps(result))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; on a GPU the defaults are those of a model's residual stream."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    first.add_argument("--quick", action="store_true", help="few steps on little data, to see that everything runs")
    early, _ = first.parse_known_args(arguments)
    parser = argparse.ArgumentParser(description="Our trainer against public ones.", parents=[first])
    parser.add_argument("--sources", type=int, default=2)
    parser.add_argument("--width", type=int, default=256, help="of each source")
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--positions", type=int, default=200_000)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", default=",".join(PEERS), help="which public trainers, with commas; empty: none")
    parser.add_argument("--rates", type=json.loads, default={}, help='learning rates as JSON, {"featurewatch": 0.004}')
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--environment", type=Path, default=cache / "featurewatch/public-trainers")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder for page, plot and raw figures")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    if early.device == "cuda":
        parser.set_defaults(**GPU)
    if early.quick:
        parser.set_defaults(positions=20_000, steps=25, rounds=2)
    options = parser.parse_args(arguments)
    options.peers = [name for name in options.peers.split(",") if name]
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"no such trainer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    if options.held_out < options.batch or options.positions < options.batch:
        parser.error("--positions and --held-out must hold a batch at least")
    if not 0 < options.rounds < options.steps:
        parser.error("--rounds must be fewer than --steps: every round takes a step")
    return options


def make_job(options: argparse.Namespace, folder: str) -> Job:
    """The job of every trainer."""
    return Job(
        folder=folder,
        widths=(options.width,) * options.sources,
        latents=options.latents,
        k=options.k,
        batch=options.batch,
        steps=options.steps,
        positions=options.positions,
        dead_after=min(FitConfig.dead_after, options.steps * options.batch // 4),
        seed=options.seed,
        threads=options.threads,
        device=options.device,
        precision=options.precision,
    )


def planted_for(options: argparse.Namespace) -> Planted:
    """As many planted features as latents, with fewer active per position than k allows: 20 for k = 32."""
    return Planted((options.width,) * options.sources, options.latents, options.k * 5 / 8, options.seed)


def configuration(job: Job, planted: Planted, options: argparse.Namespace) -> dict[str, Any]:
    """The configuration behind the figures."""
    names = ("latents", "k", "batch", "steps", "positions", "seed", "threads", "device", "precision", "dead_after")
    data = {"features": planted.features, "active": planted.active, "noise": planted.noise, "spread": planted.spread}
    return {
        "widths": list(job.widths), **{name: getattr(job, name) for name in names},
        "held_out": options.held_out, "rounds": options.rounds, "data": data,
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """The machine behind the figures."""
    processor = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = described.read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor, "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__}


def figures(results: Results, job: Job) -> dict[str, Any]:
    """Medians over rounds, and ratios within rounds, whose trainers ran under the same load."""
    floor, ours = results.seconds[FLOOR], results.seconds[OURS]
    trainers = {}
    for name, quality in results.quality.items():
        seconds = results.seconds[name]
        trainers[name] = quality | {
            "ms": 1000 * median(seconds),
            "positions_per_second": job.batch / median(seconds),
            "ours_over_it": spread([a / b for a, b in zip(seconds, ours, strict=True)]),
            "step_over_product": spread([a / b for a, b in zip(seconds, floor, strict=True)]),
            "rounds_ms": [round(1000 * s, 3) for s in seconds],
        }
    product = {"ms": 1000 * median(floor), "rounds_ms": [round(1000 * s, 3) for s in floor]}
    return {"trainers": trainers, "product": product}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def say(text: str) -> None:
    """Print progress, separate from the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
