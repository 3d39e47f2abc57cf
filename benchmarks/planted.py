"""Verdicts on planted lineages through the real service: `python -m benchmarks.planted --scenario all --seed 1 --json`.

Writes a planted lineage, starts an embedded installation in a temporary folder, registers the checkpoints one by one
over REST, and scores the verdicts (rules in `planted_score`). The last line of output is one JSON object: the
lineage's, or with several lineages (`--seeds`, several scenarios) `{"lineages": [...], "means": {...}}`.

`--baselines` scores methods from the literature on the same lineages. `--results FILE` stores the results, one entry
per scenario and seed. `--write-docs` writes docs/planted.md from docs/benchmarks/planted.json without running anything.

Times are those of the runs' stages except `harvest`, which only checks and copies precomputed activations: the first
checkpoint's for the fit, each later one's for an extension.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scipy import sparse

from benchmarks.planted_baselines import baselines
from benchmarks.planted_calibration import coverage, place_coverage, q_values
from benchmarks.planted_data import HOOK_POINT, SCENARIOS, Lineage, make_lineage, scenario, write_checkpoint
from benchmarks.planted_places_score import score_places
from benchmarks.planted_report import page, summary
from benchmarks.planted_score import Matching, id_stability, match, ratio_errors, score, successors_named
from benchmarks.planted_shape import WEAKENED
from benchmarks.runs import succeeded
from featurewatch.service.client import Client
from featurewatch.service.verdicts.statuses import Status
from featurewatch.workers.demo.installation import Installation

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "benchmarks" / "planted.json"
FAMILY = "planted"
CROSSCODER = {"n_features": 1024, "k": 12, "steps": 2000, "batch_size": 2048}
GRADED = WEAKENED in {status.value for status in Status}
"""Whether the service has graded statuses. If not, a weakened or strengthened feature is right to be `present`."""
SMALL_CROSSCODER = {"n_features": 256, "k": 6, "steps": 600, "batch_size": 1024}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Verdicts on planted lineages, scored against the truth.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], help="several: 1,2,3")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=["plain"])
    parser.add_argument("--small", action="store_true", help="a quarter of features and width, for a quick look")
    parser.add_argument("--checkpoints", type=int, default=6)
    parser.add_argument("--positions", type=int, help="60000, or 12000 with --small")
    parser.add_argument("--crosscoder", type=json.loads, default={}, help="options of the family's crosscoder, as JSON")
    parser.add_argument("--policy", type=json.loads, default={}, help="thresholds of the family's policy, as JSON")
    parser.add_argument("--shape", type=json.loads, default={}, help="fields of planted_shape.Shape, as JSON")
    parser.add_argument("--baselines", action="store_true", help="also what the methods of the literature say")
    parser.add_argument("--results", type=Path, help="file of results to add to")
    parser.add_argument("--write-docs", action="store_true", help=f"write docs/planted.md of {RESULTS.name}; no run")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    options = parser.parse_args()
    if options.write_docs:
        (DOCS / "planted.md").write_text(page(json.loads(RESULTS.read_text())))
        return
    results = []
    for name in options.scenario:
        for seed in options.seeds or [options.seed]:
            results.append(run(name, seed, options))
            if options.results:
                keep(results[-1], options.results)
    print(json.dumps(results[0] if len(results) == 1 else {"lineages": results, "means": summary(results)}))


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one lineage through a separate installation, and the baselines if requested."""
    log = sys.stderr if options.json else sys.stdout
    print(f"{name}, seed {seed}", file=log, flush=True)
    sizes = {"n_checkpoints": options.checkpoints} | ({"n_positions": options.positions} if options.positions else {})
    lineage = make_lineage(seed, scenario(name, small=options.small, **(sizes | options.shape)))
    crosscoder = (SMALL_CROSSCODER if options.small else CROSSCODER) | {"seed": seed} | options.crosscoder
    with tempfile.TemporaryDirectory(prefix="featurewatch-planted-") as folder:
        data_dir, releases = Path(folder, "data"), Path(folder, "releases")
        data_dir.mkdir()
        with Installation(data_dir, [releases]) as installation, Client(installation.url) as client:
            client.create_family(FAMILY, [HOOK_POINT], crosscoder=crosscoder, policy=options.policy)
            result = measure(lineage, releases, client, log=log)
    if options.baselines:
        result["baselines"] = baselines(lineage, crosscoder, lambda line: print(line, file=log, flush=True))
    return {"seed": seed, "scenario": name, "shape": asdict(lineage.shape), "crosscoder": crosscoder} | result


def keep(result: dict[str, Any], path: Path) -> None:
    """Add a result to a file of results, replacing an earlier one of the same scenario and seed."""
    known = json.loads(path.read_text()) if path.exists() else []
    others = [r for r in known if (r["scenario"], r["seed"]) != (result["scenario"], result["seed"])]
    short = {key: value for key, value in result.items() if key not in ("quality", "seconds")}
    path.write_text(json.dumps([*others, short], indent=1) + "\n")


def measure(lineage: Lineage, releases: Path, client: Client, *, log: Any) -> dict[str, Any]:
    """Register every checkpoint of a lineage and score the verdicts."""
    seconds: dict[int, dict[str, float]] = {}
    quality: dict[int, Any] = {}
    first: Matching | None = None
    for checkpoint in range(1, lineage.shape.n_checkpoints + 1):
        seconds[checkpoint] = register(lineage, checkpoint, releases, client)
        quality[checkpoint] = client.checkpoint(FAMILY, f"v{checkpoint}")["quality"]
        if first is None:
            first = match_codes(lineage, client, releases)
        stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds[checkpoint].items())
        print(f"v{checkpoint}: {stages}", file=log, flush=True)
    assert first is not None
    last = match_codes(lineage, client, releases)
    rows = {
        checkpoint: {int(row["id"][1:]): row for row in client.features(FAMILY, checkpoint=f"v{checkpoint}")}
        for checkpoint in range(2, lineage.shape.n_checkpoints + 1)
    }
    verdicts = {checkpoint: {n: row["status"] for n, row in part.items()} for checkpoint, part in rows.items()}
    places = {checkpoint: {n: row.get("places") for n, row in part.items()} for checkpoint, part in rows.items()}
    ratios = {checkpoint: {n: row["projection_ratio"] for n, row in part.items()} for checkpoint, part in rows.items()}
    named = {
        checkpoint: {n: [int(s["id"][1:]) for s in row["successors"]] for n, row in part.items()}
        for checkpoint, part in rows.items()
    }
    began = work_seconds(seconds[1])
    extensions = [work_seconds(seconds[c]) for c in range(2, lineage.shape.n_checkpoints + 1)]
    return score(lineage, verdicts, last, graded=GRADED) | {
        "graded": GRADED,
        "places": score_places(lineage, places, last),
        "place_coverage": place_coverage(lineage, rows, last),
        "successors_named": successors_named(lineage, named, last),
        "ratio_errors": ratio_errors(lineage, ratios, last),
        "coverage": coverage(lineage, rows, last),
        "q_values": q_values(lineage, rows, last, client.family(FAMILY)["policy"]["fdr"]),
        "id_stability": id_stability(first, last),
        "features": client.family(FAMILY)["n_features"],
        "fit_seconds": round(began, 2),
        "extension_seconds": [round(value, 2) for value in extensions],
        "extension_share": round(sum(extensions) / len(extensions) / began, 4),
        "slowest_extension_share": round(max(extensions) / began, 4),
        "seconds": seconds,
        "quality": quality,
    }


def register(lineage: Lineage, checkpoint: int, releases: Path, client: Client) -> dict[str, float]:
    """Register a checkpoint and wait for its verdicts; seconds by stage."""
    name = f"v{checkpoint}"
    write_checkpoint(lineage, checkpoint, releases / name)
    uri = f"activations+{(releases / name).resolve().as_uri()}"
    parent = f"v{checkpoint - 1}" if checkpoint > 1 else None
    hooks = [lineage.hook_point(checkpoint)]
    run = client.register(FAMILY, name=name, uri=uri, parent=parent, hook_points=hooks)["run"]
    return succeeded(client, run["id"], name)["seconds"]


def match_codes(lineage: Lineage, client: Client, folder: Path) -> Matching:
    """Match planted features to the latents of the service's current code."""
    path = client.download_codes(FAMILY, folder / f"codes-{time.monotonic_ns()}.npz")
    numbers = [int(feature[1:]) for feature in client.code_ids(FAMILY)]
    return match(lineage.codes, sparse.csr_array(sparse.load_npz(path)), numbers)


def work_seconds(stages: dict[str, float]) -> float:
    """Seconds of a run without reading the activations."""
    return sum(value for stage, value in stages.items() if stage != "harvest")


if __name__ == "__main__":
    main()
