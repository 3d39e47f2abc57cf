"""Attributions against activation patching: `python -m benchmarks.attribution --seed 1 --json`.

SmolLM2-135M-Instruct is fitted at two hook points. For random targets at the later one, each method's edges are
compared with activation patching: a feature is subtracted wherever it fires at the earlier hook point, and the edge
should equal the mean change of the target's read-out at its positions. The edges are all pairs of a target with any
source that any method ranks among the largest for any target, so that no method chooses its own test set. Reported are
the Pearson and rank correlations over all edges, the completeness, and the seconds for one target over 2,000 positions.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr
from sqlalchemy import select
from torch import Tensor

from benchmarks.runs import succeeded
from featurewatch.service.client import Client
from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Checkpoint, Code, Family, Source
from featurewatch.workers.activations.corpus import load_documents
from featurewatch.workers.activations.harvest.shards import HarvestSpec
from featurewatch.workers.activations.models.hooks import without_later_layers
from featurewatch.workers.activations.positions import Positions
from featurewatch.workers.activations.store import open_activations
from featurewatch.workers.demo.installation import Installation
from featurewatch.workers.demo.models import base_model
from featurewatch.workers.dependencies.attribution import METHODS, Attribution, Method, Options, attribute
from featurewatch.workers.dependencies.effects import activations, strengths
from featurewatch.workers.dependencies.reading import (
    Batch,
    Dictionary,
    Reading,
    Target,
    batches,
    choose_tokens,
    replacing,
    skipping,
    watching,
)
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.stages.attribute import TracedModel, trace

FAMILY = "attribution"
FIRST = 4
"""Largest sources per target and method that become edges"""
STEPS = 4
"""Steps of integrated gradients"""
COST_POSITIONS = 2000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Attributions against activation patching, on a real model.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    parser.add_argument("--hook-points", nargs=2, default=["resid_post.8", "resid_post.16"])
    parser.add_argument("--steps", type=int, default=600, help="of the fit")
    parser.add_argument("--documents", type=int, default=250)
    parser.add_argument("--targets", type=int, default=12)
    parser.add_argument("--patched", type=int, default=16, help="documents that features are taken out of")
    parser.add_argument("--folder", type=Path, help="keep the installation there, and use the fit that it holds")
    options = parser.parse_args()
    log = sys.stderr if options.json else sys.stdout
    cache = Path.home() / ".cache" / "featurewatch"
    base = base_model(cache, lambda text: print(text, file=log, flush=True))
    with tempfile.TemporaryDirectory(prefix="featurewatch-attribution-") as name:
        folder = (options.folder or Path(name)).resolve()
        if not (folder / "featurewatch.db").exists():
            folder.mkdir(exist_ok=True)
            fit(base, folder, [folder, cache], options)
        traced = open_fitted(base, folder, cache)
        print(json.dumps({"seed": options.seed} | measure(traced, options, log)))


def fit(base: Path, folder: Path, roots: list[Path], options: Any) -> None:
    """A family with the base model onboarded."""
    corpus = {"uri": "builtin:python-docs", "max_documents": options.documents, "context_length": 128}
    crosscoder = {"n_features": 2048, "k": 32, "steps": options.steps, "batch_size": 2048, "seed": options.seed}
    with Installation(folder, roots) as installation, Client(installation.url) as client:
        policy = {"max_norm_ratio": 3.0}
        client.create_family(FAMILY, options.hook_points, corpus=corpus, crosscoder=crosscoder, policy=policy)
        run = client.register(FAMILY, name="base", uri=base.as_uri())["run"]
        succeeded(client, run["id"], "base")


def open_fitted(base: Path, folder: Path, cache: Path) -> TracedModel:
    """The fitted checkpoint, ready for attribution."""
    settings = Settings(data_dir=folder, database_url="", artifacts="")
    database = Database(settings.resolved_database_url)
    store = ArtifactStore(settings.artifacts_uri, folder / "cache")
    with database.read() as session:
        checkpoint = session.scalars(select(Checkpoint)).one()
        sources = {s.hook_point: s for s in session.scalars(select(Source))}
        code = session.scalars(select(Code)).one()
        family = session.scalars(select(Family)).one()
    database.close()
    hooks, described = checkpoint.hook_points, family.positions
    assert described is not None
    kept = open_activations(store.path(str(sources[hooks[0]].activations)), hook_points=hooks)
    spec = HarvestSpec(
        uri=base.as_uri(),
        hook_points=hooks,
        corpus=load_documents(store.path(described["documents"])),
        cache_dir=folder / "cache",
        context_length=family.corpus["context_length"],
        positions=Positions.load(store.path(described["artifact"])),
        roots=(cache,),
    )
    dictionaries = {h: Dictionary.of(load_file(store.path(str(sources[h].dictionary)))) for h in hooks}
    sparse = files.load_code(store.path(code.artifact), torch.device("cpu"))[0]
    return trace(spec, sparse, dictionaries, kept.valid, lambda: None)


def measure(traced: TracedModel, options: Any, log: Any) -> dict[str, Any]:
    """All figures."""
    reading, (earlier, later) = traced.reading, options.hook_points
    targets = choose_targets(traced, later, options)
    with without_later_layers(reading.model, traced.points):
        found: dict[Method, list[Attribution]] = {}
        for method in METHODS:
            began = time.monotonic()
            found[method] = attribute(reading, targets, Options(method=method, steps=STEPS, tokens=False))
            print(f"{method}: {time.monotonic() - began:.1f} s", file=log, flush=True)
        weights = {m: np.stack([per_position(a, earlier) for a in parts]) for m, parts in found.items()}
        ranked = [np.argsort(-np.abs(w), axis=1)[:, :FIRST] for w in weights.values()]
        sources = np.unique(np.concatenate([part.ravel() for part in ranked]))
        plain, *without = ablated(reading, earlier, sources.tolist(), targets, 1024)
        truth = torch.stack([plain - other for other in without], 1).numpy()
        print(f"{truth.size} edges patched", file=log, flush=True)
        own = np.array([target.column for target in targets])[:, None] == sources
        agreement = {m: agree(w[:, sources], truth, own) for m, w in weights.items()}
        if options.folder:
            np.savez(options.folder / f"edges-{options.seed}.npz", truth=truth, own=own, **weights, sources=sources)
        for method, parts in found.items():
            agreement[method] |= completeness(parts, earlier)
        cost = seconds(traced, later, options.seed)
    return {
        "targets": [f"F{target.column}" for target in targets],
        "edges": int(truth.size),
        "own": int(own.sum()),
        "methods": agreement,
        "cost": cost,
    }


def choose_targets(traced: TracedModel, place: str, options: Any) -> list[Target]:
    """Random features that fire at least 10 times in a few random documents, but not nearly everywhere."""
    reading, rng = traced.reading, np.random.default_rng(options.seed)
    some = set(rng.permutation(len(reading.passages))[: options.patched].tolist())
    inside = torch.zeros(reading.code.n, dtype=torch.bool)
    for number in some:
        inside[reading.passages[number].rows] = True
    at = torch.arange(reading.code.n).repeat_interleave(reading.code.indptr.diff())
    firings = torch.bincount(reading.code.latents[inside[at]], minlength=reading.code.m)
    usual = ((firings >= 10) & (firings <= 0.1 * inside.sum())).nonzero().squeeze(1).numpy()
    found = []
    for column in rng.choice(usual, min(options.targets, len(usual)), replace=False).tolist():
        fires = (activations(reading.code, column) > 0) & inside
        found.append(choose_tokens(reading.passages, fires, traced.valid, place, column, 10_000, options.seed))
    return found


def per_position(found: Attribution, place: str) -> np.ndarray:
    """Edges [m]."""
    edges: np.ndarray = (found.hook_points[place].features.sum(0) / found.count.sum()).numpy()
    return edges


def agree(edges: np.ndarray, truth: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    """Correlations of edges [targets, sources] with the effects of patching.

    own: bool, edges of a feature to itself. The stream carries those along, so they are large and any method has them
    right: what a method is worth is told by the others.
    """
    others = [pearsonr(a[~o], b[~o]).statistic for a, b, o in zip(edges, truth, own, strict=True)]
    a, b = edges[~own], truth[~own]
    large = np.abs(b) >= np.quantile(np.abs(b), 0.75)
    return {
        "pearson": round(float(pearsonr(edges.ravel(), truth.ravel()).statistic), 4),
        "spearman": round(float(spearmanr(edges.ravel(), truth.ravel()).statistic), 4),
        "others_pearson": round(float(pearsonr(a, b).statistic), 4),
        "others_spearman": round(float(spearmanr(a, b).statistic), 4),
        "others_pearson_per_target_median": round(float(np.median(others)), 4),
        "others_slope": round(float((a * b).sum() / (a**2).sum()), 4),
        "others_sign_of_largest_quarter": round(float((np.sign(a) == np.sign(b))[large].mean()), 4),
    }


def completeness(found: list[Attribution], place: str) -> dict[str, Any]:
    """Medians over targets: total contribution over the target's value, and the features' share of the total."""
    totals, shares = [], []
    for one in found:
        value = float((one.value - one.constant * one.count).sum())
        total = float(one.hook_points[place].total().sum())
        totals.append(total / value)
        shares.append(float(one.hook_points[place].features.sum()) / total)
    return {"total": round(float(np.median(totals)), 4), "features": round(float(np.median(shares)), 4)}


def seconds(traced: TracedModel, place: str, seed: int) -> dict[str, Any]:
    """Seconds of one target over COST_POSITIONS positions, with the default method."""
    code = traced.reading.code
    firings = torch.bincount(code.latents, minlength=code.m)
    column = int((firings - 1.2 * COST_POSITIONS).abs().argmin())
    fires = activations(code, column) > 0
    target = choose_tokens(traced.reading.passages, fires, traced.valid, place, column, COST_POSITIONS, seed)
    began, worked = time.monotonic(), time.process_time()
    attribute(traced.reading, [target], Options())
    spent, worked = time.monotonic() - began, time.process_time() - worked
    count = sum(map(len, target.tokens))
    return {
        "positions": count,
        "seconds": round(spent, 1),
        "cpu_seconds": round(worked, 1),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


@torch.no_grad()
def ablated(
    reading: Reading, hook_point_name: str, columns: Sequence[int], targets: Sequence[Target], batch_tokens: int
) -> Tensor:
    """Mean pre-activation of targets with a feature removed at a hook point, wherever it fires: [1 + columns, targets].

    The first row is unedited. Attributions estimate this (activation patching).
    """
    hook_point, dictionary = reading.hook_point(hook_point_name), reading.dictionaries[hook_point_name]
    sums = torch.zeros(1 + len(columns), len(targets), dtype=torch.float64)
    counts = torch.tensor([sum(map(len, target.tokens)) for target in targets]).clamp_min(1)
    wanted = [i for i in range(len(reading.passages)) if any(len(target.tokens[i]) for target in targets)]
    for batch in batches(reading.passages, wanted, batch_tokens):
        with watching(reading.hook_points) as seen:
            reading.forward(batch)
        sums[0] += _pre_activations(reading, batch, targets, seen)
        x = seen[hook_point_name]
        for row, column in enumerate(columns, start=1):
            removed = torch.zeros_like(x)
            for member, i in enumerate(batch.members):
                strength = strengths(reading, i, column)
                removed[member, : len(strength)] = strength[:, None] * dictionary.decoder[column] / hook_point.factor
            without = x - removed
            with (
                skipping(reading.skippable.get(hook_point_name, ())),
                replacing(hook_point.module, lambda _output, without=without: without),
                watching(reading.hook_points) as seen,
            ):
                reading.forward(batch)
            sums[row] += _pre_activations(reading, batch, targets, seen)
    return sums / counts


def _pre_activations(reading: Reading, batch: Batch, targets: Sequence[Target], seen: dict[str, Tensor]) -> Tensor:
    """Sum of each target's pre-activations in a batch: [targets]."""
    sums = torch.zeros(len(targets), dtype=torch.float64)
    for t, target in enumerate(targets):
        for row, i in enumerate(batch.members):
            x = seen[target.hook_point][row, target.tokens[i]] * reading.hook_point(target.hook_point).factor
            sums[t] += float(reading.dictionaries[target.hook_point].read(x, target.column).double().sum())
    return sums


if __name__ == "__main__":
    main()
