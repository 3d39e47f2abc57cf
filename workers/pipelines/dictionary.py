"""Stages fit and extend: the sparse code of the checkpoint, and the decoders that were solved on the way to it."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.duplicates import ROWS, merge_duplicates
from featurewatch.workers.crosscoder.extend import (
    ExtendConfig,
    Innovation,
    append_columns,
    encode_new,
    find_new_features,
    repeats,
    sizes,
    typical_size,
)
from featurewatch.workers.crosscoder.matching import Link
from featurewatch.workers.crosscoder.pursuit import pursued
from featurewatch.workers.crosscoder.regress import Regression, Solution, assign_folds, select, weighted_median
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines import files
from featurewatch.workers.pipelines.fitting import Members, trained
from featurewatch.workers.pipelines.sources import BLOCK, Activations
from featurewatch.workers.pipelines.work import Work, device_of
from featurewatch.workers.verdicts.measure import map_rows, procrustes

FOLDS = 20
WEAK = 0.7
"""An old feature whose projection falls below this gives its share back before new features are looked for."""


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


def fitted(execution: Execution, work: Work, members: list[Activations], sources: list[str]) -> Basis:
    """Stage fit: the first dictionary, over one checkpoint or several. Saves itself as it goes, resumes bit by bit."""
    device = device_of(execution)
    artifact = work.artifact("code", sources=sources, crosscoder=work.crosscoder, generation=work.generation)
    saved = files.partial_fit(execution.settings.data_dir, artifact)
    if not execution.artifacts.exists(artifact):
        code = fitted_code(execution, work, Members(members), saved)
        numbers = torch.arange(work.n_features, work.n_features + code.m)
        with execution.artifacts.create(artifact) as place:
            files.save_code(place, code, numbers, torch.zeros(code.m, dtype=torch.bool))
    files.remove_state(saved)  # not before the code is there: a worker may be killed at any time
    code, numbers, born = files.load_code(execution.artifacts.path(artifact), device)
    return Basis(code, numbers, born, artifact)


def fitted_code(execution: Execution, work: Work, members: Members, saved: Path, known: Tensor | None = None) -> Code:
    """Code of a full fit of these checkpoints, at all positions that are valid in one of them at least.

    known: [w, D] rows of features that the fit starts from.
    """
    model = trained(execution, work, members, saved, known)
    rows = members.valid.nonzero().squeeze(1)
    merge_duplicates(model, concatenate_rows([pursued(model, members(part)) for part in _some(rows).split(BLOCK)]))
    # What a checkpoint cannot be read at, the others stand in for.
    parts = [pursued(model, members(part)) for part in rows.split(BLOCK)]
    return _spread(concatenate_rows(parts), rows.to(device_of(execution)), len(members.valid))


def _some(rows: Tensor) -> Tensor:
    """Rows that stand for all, in runs of neighbours: a position of its own is a read of its own."""
    runs = rows.split(256)
    step = max(1, -(-len(rows) // ROWS))
    return torch.cat(runs[::step])


def _spread(code: Code, rows: Tensor, n: int) -> Code:
    """A code of some rows as one of all n positions, empty at the others."""
    counts = torch.zeros(n, dtype=torch.int64, device=rows.device)
    counts[rows] = code.indptr.diff()
    return Code(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), code.latents, code.values, code.m)


def extended(
    execution: Execution, work: Work, activations: Activations, parent: Activations, source: str, references: References
) -> Basis:
    """Stage extend: the parent's code and, after its columns, what is new in this checkpoint."""
    assert work.parent is not None
    device = device_of(execution)
    artifact = work.artifact(
        "code", source=source, parent=work.parent.code, first=work.n_features, most=work.policy.new_features
    )
    if execution.artifacts.exists(artifact):
        code, numbers, born = files.load_code(execution.artifacts.path(artifact), device)
        return Basis(code, numbers, born, artifact)
    old, numbers, _ = files.load_code(execution.artifacts.path(work.parent.code), device)
    rows, folds = common_rows(activations, parent)
    regression = Regression(old, rows, folds)
    execution.progress(0.2)
    before, now = regression.solve(parent), regression.solve(activations)
    execution.progress(0.4)
    execution.check()
    new = _new_columns(work, regression, (activations, now), (parent, before), references)
    execution.progress(0.9)
    code, size = old, ExtendConfig().size * typical_size(old, before)
    if new.m:
        code, regression, before, now = _joined(regression, new, (parent, before), (activations, now), size)
    numbers = torch.cat([numbers, torch.arange(work.n_features, work.n_features + code.m - old.m)])
    born = torch.arange(code.m) >= old.m
    with execution.artifacts.create(artifact) as place:
        files.save_code(place, code, numbers, born)
    return Basis(code, numbers, born, artifact, regression, now, before)


def _new_columns(
    work: Work,
    regression: Regression,
    now: tuple[Activations, Solution],
    before: tuple[Activations, Solution],
    references: References,
) -> Code:
    """Code [n, j] of the features that are new in this checkpoint."""
    energy = regression.energy.sum(0).float()
    maps = [
        procrustes(c, b, energy)
        for c, b in zip(
            now[1].decoder.split(now[0].widths, 1), before[1].decoder.split(before[0].widths, 1), strict=True
        )
    ]
    was = map_rows(before[1].decoder, before[0].widths, maps)
    square = was.square().sum(1).clamp_min(1e-30)
    share = (now[1].decoder * was).sum(1) / square
    # Features that hardly fire are left alone: a row of theirs is whatever was written at a handful of positions.
    firings = torch.bincount(regression.code.latents, minlength=regression.m)
    solid = firings >= work.policy.min_firings
    weakened = solid & (share < WEAK * weighted_median(share[solid], (energy * square)[solid]))
    weak = weakened.nonzero().squeeze(1)
    innovation = Innovation(regression, now, before, weak)
    # Not the weakened features' own rows here: where a successor fires in their place they hold its direction.
    gone = map_rows(references.rows, before[0].widths, maps)[references.gone]
    config = ExtendConfig(most=work.policy.new_features, least_firings=work.policy.min_firings)
    size = typical_size(regression.code, before[1])
    # What is hardly written lies along whatever the dictionary leaves, and that may be what is new.
    holds = solid & ~weakened & (sizes(now[1].decoder, energy, firings) >= config.size * size)
    taken = torch.cat([now[1].decoder[holds], was[weak], gone])
    n = regression.code.n
    if config.most == 0:
        return Code(torch.zeros(n + 1, dtype=torch.int64, device=was.device), weak[:0], was.new_zeros(0), 0)
    found = find_new_features(innovation, regression, size, taken, config)
    new = encode_new(innovation, found, n, torch.cat(list(regression.blocks())).sort().values)
    return select(new, ~repeats(regression.code, new)) if new.m else new


def _joined(
    old: Regression,
    new: Code,
    parent: tuple[Activations, Solution],
    checkpoint: tuple[Activations, Solution],
    size: float,
) -> tuple[Code, Regression, Solution, Solution]:
    """The code with its new columns, and both decoders on it.

    What a new column seemed to write may be what the old ones leave of a weakened feature. Solved together with them
    it then writes little: only columns that still write as features do (`size`) are kept.
    """
    while new.m:
        code = append_columns(old.code, new)
        regression = old.extended(code)
        now = regression.solve(*checkpoint)
        firings = torch.bincount(new.latents, minlength=new.m)
        keep = sizes(now.decoder[old.m :], regression.energy.sum(0)[old.m :], firings) >= size
        if bool(keep.all()):
            return code, regression, regression.solve(*parent), now
        new = select(new, keep)
    return old.code, old, parent[1], checkpoint[1]
