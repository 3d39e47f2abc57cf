"""Verdicts on a real model with known edits: `python -m benchmarks.edits --seed 1 --json`.

SmolLM2-135M-Instruct is fitted with the demo's options. Several edited versions, each with few edits so that the model
still works, are registered as children of the base:

- *ablated*: 25, 50, 75 or 100% of a feature's direction is removed from every matrix that writes to the stream;
- *amplified*: 2.5 or 3 times as much is written along it;
- *moved*: what is written along it is written along a random direction instead, at the same strength.

Features are drawn at random among those with a checkable answer (`workers.demo.selection.Rules`). Reported are the rank
correlation of the projection ratio with the remaining share, its error, and the verdicts; and each version's loss on
the probe corpus next to the base's. `--adapters FOLDER` also registers PEFT adapters of the model, a real fine-tune,
sorted by name, and counts the verdicts of each.
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
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.runs import succeeded
from featurewatch.service.client import Client
from featurewatch.workers.activations.corpus import load_corpus
from featurewatch.workers.demo.installation import Fitted, Installation
from featurewatch.workers.demo.main import Plan
from featurewatch.workers.demo.models import base_model, save_ablated
from featurewatch.workers.demo.selection import ALPHAS, Edit, choose

FAMILY = "edits"
AMPLIFIED = (-1.5, -2.0)
"""Two directions at a time: layers read the amplified directions and amplify them further; four break the model."""
MOVED = (1.0, 1.0, 1.0, 1.0)
LOSS_DOCUMENTS = 24


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Known edits of a real model: are they measured, and named?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--versions", type=int, default=4, help="with 8 ablations each")
    parser.add_argument("--adapters", type=Path, help="folder of PEFT adapters of the model, registered by name")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    options = parser.parse_args()
    log = sys.stderr if options.json else sys.stdout
    cache = Path.home() / ".cache" / "featurewatch"
    base = base_model(cache, lambda text: print(text, file=log, flush=True))
    adapters = sorted(p for p in options.adapters.resolve().iterdir() if p.is_dir()) if options.adapters else []
    with tempfile.TemporaryDirectory(prefix="featurewatch-edits-") as name:
        folder = Path(name).resolve()
        roots = [folder, cache, *([options.adapters] if adapters else [])]
        with Installation(folder, roots) as installation, Client(installation.url) as client:
            bench = Bench(base, folder, installation, client, options.seed, log)
            print(json.dumps({"seed": options.seed} | bench.run(options.versions, adapters)))


class Bench:
    """One run against one installation."""

    def __init__(
        self, base: Path, folder: Path, installation: Installation, client: Client, seed: int, log: Any
    ) -> None:
        self.base, self.folder, self.installation, self.client = base, folder, installation, client
        self.seed, self.log, self.plan = seed, log, Plan()

    def run(self, versions: int, adapters: list[Path]) -> dict[str, Any]:
        """Fit the base, register every version, and collect the verdicts."""
        self.client.create_family(
            FAMILY,
            [self.plan.hook_point],
            corpus=self.plan.corpus,
            crosscoder=self.plan.crosscoder | {"seed": self.seed},
            policy=self.plan.policy,
        )
        self._register("base", self.base.as_uri())
        fitted = self.installation.fitted("base", self.plan.hook_point)
        losses = {"base": next_token_loss(self.base)}
        edits: list[dict[str, Any]] = []
        plans: list[tuple[str, int, tuple[float, ...]]] = [("ablated", number, ALPHAS) for number in range(versions)]
        plans += [("amplified", versions + i, AMPLIFIED) for i in range(2)] + [("moved", versions + 2, MOVED)]
        for kind, number, alphas in plans:
            name = f"{kind}-{number}"
            chosen = self._choose(fitted, number, alphas)
            out = self._edit(name, kind, fitted.decoder, chosen)
            losses[name] = next_token_loss(out)
            self._register(name, out.as_uri(), parent="base")
            edits += self._look(name, kind, chosen)
        others = {name: self._changed_beside(name, edits) for name in losses if name != "base"}
        for adapter in adapters:
            self._register(adapter.name, self.base.as_uri(), parent="base", adapter=adapter.as_uri())
        verdicts = {a.name: self._statuses(a.name) for a in adapters}
        return score(edits) | {"losses": losses, "others_changed": others, "adapters": verdicts, "edits": edits}

    def _choose(self, fitted: Fitted, number: int, alphas: tuple[float, ...]) -> list[Edit]:
        rows = sorted(self.client.features(FAMILY, checkpoint="base"), key=lambda row: int(row["id"][1:]))
        rows = rows[: len(fitted.decoder)]  # what an edited version discovered has a past at the base
        readability = [row["readability"] or 0.0 for row in rows]
        rates = [row["firing_rate"] or 0.0 for row in rows]
        seed = self.seed * 1000 + number
        return choose(fitted.decoder, rates, readability, fitted.energy_share.numpy(), seed=seed, alphas=alphas)

    def _edit(self, name: str, kind: str, decoder: Tensor, chosen: list[Edit]) -> Path:
        directions = torch.nn.functional.normalize(decoder[[edit.feature for edit in chosen]].double(), dim=1)
        targets = None
        if kind == "moved":
            random = torch.randn(directions.shape, generator=torch.Generator().manual_seed(self.seed)).double()
            # Away from all the directions that are taken out, and from one another.
            targets = torch.linalg.qr(torch.cat([directions, random]).T)[0].T[len(directions) :]
        out = self.folder / name
        save_ablated(self.base, out, directions.float(), [edit.alpha for edit in chosen], targets)
        return out

    def _look(self, name: str, kind: str, chosen: list[Edit]) -> list[dict[str, Any]]:
        rows = {int(row["id"][1:]): row for row in self.client.features(FAMILY, checkpoint=name)}
        result = []
        for edit in chosen:
            row = rows[edit.feature]
            right = {"ablated": edit.right_statuses, "amplified": {"amplified"}, "moved": {"relocated"}}[kind]
            left = 0.0 if kind == "moved" else edit.expected_ratio
            result.append(
                {"version": name, "kind": kind, "feature": row["id"], "left": left, "right": row["status"] in right}
                | {key: row[key] for key in ("status", "projection_ratio", "projection_ratio_ci", "strength_ratio")}
            )
        return result

    def _changed_beside(self, name: str, edits: list[dict[str, Any]]) -> dict[str, int]:
        """Verdicts of a change of features that were not edited."""
        edited = {edit["feature"] for edit in edits if edit["version"] == name}
        rows = [row for row in self.client.features(FAMILY, checkpoint=name) if row["id"] not in edited]
        return Counter(row["status"] for row in rows if row["status"] not in ("present", "indeterminate"))

    def _statuses(self, name: str) -> dict[str, int]:
        return Counter(row["status"] for row in self.client.features(FAMILY, checkpoint=name))

    def _register(self, name: str, uri: str, **options: Any) -> None:
        run = self.client.register(FAMILY, name=name, uri=uri, **options)["run"]
        succeeded(self.client, run["id"], name, self.log)


@torch.no_grad()
def next_token_loss(folder: Path) -> float:
    """Mean next-token loss, in nats, on the first documents of the demo's probe corpus."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    total = count = 0.0
    for document in load_corpus(Plan().corpus["uri"], LOSS_DOCUMENTS, (), context_length=128):
        ids = tokenizer(document.text, return_tensors="pt", truncation=True, max_length=128).input_ids
        if ids.shape[1] > 1:
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return round(total / count, 4)


def score(edits: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all edits by kind. The error is the measured ratio minus the remaining share."""
    result: dict[str, Any] = {}
    for kind in dict.fromkeys(edit["kind"] for edit in edits):
        own = [edit for edit in edits if edit["kind"] == kind]
        known = [edit for edit in own if edit["projection_ratio"] is not None]
        errors = np.array([edit["projection_ratio"] - edit["left"] for edit in known])
        result[kind] = {
            "edits": len(own),
            "not_measured": len(own) - len(known),
            "verdict_right": round(sum(edit["right"] for edit in own) / len(own), 4),
            "bias": round(float(errors.mean()), 4),
            "largest_error": round(float(np.abs(errors).max()), 4),
            "within_0.15": round(float((np.abs(errors) <= 0.15).sum() / len(own)), 4),
            "strength_ratio": round(float(np.median([edit["strength_ratio"] for edit in known])), 4),
        }
        if kind == "ablated":
            ratios, left = ([edit[key] for edit in known] for key in ("projection_ratio", "left"))
            result[kind]["rank_correlation"] = round(float(spearmanr(ratios, left).statistic), 4)
    return result


if __name__ == "__main__":
    main()
