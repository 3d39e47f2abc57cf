"""Nulls through the real service: `python -m benchmarks.nulls --seed 1 --json`. What is reported if nothing changed?

- **Calibration** of the last checkpoint of a planted family, after some features were suppressed, removed and born,
with
  the default policy: the result of `featurewatch calibrate`. `--model` also calibrates SmolLM2-135M-Instruct, fitted
  with the demo's options: read again, in bfloat16, in int8, halves of the corpus, a short fine-tune.
- **Chains** of `--chain` checkpoints, each a child of the previous one. *identical*: the same activations every time.
  *noisy*: the same features at the same strengths, with new noise, directions that turn by 4 degrees on average, and a
  drifting scale. Rules on every alarming status are set. Reported are the alerts, and the verdicts other than present
  and indeterminate.

The last line of output is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.planted_data import HOOK_POINT, Lineage, make_lineage, write_checkpoint
from benchmarks.runs import succeeded
from featurewatch.service.client import Client
from featurewatch.service.verdicts.statuses import ALARMING
from featurewatch.workers.demo.installation import Installation
from featurewatch.workers.demo.main import Plan
from featurewatch.workers.demo.models import base_model

CROSSCODER = {"n_features": 1024, "k": 12, "steps": 2000, "batch_size": 2048}
CHAIN_SHAPE = {
    "n_positions": 20_000, "width": 128, "n_planted": 256, "n_suppressed": 0, "n_removed": 0, "n_born": 0,
    "lowest_rate": 0.005,
}  # fmt: skip
CHAIN_CROSSCODER = {"n_features": 512, "k": 8, "steps": 1500, "batch_size": 1024}
QUIET = ("present", "indeterminate")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="What is said of checkpoints in which nothing changed?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chain", type=int, default=20)
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--positions", type=int, default=60_000)
    parser.add_argument("--crosscoder", type=json.loads, default={}, help="options of the family's crosscoder, as JSON")
    parser.add_argument("--shape", type=json.loads, default={}, help="fields of planted_data.Shape, as JSON")
    parser.add_argument("--model", action="store_true", help="SmolLM2 as well")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    options = parser.parse_args()
    log = sys.stderr if options.json else sys.stdout
    cache = Path.home() / ".cache" / "featurewatch"
    with tempfile.TemporaryDirectory(prefix="featurewatch-nulls-") as folder:
        data_dir, releases = Path(folder, "data"), Path(folder, "releases")
        data_dir.mkdir()
        with Installation(data_dir, [releases, cache]) as installation, Client(installation.url) as client:
            nulls = Nulls(client, releases, options.seed, options.splits, log)
            shape = {"n_checkpoints": 2, "n_positions": options.positions} | options.shape
            result: dict[str, Any] = {"seed": options.seed}
            result["planted"] = nulls.planted(shape, CROSSCODER | options.crosscoder)
            result["chain"] = {name: nulls.chain(name, options.chain) for name in ("identical", "noisy")}
            if options.model:
                result["smollm2"] = nulls.smollm(cache)
    print(json.dumps(result))


class Nulls:
    """Families of one installation in which nothing changes."""

    def __init__(self, client: Client, releases: Path, seed: int, splits: int, log: Any) -> None:
        self.client, self.releases, self.seed, self.splits, self.log = client, releases, seed, splits, log

    def planted(self, shape: dict[str, Any], crosscoder: dict[str, Any]) -> dict[str, Any]:
        """Calibrate the last checkpoint of a planted lineage with events."""
        lineage = make_lineage(self.seed, **shape)
        self.client.create_family("planted", [HOOK_POINT], crosscoder=crosscoder | {"seed": self.seed})
        for checkpoint in range(1, lineage.shape.n_checkpoints + 1):
            self.register("planted", f"v{checkpoint}", self.write(lineage, checkpoint, "planted"))
        return self.calibrate("planted")

    def smollm(self, cache: Path) -> dict[str, Any]:
        """Calibrate a small language model."""
        plan, folder = Plan(), base_model(cache, lambda line: print(line, file=self.log))
        crosscoder = plan.crosscoder | {"seed": self.seed}
        self.client.create_family(
            "smollm2", [plan.hook_point], corpus=plan.corpus, crosscoder=crosscoder, policy=plan.policy
        )
        self.register("smollm2", "v1", folder.resolve().as_uri())
        return self.calibrate("smollm2")

    def calibrate(self, family: str) -> dict[str, Any]:
        """The family's thresholds and their nulls, without the grids."""
        self.rules(family)
        made = self.client.calibrate(family, splits=self.splits, seed=self.seed)
        run = self.client.wait(made["id"], timeout=7200, interval=0.5)
        if run["state"] != "succeeded":
            raise SystemExit(f"{family}: the calibration {run['state']}: {run['error']}")
        result = self.client.calibration(family, made["id"])["result"] or {}
        for null in result["nulls"]:
            print(f"{family}: {null['null']}: {null['features']}", file=self.log, flush=True)
        nulls = [{key: value for key, value in null.items() if key != "grid"} for null in result["nulls"]]
        return result | {"nulls": nulls, "seconds": run["seconds"]}

    def rules(self, family: str) -> None:
        """A rule for every kind of change, from a single feature on."""
        for status in (*ALARMING, "emerged"):
            condition = {"kind": "status_count", "status": status, "at_least": 1}
            self.client.create_alert_rule(status, condition, family=family)

    def chain(self, kind: str, length: int) -> dict[str, Any]:
        """Register checkpoints that are identical or differ by noise, and count their verdicts and alerts."""
        began = time.monotonic()
        lineage = make_lineage(self.seed, n_checkpoints=1 if kind == "identical" else length, **CHAIN_SHAPE)
        self.client.create_family(kind, [HOOK_POINT], crosscoder=CHAIN_CROSSCODER | {"seed": self.seed})
        self.rules(kind)
        said, last = Counter[str](), Counter[str]()
        for checkpoint in range(1, length + 1):
            uri = self.write(lineage, min(checkpoint, lineage.shape.n_checkpoints), kind)
            self.register(kind, f"v{checkpoint}", uri)
            last = Counter(row["status"] for row in self.client.features(kind, checkpoint=f"v{checkpoint}"))
            if checkpoint > 1:
                said += last
        against_first = Counter(row["status"] for row in self.client.diff(kind, "v1", f"v{length}"))
        changed = sum(count for status, count in said.items() if status not in QUIET)
        found = {
            "checkpoints": length,
            "features": sum(last.values()),
            "statuses": dict(said),
            "verdicts": sum(said.values()),
            "changed": changed,
            "alerts": len(list(self.client.alerts(family=kind))),
            "against_first": dict(against_first),
            "seconds": round(time.monotonic() - began, 1),
        }
        print(f"chain, {kind}: {found}", file=self.log, flush=True)
        return found

    def write(self, lineage: Lineage, checkpoint: int, name: str) -> str:
        """Write a checkpoint's activations; their URI."""
        folder = self.releases / name / f"v{checkpoint}"
        if not folder.exists():
            write_checkpoint(lineage, checkpoint, folder)
        return f"activations+{folder.resolve().as_uri()}"

    def register(self, family: str, name: str, uri: str) -> None:
        """Register a checkpoint and wait for its verdicts. Extended always: a re-fit would measure something else."""
        fit = "auto" if name == "v1" else "extend"
        run = self.client.register(family, name=name, uri=uri, fit=fit)["run"]
        succeeded(self.client, run["id"], f"{family} {name}")


if __name__ == "__main__":
    main()
