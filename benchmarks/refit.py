"""Identity on planted lineages through the real service: `python -m benchmarks.refit --seed 1 --json`.

- **Re-fits**: for two seeds of the fit, v1 is fitted, v2 extends it, and v3 re-fits over both. Reported is how many of
the
  planted features with an id in v2 keep it in v3. Latents start from different values in each fit.
- **Extensions**: how many of the planted features with an id in v1 keep it after `--extensions` extensions in a row. -
**A real model** (`--model`): SmolLM2-135M-Instruct is fitted with the demo's options, its bfloat16 weights extend it,
and
  a copy with eight ablated directions re-fits over all of them. Its true features are unknown, so the report gives the
  share of live features that carry over, and the correlations of their codes.

A planted feature has the id of the latent whose code correlates most with its true magnitudes (`planted_score.match`).
The last line of output is one JSON object.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from benchmarks.planted_data import HOOK_POINT, Lineage, make_lineage, write_checkpoint
from benchmarks.planted_score import Matching, id_stability, match
from benchmarks.runs import succeeded
from featurewatch.service.client import Client
from featurewatch.workers.demo.installation import Installation
from featurewatch.workers.demo.main import Plan
from featurewatch.workers.demo.models import base_model, save_ablated, save_rounded

CROSSCODER = {"n_features": 1024, "k": 12, "steps": 2000, "batch_size": 2048}
ALPHAS = (1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25)
"""Share of eight random directions removed in the real model's last version."""
WIDTH = 576


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Do features keep their ids over re-fits and extensions?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--extensions", type=int, default=10)
    parser.add_argument("--positions", type=int, default=60_000)
    parser.add_argument("--crosscoder", type=json.loads, default={}, help="options of the family's crosscoder, as JSON")
    parser.add_argument("--shape", type=json.loads, default={}, help="fields of planted_data.Shape, as JSON")
    parser.add_argument("--model", action="store_true", help="SmolLM2 as well")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    options = parser.parse_args()
    shape = {"n_checkpoints": options.extensions + 1, "n_positions": options.positions} | options.shape
    lineage = make_lineage(options.seed, **shape)
    log = sys.stderr if options.json else sys.stdout
    with tempfile.TemporaryDirectory(prefix="featurewatch-refit-") as folder:
        data_dir, releases = Path(folder, "data"), Path(folder, "releases")
        data_dir.mkdir()
        for checkpoint in range(1, options.extensions + 2):
            write_checkpoint(lineage, checkpoint, releases / f"v{checkpoint}")
        cache = Path.home() / ".cache" / "featurewatch"
        with Installation(data_dir, [releases, cache]) as installation, Client(installation.url) as client:
            families = Families(lineage, client, releases, CROSSCODER | options.crosscoder, log)
            result = {
                "seed": options.seed,
                "refits": [families.refit(seed) for seed in (options.seed, options.seed + 1)],
                "extensions": families.extend(options.seed, options.extensions),
            }
            if options.model:
                result["smollm2"] = families.smollm(options.seed, cache)
    print(json.dumps(result))


class Families:
    """Families of one lineage, each with its own seed of the fit."""

    def __init__(self, lineage: Lineage, client: Client, releases: Path, crosscoder: dict[str, Any], log: Any) -> None:
        self.lineage, self.client, self.releases, self.crosscoder = lineage, client, releases, crosscoder
        self.log = log

    def refit(self, seed: int) -> dict[str, Any]:
        """v1 fitted, v2 extended, v3 re-fitted."""
        name = self._family(f"refit-{seed}", seed)
        self._judge(name, 1, "auto")
        self._judge(name, 2, "extend")
        before = self._matching(name)
        seconds = self._judge(name, 3, "refit")
        after = self._matching(name)
        return {
            "seed": seed,
            "planted_carried": id_stability(before, after),
            "planted_before": int((before.latent >= 0).sum()),
        } | self._identity(name, seconds)

    def smollm(self, seed: int, cache: Path) -> dict[str, Any]:
        """The base fitted, its weights in bfloat16 extended, a copy with ablated directions re-fitted."""
        plan, name = Plan(), "smollm2"
        base = base_model(cache, lambda text: print(text, file=self.log, flush=True))
        rounded, edited = self.releases / "rounded", self.releases / "edited"
        save_rounded(base, rounded)
        crosscoder = plan.crosscoder | {"seed": seed}
        self.client.create_family(
            name, [plan.hook_point], corpus=plan.corpus, crosscoder=crosscoder, policy=plan.policy
        )
        self._register(name, "v1", base.as_uri(), "auto")
        self._register(name, "v2", rounded.resolve().as_uri(), "extend")
        code = sparse.load_npz(self.client.download_codes(name, self.releases / "smollm2.npz"))
        live = int((np.bincount(code.indices, minlength=code.shape[1]) > 0).sum())
        directions = torch.nn.functional.normalize(
            torch.randn(len(ALPHAS), WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1
        )
        save_ablated(base, edited, directions, ALPHAS)
        seconds = self._register(name, "v3", edited.resolve().as_uri(), "refit")
        result = self._identity(name, seconds)
        return result | {"live_before": live, "carried": round(result["links"]["carried"] / live, 4)}

    def _identity(self, name: str, seconds: dict[str, float]) -> dict[str, Any]:
        links = list(self.client.lineage(name))
        scores = [link["score"] for link in links if link["kind"] == "carried"]
        return {
            "links": Counter(link["kind"] for link in links),
            "carried_scores": {f"q{q:02d}": round(float(np.quantile(scores, q / 100)), 4) for q in (5, 25, 50, 75, 95)},
            "seconds": seconds,
            "fvu": [c["quality"]["fvu"] for c in self.client.checkpoints(name) if c["quality"]],
        }

    def extend(self, seed: int, count: int) -> dict[str, Any]:
        """Fit v1, then extend it several times."""
        name = self._family(f"extend-{seed}", seed)
        self._judge(name, 1, "auto")
        first, course = self._matching(name), []
        for checkpoint in range(2, count + 2):
            self._judge(name, checkpoint, "extend")
            course.append(id_stability(first, self._matching(name)))
        return {"count": count, "same_after": course, "same": course[-1]}

    def _family(self, name: str, seed: int) -> str:
        # Policies never re-fit here of their own accord: every checkpoint says what it wants.
        self.client.create_family(name, [HOOK_POINT], crosscoder=self.crosscoder | {"seed": seed})
        return name

    def _judge(self, family: str, checkpoint: int, fit: str) -> dict[str, float]:
        """Register a checkpoint and wait for its verdicts; seconds by stage."""
        name = f"v{checkpoint}"
        return self._register(family, name, f"activations+{(self.releases / name).resolve().as_uri()}", fit)

    def _register(self, family: str, name: str, uri: str, fit: str) -> dict[str, float]:
        run = self.client.register(family, name=name, uri=uri, fit=fit)["run"]
        run = succeeded(self.client, run["id"], f"{family} {name}")
        print(f"{family} {name}: {(run['result'] or {}).get('fit')}, {run['seconds']}", file=self.log, flush=True)
        return run["seconds"]

    def _matching(self, family: str) -> Matching:
        path = self.client.download_codes(family, self.releases / f"{family}.npz")
        numbers = [int(feature[1:]) for feature in self.client.code_ids(family)]
        return match(self.lineage.codes, sparse.csr_array(sparse.load_npz(path)), numbers)


if __name__ == "__main__":
    main()
