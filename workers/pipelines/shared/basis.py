"""A checkpoint's sparse code with its decoders, and the parent's reference directions."""

from dataclasses import dataclass, field

from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.matching import Link
from featurewatch.workers.crosscoder.regress import Regression, Solution, assign_folds
from featurewatch.workers.pipelines.shared.sources import Activations

FOLDS = 20


@dataclass
class References:
    """What gone features are compared with: their decoder rows where they were last there.

    They are those of the code's first columns, as many as the parent's code has, or of all after a re-fit.
    """

    rows: Tensor
    """[m, D_parent]"""
    gone: Tensor
    """bool [m], at the parent"""


@dataclass
class Basis:
    """What the stages after this one start from. `now` and `before` are None until somebody needs them."""

    code: Code
    numbers: Tensor
    """int64 [m] feature numbers of the columns, ascending"""
    born: Tensor
    """bool [m] new in this checkpoint"""
    artifact: str
    regression: Regression | None = None
    now: Solution | None = None
    before: Solution | None = None
    lineage: list[Link] = field(default_factory=list)
    """between feature numbers, where this is a new generation"""


def common_rows(activations: Activations, parent: Activations | None) -> tuple[Tensor, Tensor]:
    """Positions valid here and in the parent, and the fold of each. Folds are the same for a whole family."""
    folds = assign_folds(activations.document, FOLDS)
    valid = activations.valid if parent is None else activations.valid & parent.valid
    rows = valid.nonzero().squeeze(1)
    device = activations.device
    return rows.to(device), folds[rows].to(device)
