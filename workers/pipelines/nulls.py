"""Nulls: second versions of a checkpoint in which no feature changed, measured and judged as its child would be."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurewatch.service.calibrations.schemas import CalibrationIn, NullName
from featurewatch.workers.activations import harvest, load_documents
from featurewatch.workers.activations.models.finetune import Training, fine_tune
from featurewatch.workers.activations.models.rounding import Rounding, round_rows
from featurewatch.workers.activations.sources import ACTIVATIONS_PREFIX
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress import Regression, assign_folds
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines import files, judging
from featurewatch.workers.pipelines.alarms import Comparison
from featurewatch.workers.pipelines.dictionary import FOLDS, Basis, extended
from featurewatch.workers.pipelines.harvesting import corpus_copy, harvest_spec, open_kept
from featurewatch.workers.pipelines.identity import verified_checkpoint, watched
from featurewatch.workers.pipelines.measuring import Measures, load_references, measured
from featurewatch.workers.pipelines.sources import Activations, open_sources
from featurewatch.workers.pipelines.work import Work, device_of
from featurewatch.workers.verdicts.halves import Half, products_of_halves
from featurewatch.workers.verdicts.measure import Side, over_noise, ratios

LEAST_DOCUMENTS = 8
"""Fewer cannot be dealt into halves with folds of their own."""


class Rounded(Activations):
    """Activations rounded to fewer bits as they are read, each hook point by itself."""

    def __init__(self, of: Activations, to: Rounding) -> None:
        super().__init__(of.opened, of.hook_points, of.device)
        self.to = to

    def raw(self, rows: Tensor) -> Tensor:
        parts = super().raw(rows).split(self.widths, 1)
        return torch.cat([round_rows(part, self.to) for part in parts], 1)


@dataclass
class Bench:
    """A judged checkpoint, and what its nulls are held against."""

    execution: Execution
    work: Work
    """The checkpoint as a child of its own; its artifacts go to the run's folder"""
    asked: CalibrationIn
    gone: list[int]
    """Numbers of the features that are not there at the checkpoint"""

    def __post_init__(self) -> None:
        assert self.work.parent is not None
        self.parent = self.work.parent
        self.brought = self.work.uri.startswith(ACTIVATIONS_PREFIX)
        self.kept = open_kept(self.execution, self.work, self.parent)

    def compare(self, null: NullName) -> tuple[list[Comparison], dict[str, Any]]:
        """The comparisons of a null, and how it was made. RunError where it cannot be had."""
        if null == "halves":
            comparisons = [self._halves(split) for split in range(self.asked.splits)]
            return comparisons, {"splits": self.asked.splits, "seed": self.asked.seed, "new_features": "not sought"}
        variant, settings = self._variant(null)
        return [self._against(null, variant)], settings

    def _variant(self, null: NullName) -> tuple[Activations, dict[str, Any]]:
        """Activations of the null's version of the checkpoint."""
        if null == "finetune":
            return self._fine_tuned()
        rounding: Rounding | None = None if null == "repeat" else null  # type: ignore[assignment]
        if self.brought:
            folder = self.execution.artifacts.path(self.parent.activations[self.parent.hook_points[0]])
            same = open_sources(self.execution, self.work, folder)
            made = "read once more" if rounding is None else "activations rounded"
            return (same if rounding is None else Rounded(same, rounding)), {"made": made}
        made = "model read once more" if rounding is None else "weights rounded"
        return self._harvested(null, weights=rounding), {"made": made}

    def _fine_tuned(self) -> tuple[Activations, dict[str, Any]]:
        if self.brought:
            raise RunError(
                "no-weights",
                "the activations were brought along, and a fine-tune needs the weights; make one where they are, and "
                "register its activations as a checkpoint",
            )
        execution = self.execution
        documents = load_documents(execution.artifacts.path(corpus_copy(execution, self.work)["artifact"]))
        order = np.random.default_rng(self.asked.seed).permutation(len(documents))
        texts = [documents[i].text for i in order]
        half = len(texts) // 2
        out, asked = partial_folder(execution, self.work, "finetuned"), self.asked.finetune
        training = Training(
            asked.steps, asked.learning_rate, asked.batch_documents, self.work.corpus["context_length"],
            self.asked.seed,
        )  # fmt: skip
        with (
            verified_checkpoint(execution, self.work.checkpoint_id) as (_, checkpoint),
            watched(execution, checkpoint, out) as check,
        ):
            losses = fine_tune(
                checkpoint.uri, checkpoint.adapter, training, (texts[:half], texts[half:]), out,
                roots=checkpoint.roots, device=str(device_of(execution)), cache_dir=execution.settings.cache_dir,
                on_progress=execution.progress, check=check,
            )  # fmt: skip
        tuned = {"uri": out.resolve().as_uri(), "adapter": None, "roots": (out.resolve(),), "content": None}
        variant = self._harvested("finetune", **tuned)
        return variant, asked.model_dump() | {"seed": self.asked.seed, "optimizer": "AdamW"} | losses

    def _harvested(self, null: NullName, **changes: Any) -> Activations:
        """Activations of a changed model at the family's positions."""
        execution, name = self.execution, f"{self.work.family_id}/activations-{null}"
        if not execution.artifacts.exists(f"{name}/manifest.json"):
            partial, device = partial_folder(execution, self.work, null), str(device_of(execution))
            with (
                verified_checkpoint(execution, self.work.checkpoint_id) as (reference, checkpoint),
                watched(execution, checkpoint, partial) as check,
            ):
                spec = replace(harvest_spec(execution, self.work, reference, checkpoint, device), **changes)
                harvest(spec, partial, on_progress=execution.progress, check=check)
            with execution.artifacts.create(name) as place:
                shutil.move(partial, place)
        return open_sources(execution, self.work, execution.artifacts.path(name))

    def _against(self, null: NullName, variant: Activations) -> Comparison:
        """The steps of an onboarding, from the extension to the judgement."""
        execution = self.execution
        work = replace(self.work, checkpoint_id=f"{self.work.checkpoint_id}-{null}")
        references = load_references(execution, work, self.gone)
        basis = extended(execution, work, variant, self.kept, null, references)
        execution.check()
        measures = measured(execution, work, basis, variant, self.kept, references)
        before = judging.readability_at_parent(execution, work, basis)
        evidence, judgement = judging.judged(work, basis, measures, variant, self.gone, before)
        return Comparison(basis.numbers.numpy(), basis.born.numpy(), evidence, judgement)

    def _halves(self, split: int) -> Comparison:
        """One half of the documents against the other: a regression on each. No position is in both, so new features,
        which are sought in what two checkpoints leave at the same positions, are not."""
        self.execution.check()
        device = self.kept.device
        code, numbers, _ = files.load_code(self.execution.artifacts.path(self.parent.code), device)
        first = deal(self.kept.document, self.asked.seed, split)
        halves = []
        for chosen in (first, ~first):
            rows = (self.kept.valid & chosen).nonzero().squeeze(1)
            folds = assign_folds(self.kept.document[rows], FOLDS)
            regression = Regression(code, rows.to(device), folds.to(device))
            halves.append(Half(regression, Side(self.kept, regression.solve(self.kept))))
            self.execution.check()
        references = load_references(self.execution, self.work, self.gone)
        fixed = torch.zeros(code.m, dtype=torch.bool, device=device)
        fixed[: len(references.gone)] = references.gone
        rows_b = halves[1].side.solution.decoder.clone()
        rows_b[fixed] = references.rows[references.gone]
        got = products_of_halves(halves[0], halves[1], self.kept.widths, fixed, rows_b)
        total = ratios(got.now.sum(1), got.before.sum(1), got.both.sum(1))
        basis = Basis(only(code, first.to(device)), numbers, torch.zeros(code.m, dtype=torch.bool), self.parent.code)
        before = judging.readability_at_parent(self.execution, self.work, basis)
        measures = Measures(
            replicates=total._asdict(),
            per_hook={"readability": torch.from_numpy(np.asarray(before)[None])},
            baseline_z=over_noise(got.before.sum(1)),
            born_share=torch.ones(code.m),
            born_share_se=torch.zeros(code.m),
            parent_readability=torch.full((code.m,), torch.nan),
            fvu=torch.full((len(self.kept.widths),), torch.nan),
            dictionaries=self.parent.dictionaries,
        )
        evidence, judgement = judging.judged(self.work, basis, measures, self.kept, self.gone, before)
        self.execution.progress((split + 1) / self.asked.splits)
        return Comparison(numbers.numpy(), basis.born.numpy(), evidence, judgement)


def partial_folder(execution: Execution, work: Work, what: str) -> Path:
    """Where something that is under way is kept on this machine."""
    return execution.settings.data_dir / "partial" / f"{work.family_id.replace('/', '-')}-{what}"


def deal(document: Tensor, seed: int, split: int) -> Tensor:
    """bool [n]: positions of the documents that one of the ways to halve them puts first. RunError: too few."""
    documents, index = document.unique(return_inverse=True)
    if len(documents) < LEAST_DOCUMENTS:
        raise RunError(
            "too-few-documents", f"{len(documents)} documents cannot be halved: each half needs {LEAST_DOCUMENTS // 2}"
        )
    order = torch.from_numpy(np.random.default_rng([seed, split]).permutation(len(documents)))
    return (order < len(documents) // 2)[index]


def only(code: Code, keep: Tensor) -> Code:
    """A code of the same positions in which only those where `keep` (bool [n]) holds fire."""
    counts = code.indptr.diff()
    entries = keep.repeat_interleave(counts)
    indptr = torch.cat([counts.new_zeros(1), (counts * keep).cumsum(0)])
    return Code(indptr, code.latents[entries], code.values[entries], code.m)
