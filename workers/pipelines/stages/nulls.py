"""Nulls: second versions of a checkpoint in which no feature changed, compared with it as a child would be."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurewatch.service.calibrations.schemas import CalibrationIn
from featurewatch.service.checkpoints.contents import ACTIVATIONS
from featurewatch.service.families.calibration import NullName
from featurewatch.service.recording import verdicts
from featurewatch.workers.activations.corpus import load_documents
from featurewatch.workers.activations.harvest.run import harvest
from featurewatch.workers.activations.models.finetune import Training, fine_tune
from featurewatch.workers.activations.models.rounding import Rounding, round_rows
from featurewatch.workers.crosscoder.regress import Regression, assign_folds, put_rows, take_rows
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.basis import Basis
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.identity import verified_checkpoint, watched
from featurewatch.workers.pipelines.shared.pairing import pair_with_parent
from featurewatch.workers.pipelines.shared.sources import Activations, open_sources
from featurewatch.workers.pipelines.stages.compare import compare_with_parent
from featurewatch.workers.pipelines.stages.extend import extend_dictionary
from featurewatch.workers.pipelines.stages.harvest import corpus_copy, harvest_spec, open_earlier
from featurewatch.workers.pipelines.stages.judge import ParentComparison, judge_pair
from featurewatch.workers.pipelines.stages.measure import Measurements
from featurewatch.workers.verdicts.folds import FOLDS
from featurewatch.workers.verdicts.halves import Half, products_of_halves
from featurewatch.workers.verdicts.measure import Side, over_noise, ratios

LEAST_DOCUMENTS = 8
"""Fewer cannot be split into halves that each have their own folds."""


class RoundedActivations(Activations):
    """Activations rounded to fewer bits as they are read, each hook point separately."""

    def __init__(self, of: Activations, to: Rounding) -> None:
        super().__init__(of.opened, of.hook_points, of.device)
        self.to = to

    def raw(self, rows: Tensor) -> Tensor:
        parts = super().raw(rows).split(self.widths, 1)
        return torch.cat([round_rows(part, self.to) for part in parts], 1)


@dataclass
class NullExperiment:
    """A judged checkpoint, and nulls that are compared with it."""

    execution: Execution
    context: OnboardingContext
    """The checkpoint as a child of itself; its artifacts go to a folder of the run"""
    options: CalibrationIn

    def __post_init__(self) -> None:
        assert self.context.parent is not None
        self.parent = self.context.parent
        self.precomputed = self.context.uri.startswith(ACTIVATIONS)
        self.activations = open_earlier(self.execution, self.context, self.parent)
        with self.execution.read() as session:
            self.gone = verdicts.gone(session, self.parent.id)

    def compare(self, null: NullName) -> tuple[list[ParentComparison], dict[str, Any]]:
        """The comparisons of a null, and how it was made. RunError where it is not available."""
        if null == "halves":
            comparisons = [self._compare_halves(split) for split in range(self.options.splits)]
            settings = {"splits": self.options.splits, "seed": self.options.seed, "new_features": "not sought"}
            return comparisons, settings
        variant, settings = self._variant(null)
        return [self._compare_variant(null, variant)], settings

    def _variant(self, null: NullName) -> tuple[Activations, dict[str, Any]]:
        """Activations of the null's version of the checkpoint, and how they were made."""
        if null == "finetune":
            return self._fine_tuned()
        rounding: Rounding | None = None if null == "repeat" else null  # type: ignore[assignment]
        if self.precomputed:
            folder = self.execution.artifacts.path(self.parent.activations[self.parent.hook_points[0]])
            same = open_sources(self.execution, self.context, folder)
            if rounding is None:
                return same, {"made": "read once more"}
            return RoundedActivations(same, rounding), {"made": "activations rounded"}
        method = "model read once more" if rounding is None else "weights rounded"
        return self._harvested(null, weights=rounding), {"made": method}

    def _fine_tuned(self) -> tuple[Activations, dict[str, Any]]:
        if self.precomputed:
            raise RunError(
                "no-weights",
                "this checkpoint has precomputed activations and no weights, so it cannot be fine-tuned here. "
                "Fine-tune it where the weights are, and register its activations as a checkpoint",
            )
        execution, options = self.execution, self.options.finetune
        documents = load_documents(execution.artifacts.path(corpus_copy(execution, self.context)["artifact"]))
        order = np.random.default_rng(self.options.seed).permutation(len(documents))
        texts = [documents[i].text for i in order]
        half = len(texts) // 2
        out = partial_folder(execution, self.context, "finetuned")
        training = Training(
            options.steps,
            options.learning_rate,
            options.batch_documents,
            self.context.corpus["context_length"],
            self.options.seed,
        )
        with (
            verified_checkpoint(execution, self.context.checkpoint_id) as (_, checkpoint),
            watched(execution, checkpoint, out) as check,
        ):
            losses = fine_tune(
                checkpoint.uri,
                checkpoint.adapter,
                training,
                (texts[:half], texts[half:]),
                out,
                roots=checkpoint.roots,
                device=str(device_of(execution.settings)),
                cache_dir=execution.settings.cache_dir,
                on_progress=execution.progress,
                check=check,
            )
        tuned = {"uri": out.resolve().as_uri(), "adapter": None, "roots": (out.resolve(),), "content": None}
        variant = self._harvested("finetune", **tuned)
        return variant, options.model_dump() | {"seed": self.options.seed, "optimizer": "AdamW"} | losses

    def _harvested(self, null: NullName, **changes: Any) -> Activations:
        """Activations of a changed model at the family's positions."""
        execution, name = self.execution, f"{self.context.family_id}/activations-{null}"
        if not execution.artifacts.exists(f"{name}/manifest.json"):
            partial, device = partial_folder(execution, self.context, null), str(device_of(execution.settings))
            with (
                verified_checkpoint(execution, self.context.checkpoint_id) as (reference, checkpoint),
                watched(execution, checkpoint, partial) as check,
            ):
                spec = replace(harvest_spec(execution, self.context, reference, checkpoint, device), **changes)
                harvest(spec, partial, on_progress=execution.progress, check=check)
            with execution.artifacts.create(name) as place:
                shutil.move(partial, place)
        return open_sources(execution, self.context, execution.artifacts.path(name))

    def _compare_variant(self, null: NullName, variant: Activations) -> ParentComparison:
        """Extend onto a version of the checkpoint and compare it, as an onboarding does."""
        context = replace(self.context, checkpoint_id=f"{self.context.checkpoint_id}-{null}")
        pair = pair_with_parent(self.execution, context, variant, self.activations, self.gone)
        basis = extend_dictionary(self.execution, pair, null)
        self.execution.check()
        with compare_with_parent(self.execution, pair, basis, in_stages=False) as comparison:
            return comparison

    def _compare_halves(self, split: int) -> ParentComparison:
        """One half of the documents against the other, with a regression on each.

        New features are not sought: they are found at positions that two checkpoints share, and the halves share none.
        """
        execution, activations = self.execution, self.activations
        execution.check()
        code, numbers, _ = files.load_code(execution.artifacts.path(self.parent.code), activations.device)
        first = deal(activations.document, self.options.seed, split)
        halves = []
        for chosen in (first, ~first):
            rows = (activations.valid & chosen).nonzero().squeeze(1)
            folds = assign_folds(activations.document[rows], FOLDS)
            regression = Regression(code, rows.to(activations.device), folds.to(activations.device))
            halves.append(Half(regression, Side(activations, regression.solve(activations))))
            execution.check()
        pair = pair_with_parent(execution, self.context, activations, activations, self.gone)
        assert pair.references is not None
        references = pair.references.aligned(numbers)
        rows_b = halves[1].side.solution.decoder.clone()
        rows_b[references.gone] = references.rows[references.gone]
        sums = products_of_halves(halves[0], halves[1], activations.widths, references.gone, rows_b)
        no_columns = torch.zeros(code.m, dtype=torch.bool)
        rows = first.nonzero().squeeze(1).to(activations.device)
        basis = Basis(put_rows(take_rows(code, rows), rows, code.n), numbers, no_columns, self.parent.code)
        with execution.read() as session:
            readability = verdicts.readability(session, self.parent.id, numbers.numpy())
        measurements = Measurements(
            replicates=ratios(sums.now.sum(1), sums.before.sum(1), sums.both.sum(1))._asdict(),
            per_hook={"readability": torch.from_numpy(np.asarray(readability)[None])},
            baseline_z=over_noise(sums.before.sum(1)),
            born_share=torch.ones(code.m),
            born_share_se=torch.zeros(code.m),
            parent_readability=torch.full((code.m,), torch.nan),
            fvu=torch.full((len(activations.widths),), torch.nan),
            dictionaries=self.parent.dictionaries,
        )
        comparison = judge_pair(execution, pair, basis, measurements)
        execution.progress((split + 1) / self.options.splits)
        return comparison


def partial_folder(execution: Execution, context: OnboardingContext, what: str) -> Path:
    """Where unfinished work is stored on this machine."""
    return execution.settings.data_dir / "partial" / f"{context.family_id.replace('/', '-')}-{what}"


def deal(document: Tensor, seed: int, split: int) -> Tensor:
    """bool [n] positions of the documents in the first half of a random split. RunError if there are too few."""
    documents, index = document.unique(return_inverse=True)
    if len(documents) < LEAST_DOCUMENTS:
        raise RunError(
            "too-few-documents",
            f"{len(documents)} documents cannot be split: each half needs at least {LEAST_DOCUMENTS // 2}",
        )
    order = torch.from_numpy(np.random.default_rng([seed, split]).permutation(len(documents)))
    return (order < len(documents) // 2)[index]
