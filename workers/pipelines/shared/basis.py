"""The dictionary that a checkpoint is judged with: its sparse code, and reference directions for features it lost."""

from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.matching import Link
from featurewatch.workers.crosscoder.regress import Regression, Solution, assign_folds
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.verdicts.folds import FOLDS
from featurewatch.workers.verdicts.measure import procrustes


@dataclass
class References:
    """Decoder rows that the parent's dictionaries keep: for a feature gone at the parent, from where it was last."""

    rows: Tensor
    """[m, D_parent]"""
    gone: Tensor
    """bool [m], whether the feature is gone at the parent"""
    numbers: Tensor
    """int64 [m] feature numbers"""

    def aligned(self, numbers: Tensor) -> "References":
        """References for these feature numbers [n]; zeros, and not gone, for features that the parent never had."""
        _, here, there = np.intersect1d(numbers.numpy(), self.numbers.numpy(), return_indices=True)
        rows = self.rows.new_zeros(len(numbers), self.rows.shape[1])
        gone = self.gone.new_zeros(len(numbers))
        rows[here], gone[here] = self.rows[there], self.gone[there]
        return References(rows, gone, numbers)


@dataclass
class Basis:
    """A sparse code, and the regression and decoders that were solved with it, if any."""

    code: Code
    numbers: Tensor
    """int64 [m] feature number of each column, ascending"""
    born: Tensor
    """bool [m] columns that are new in this checkpoint"""
    artifact: str
    regression: Regression | None = None
    now: Solution | None = None
    before: Solution | None = None
    lineage: list[Link] = field(default_factory=list)
    """Links between feature numbers, where this is a new generation"""


def load_basis(execution: Execution, artifact: str) -> Basis:
    """The basis of a stored code."""
    code, numbers, born = files.load_code(execution.artifacts.path(artifact), device_of(execution.settings))
    return Basis(code, numbers, born, artifact)


def load_references(execution: Execution, context: OnboardingContext, gone: list[int]) -> References:
    """References of the parent. `gone`: numbers of the features that are gone there."""
    assert context.parent is not None
    parent, device = context.parent, device_of(execution.settings)
    dictionaries = [load_file(execution.artifacts.path(parent.dictionaries[hook])) for hook in parent.hook_points]
    rows = torch.cat([tensors["reference"] for tensors in dictionaries], 1)
    numbers = load_file(execution.artifacts.path(parent.code))["feature_numbers"]
    return References(rows.to(device), torch.isin(numbers, torch.tensor(gone, dtype=torch.int64)).to(device), numbers)


def common_rows(activations: Activations, parent: Activations | None) -> tuple[Tensor, Tensor]:
    """Positions valid in both checkpoints, and the fold of each. All checkpoints of a family share their folds."""
    folds = assign_folds(activations.document, FOLDS)
    valid = activations.valid if parent is None else activations.valid & parent.valid
    rows = valid.nonzero().squeeze(1)
    device = activations.device
    return rows.to(device), folds[rows].to(device)


def basis_maps(
    now: Tensor, widths: list[int], before: Tensor, widths_before: list[int], energy: Tensor
) -> list[Tensor | None]:
    """`procrustes` of each hook point: maps from another checkpoint's bases into these, from decoders [m, D]."""
    pairs = zip(now.split(widths, 1), before.split(widths_before, 1), strict=True)
    return [procrustes(own, other, energy) for own, other in pairs]
