"""An extension against a re-fit of the same checkpoint: `python -m benchmarks.extension --seed 1 --json`.

A dictionary is fitted on the parent. Then, on the same positions:

- *extension*: everything that the stages extend and measure compute for the new checkpoint (regressions, new features,
  products with the errors of all folds, read-out);
- *re-fit*: a joint fit of parent and new checkpoint with the same options, and the measurements after it. A *cold*
re-fit
  starts from scratch, as the parent's fit did. A *warm* one, as in the service, starts from the parent's features, so
  its dictionary is trained twice; it is compared with an extension of a dictionary that was trained equally long on the
  parent alone.

FVU of the new checkpoint, at all positions:

- *own code*, of both: active latents and activations read from the new checkpoint alone (`measure.unexplained`), as the
  service reports for every checkpoint;
- *as trained*, of the re-fit: the code of the joint encoder, which sees both checkpoints, and the trained decoder.

The data are two planted checkpoints (`planted_data`), and with `--model` also SmolLM2-135M-Instruct, the demo's model
(fetched once), with three new versions: fine-tuned on half of the corpus; edited as in the demo, with eight directions
of suitable features partly removed; and broken, with eight arbitrary directions removed, some of which carry much of
the stream. The loss of each version shows how good a model it still is.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.edits import next_token_loss
from benchmarks.planted_data import make_lineage
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.activations.corpus import load_corpus
from featurewatch.workers.activations.harvest.run import harvest
from featurewatch.workers.activations.harvest.shards import HarvestSpec
from featurewatch.workers.activations.models.finetune import Training, fine_tune
from featurewatch.workers.activations.models.loading import compute_dtype
from featurewatch.workers.activations.positions import Positions
from featurewatch.workers.activations.store import ActivationSet, open_activations
from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.extend import ExtendConfig, typical_size
from featurewatch.workers.crosscoder.fit import FitState, fit, start_from
from featurewatch.workers.crosscoder.model import Crosscoder, Moments
from featurewatch.workers.crosscoder.pursuit import pursued
from featurewatch.workers.crosscoder.regress import Regression, Solution, assign_folds
from featurewatch.workers.crosscoder.regress.readout import solve_readout
from featurewatch.workers.demo.installation import energy_shares
from featurewatch.workers.demo.main import Plan
from featurewatch.workers.demo.models import base_model, save_ablated
from featurewatch.workers.demo.selection import choose
from featurewatch.workers.pipelines.shared.basis import References
from featurewatch.workers.pipelines.stages.extend import new_columns, solve_jointly
from featurewatch.workers.pipelines.stages.refit import written_rows
from featurewatch.workers.verdicts.folds import FOLDS
from featurewatch.workers.verdicts.measure import Side, procrustes, products, unexplained

T = TypeVar("T")

TRAINING = Training(steps=24, learning_rate=2e-5, batch_documents=4, context_length=128, seed=0)
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
ROWS = {
    "positions x width": "{positions:,} x {width}",
    "latents": "{latents:,}",
    "training steps of a fit": "{steps:,}",
    "seconds of the extension": "{extension_seconds:.2f}",
    "seconds of the cold re-fit": "{refit_seconds:.1f}",
    "the extension's share of them": "{share:.1%}",
    "FVU of the extension": "{extension_fvu:.4f}",
    "FVU of the cold re-fit": "{refit_fvu:.4f}",
    "FVU of the cold re-fit as trained": "{refit_fvu_as_trained:.4f}",
    "FVU of the warm re-fit": "{warm_refit_fvu:.4f}",
    "FVU of the extension of a parent trained twice the steps": "{long_extension_fvu:.4f}",
    "FVU of the parent's own activations": "{parent_fvu:.4f}",
    "extension / cold re-fit": "{fvu_ratio:.3f}",
    "extension / cold re-fit as trained": "{fvu_ratio_to_as_trained:.3f}",
    "extension / warm re-fit": "{fvu_ratio_to_warm:.3f}",
    "the same after as much training": "{long_fvu_ratio_to_warm:.3f}",
    "the version's loss per token": "{loss:.2f}",
}
"""Row of the table -> its label."""
BEGIN, END = "<!-- extension -->", "<!-- /extension -->"


@dataclass
class Checkpoint:
    """Normalised activations in memory, read as a worker reads them."""

    x: Tensor
    """[n, D]"""
    widths: list[int]

    def __call__(self, rows: Tensor) -> Tensor:
        return self.x[rows]


@dataclass
class Pair:
    """Two checkpoints at the same positions."""

    parent: Checkpoint
    now: Checkpoint
    document: Tensor
    """int64 [n]"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="An extension against a re-fit on the same positions.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--positions", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=2000, help="of all fits")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--model", action="store_true", help="SmolLM2 as well, with the demo's options")
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into docs/{PAGE.name}")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    log = sys.stderr if options.json else sys.stdout
    result: dict[str, Any] = {"seed": options.seed, "threads": torch.get_num_threads()}
    config = FitConfig(options.features, options.k, steps=options.steps, seed=options.seed)
    pair = planted(options.seed, options.positions)
    models = fitted([pair.parent], config), fitted([pair.parent], longer(config))
    result["planted"] = compare(pair, models, config, log, "planted")
    if options.model:
        # The demo takes half of the default steps, to be over in five minutes.
        config = FitConfig(**Plan().crosscoder | {"steps": options.steps}, seed=options.seed)
        for name, loss, pair, models in smollm(config, log):
            result[name] = compare(pair, models, config, log, name) | {"loss": loss}
    if options.write_docs:
        write_page(result)
    print(json.dumps(result))


def planted(seed: int, n: int) -> Pair:
    """The first two checkpoints of a planted lineage."""
    lineage = make_lineage(seed, n_positions=n)
    parent, now = (_normalised(torch.from_numpy(lineage.activations(c))) for c in (1, 2))
    return Pair(parent, now, torch.from_numpy(lineage.document))


def longer(config: FitConfig) -> FitConfig:
    """Twice the training: that of the dictionary that a warm re-fit starts from, and its own."""
    return replace(config, steps=2 * config.steps)


def smollm(config: FitConfig, log: Any) -> Iterator[tuple[str, float, Pair, tuple[Crosscoder, Crosscoder]]]:
    """The demo's model and two dictionaries of it, with each of three new versions, and their losses."""
    plan, cache = Plan(), Path.home() / ".cache" / "featurewatch"

    def say(text: str) -> None:
        print(text, file=log, flush=True)

    base = base_model(cache, say)
    with tempfile.TemporaryDirectory(prefix="featurewatch-extension-") as folder:
        corpus = load_corpus(plan.corpus["uri"], plan.corpus["max_documents"], (), context_length=128)

        def read(model: Path, name: str, positions: Positions | None) -> ActivationSet:
            spec = HarvestSpec(
                uri=model.resolve().as_uri(), hook_points=[plan.hook_point], corpus=corpus, cache_dir=cache,
                context_length=128, positions=positions, roots=(model.resolve().parent,),
                max_norm_ratio=plan.policy["max_norm_ratio"],
            )  # fmt: skip
            harvest(spec, Path(folder, name))
            return open_activations(Path(folder, name), hook_points=[plan.hook_point])

        def taken(activations: ActivationSet, rows: np.ndarray) -> Checkpoint:
            return _normalised(activations.read(plan.hook_point, rows).float())

        first = read(base, "v1", None)
        own = taken(first, np.flatnonzero(first.valid))
        model, trained_longer = fitted([own], config), fitted([own], longer(config))
        code = encoded([own], model)
        folds = assign_folds(torch.from_numpy(first.document[first.valid]), FOLDS)
        read_out = solve_readout(own, code, torch.arange(code.n), folds)
        rates = torch.bincount(code.latents, minlength=code.m) / code.n
        shares = energy_shares(first, plan.hook_point, model.rows())
        edits = choose(model.rows(), rates.numpy(), read_out.readability.nan_to_num().numpy(), shares.numpy(),
                       seed=config.seed)  # fmt: skip
        spread = torch.linspace(0, config.n_features - 1, len(edits)).long().tolist()
        tuned, tampered, broken = (Path(folder, name) for name in ("fine-tuned", "tampered", "broken"))
        alphas = [edit.alpha for edit in edits]
        save_ablated(base, tampered, model.rows()[[edit.feature for edit in edits]], alphas)
        save_ablated(base, broken, model.rows()[spread], alphas[::-1])
        texts = [document.text for document in corpus]
        losses = fine_tune(
            base.resolve().as_uri(), None, TRAINING, (texts[::2], texts[1::2]), tuned,
            roots=(base.resolve().parent,), device="cpu", cache_dir=cache,
        )  # fmt: skip
        say(f"fine-tuned: {losses}")
        positions = Positions.load(first.path / "documents.safetensors")
        say(f"loss of the base: {next_token_loss(base)}")
        for version in (tuned, tampered, broken):
            second = read(version, version.name + "-read", positions)
            rows = np.flatnonzero(first.valid & second.valid)
            pair = Pair(taken(first, rows), taken(second, rows), torch.from_numpy(first.document[rows]))
            yield f"SmolLM2, {version.name}", next_token_loss(version), pair, (model, trained_longer)


def _normalised(x: Tensor) -> Checkpoint:
    moments = Moments([x.shape[1]])
    moments.add(x)
    return Checkpoint(moments.normaliser()(x), [x.shape[1]])


def fitted(checkpoints: list[Checkpoint], config: FitConfig, state: FitState | None = None) -> Crosscoder:
    """A crosscoder over all of them."""
    n, dtype = len(checkpoints[0].x), compute_dtype("cpu")  # as in the service
    return fit(
        lambda rows: _beside(checkpoints, rows), n, _layout(checkpoints), config, state=state, compute_dtype=dtype
    ).model


def warm(pair: Pair, code: Code, config: FitConfig) -> Crosscoder:
    """A crosscoder of both that starts from the features of the parent's code, as the service's re-fit does."""
    both = [pair.parent, pair.now]
    known = written_rows(code, torch.arange(code.n), both, Policy().min_firings)
    return fitted(both, config, start_from(known, config, _layout(both)))


def _layout(checkpoints: list[Checkpoint]) -> Layout:
    return Layout(tuple(c.widths[0] for c in checkpoints), tuple(range(len(checkpoints))))


def _beside(checkpoints: list[Checkpoint], rows: Tensor) -> Tensor:
    return torch.cat([c(rows) for c in checkpoints], 1)


def encoded(checkpoints: list[Checkpoint], model: Crosscoder) -> Code:
    """Code of all positions."""
    every = torch.arange(len(checkpoints[0].x))
    return concatenate_rows([pursued(model, _beside(checkpoints, rows)) for rows in every.split(16_384)])


def compare(
    pair: Pair, models: tuple[Crosscoder, Crosscoder], config: FitConfig, log: Any, name: str
) -> dict[str, Any]:
    """Seconds and FVU of both methods. models: the parent's crosscoder, and one trained for twice as long."""
    code, long_code = (encoded([pair.parent], model) for model in models)
    extend(pair, code)  # a warm-up: one-off costs (libraries, memory) are excluded
    runs = [timed(lambda: extend(pair, code)) for _ in range(3)]
    extension, extended = sorted(seconds for seconds, _ in runs)[1], runs[0][1]
    fvu = everywhere(extended, pair.now)
    print(f"{name}: extension {extension:.2f} s, FVU {fvu:.4f}", file=log, flush=True)
    seconds, joint = timed(lambda: fitted([pair.parent, pair.now], config))
    after, refitted = timed(lambda: measure_refit(pair, joint))
    reread, trained = everywhere(refitted, pair.now), as_trained(pair, joint, refitted.code)
    print(f"{name}: re-fit {seconds:.1f} s + {after:.1f} s, FVU {reread:.4f}, {trained:.4f}", file=log, flush=True)
    warmed = everywhere(measure_refit(pair, warm(pair, code, config)), pair.now)
    long_fvu = everywhere(extend(pair, long_code), pair.now)
    own = everywhere(Regression(code, torch.arange(code.n), assign_folds(pair.document, FOLDS)), pair.parent)
    print(f"{name}: warm re-fit, FVU {warmed:.4f}; an extension after as much training {long_fvu:.4f}", file=log)
    print(f"{name}: the parent's own FVU {own:.4f}", file=log, flush=True)
    return {
        "positions": len(pair.document),
        "width": pair.now.widths[0],
        "latents": config.n_features,
        "steps": config.steps,
        "extension_seconds": round(extension, 3),
        "refit_seconds": round(seconds + after, 3),
        "share": round(extension / (seconds + after), 4),
        "new_features": extended.m - code.m,
        "extension_fvu": round(fvu, 5),
        "refit_fvu": round(reread, 5),
        "refit_fvu_as_trained": round(trained, 5),
        "warm_refit_fvu": round(warmed, 5),
        "long_extension_fvu": round(long_fvu, 5),
        "parent_fvu": round(own, 5),
        "fvu_ratio": round(fvu / reread, 4),
        "fvu_ratio_to_as_trained": round(fvu / trained, 4),
        "fvu_ratio_to_warm": round(fvu / warmed, 4),
        "long_fvu_ratio_to_warm": round(long_fvu / warmed, 4),
    }


def extend(pair: Pair, old: Code) -> Regression:
    """The stages extend and measure, without files; the regression on the code with its new columns."""
    parent, now = pair.parent, pair.now
    rows, folds = torch.arange(old.n), assign_folds(pair.document, FOLDS)
    regression = Regression(old, rows, folds)
    before, after = regression.solve(parent), regression.solve(now)
    references = References(before.decoder, torch.zeros(old.m, dtype=torch.bool), torch.arange(old.m))
    work: Any = SimpleNamespace(policy=Policy())
    new = new_columns(work, regression, (now, after), (parent, before), references)  # type: ignore[arg-type]
    size = ExtendConfig().size * typical_size(old, before)
    if new.m:
        _, regression, before, after = solve_jointly(regression, new, (parent, before), (now, after), size)  # type: ignore[arg-type]
    rotation = procrustes(after.decoder, before.decoder, regression.energy.sum(0).float())
    measure(pair, regression, after, before, rotation)
    return regression


def measure_refit(pair: Pair, model: Crosscoder) -> Regression:
    """What follows a re-fit, as after an extension."""
    code = encoded([pair.parent, pair.now], model)
    regression = Regression(code, torch.arange(code.n), assign_folds(pair.document, FOLDS))
    measure(pair, regression, regression.solve(pair.now), regression.solve(pair.parent), None)
    return regression


def measure(pair: Pair, regression: Regression, now: Solution, before: Solution, rotation: Tensor | None) -> None:
    """The stage measure."""
    side, widths = Side(pair.now, now), [(pair.parent.widths[0], pair.now.widths[0])]
    products(regression, side, Side(pair.parent, before), widths, [rotation])
    unexplained(regression, side, pair.now.widths)
    solve_readout(pair.now, regression.code, torch.arange(regression.code.n), assign_folds(pair.document, FOLDS))


def everywhere(regression: Regression, now: Checkpoint) -> float:
    """FVU of a checkpoint at all positions, with its own active latents and activations."""
    return float(unexplained(regression, Side(now, regression.solve(now)), now.widths, most=regression.count))


def as_trained(pair: Pair, model: Crosscoder, code: Code) -> float:
    """FVU of the new checkpoint with a re-fit's own code and decoder."""
    own = slice(pair.parent.widths[0], None)
    decoder, bias = model.rows()[:, own].contiguous(), model.decoder_bias[own]
    error = sum(float((pair.now(part) - bias - code_rows.decode(decoder)).square().sum())
                for part, code_rows in _blocks(code))  # fmt: skip
    return error / float(pair.now.x.square().sum())


def _blocks(code: Code) -> list[tuple[Tensor, Code]]:
    starts = range(0, code.n, 8192)
    return [(torch.arange(s, min(s + 8192, code.n)), code.rows(s, min(s + 8192, code.n))) for s in starts]


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and the result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def write_page(result: dict[str, Any]) -> None:
    """Write the table of a run to docs/benchmarks.md."""
    data = {name: found for name, found in result.items() if isinstance(found, dict)}
    lines = [["", *data], ["---", *["---:"] * len(data)]]
    for words, form in ROWS.items():
        lines.append(
            [words, *(form.format(**{"loss": math.nan} | found).replace("nan", "") for found in data.values())]
        )
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    facts = f"Seed {result['seed']}, {result['threads']} threads."
    PAGE.write_text(f"{before}{BEGIN}\n{facts}\n\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
