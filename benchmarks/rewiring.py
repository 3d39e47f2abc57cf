"""Dependencies where nothing changed, and their cost: `python -m benchmarks.rewiring --seed 1 --json`.

SmolLM2-135M-Instruct, the demo's model, read at two hook points, and the same weights in bfloat16. Dependencies of
random features are found in both: none of them should be `rewired`, and no edge gained or lost. Then the dependencies
and the effect of one frequent feature over the default number of positions, for the seconds of that run.

The last line of output is one JSON object.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.runs import succeeded
from featurewatch.service.client import Client
from featurewatch.service.dependencies.schemas import MAX_FEATURES
from featurewatch.workers.demo.installation import Installation
from featurewatch.workers.demo.main import Plan
from featurewatch.workers.demo.models import base_model

FAMILY, HOOK_POINTS = "rewiring", ["resid_post.8", "resid_post.16"]
RATES = (0.002, 0.1)
"""Range of firing rates of the random features: neither too rare nor almost everywhere."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Dependencies of the same weights twice, and their cost.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--positions", type=int, default=400, help="of each feature, in the comparison")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    options = parser.parse_args()
    log, plan = sys.stderr if options.json else sys.stdout, Plan()
    cache = Path.home() / ".cache" / "featurewatch"
    base = base_model(cache, lambda text: print(text, file=log, flush=True))
    with tempfile.TemporaryDirectory(prefix="featurewatch-rewiring-") as temporary:
        folder = Path(temporary).resolve()
        same, data = folder / "same", folder / "data"
        data.mkdir()
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, local_files_only=True).save_pretrained(same)
        AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(same)
        with Installation(data, [folder, cache]) as installation, Client(installation.url) as client:
            bench = Bench(client, log)
            crosscoder = plan.crosscoder | {"seed": options.seed}
            client.create_family(FAMILY, HOOK_POINTS, corpus=plan.corpus, crosscoder=crosscoder, policy=plan.policy)
            for model, parent in ((base, None), (same, "base")):
                name = "same" if parent else "base"
                run = client.register(FAMILY, name=name, uri=model.as_uri(), parent=parent)["run"]
                succeeded(client, run["id"], name, log)
            rows = [row for row in client.features(FAMILY, checkpoint="same") if row["status"] == "present"]
            rates = {row["id"]: row["firing_rate"] or 0.0 for row in rows}
            fit = sorted(one for one, rate in rates.items() if RATES[0] <= rate <= RATES[1])
            drawn = random.Random(options.seed).sample(fit, min(options.features, len(fit)))
            result = bench.compare(drawn, options.positions) | {"positions": options.positions}
            result["one_feature_seconds"] = bench.find("base", [max(fit, key=lambda one: rates[one])], {})
    print(json.dumps({"seed": options.seed} | result))


class Bench:
    """Runs of one family."""

    def __init__(self, client: Client, log: Any) -> None:
        self.client, self.log = client, log

    def compare(self, features: list[str], positions: int) -> dict[str, Any]:
        """Number of features reported as rewired between equal weights, and number of changed edges."""
        for checkpoint in ("base", "same"):
            for start in range(0, len(features), MAX_FEATURES):
                self.find(
                    checkpoint, features[start : start + MAX_FEATURES], {"positions": positions, "effects": False}
                )
        found = [self.client.dependencies(FAMILY, one, checkpoint="same", baseline="base") for one in features]
        compared = [one for one in (each["comparison"] for each in found) if one and one["rewired"] is not None]
        edges = sum(len(one["graph"]["edges"]) for one in found)
        changed = sum(len(one[kind]) for one in compared for kind in ("gained", "lost", "changed"))
        return {
            "features": len(features),
            "compared": len(compared),
            "rewired": sum(one["rewired"] for one in compared),
            "edges": edges,
            "edges_changed": changed,
            "least_agreement": min((one["agreement"] for one in compared), default=None),
        }

    def find(self, checkpoint: str, features: list[str], options: dict[str, Any]) -> dict[str, float]:
        """Find dependencies of some features; seconds of the stages."""
        run = self.client.find_dependencies(FAMILY, checkpoint, features, **options)
        return succeeded(self.client, run["id"], f"dependencies in {checkpoint}", self.log)["seconds"]


if __name__ == "__main__":
    main()
