"""Stage extend: the parent's code with columns for the features that are new in this checkpoint."""

import torch

from featurewatch.workers.crosscoder import extend
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress import Regression, Solution, select, weighted_median
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.basis import Basis, References, basis_maps, common_rows, load_basis
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.pairing import ParentPair
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.verdicts.measure import map_rows

WEAK = 0.7
"""An old feature whose projection falls below this is encoded again together with the new ones."""


def extend_dictionary(execution: Execution, pair: ParentPair, source: str) -> Basis:
    """Append columns to the parent's code. `source`: the artifact that the checkpoint's activations are read from."""
    context, activations, parent, references = pair.context, pair.compared, pair.parent, pair.references
    assert context.parent is not None and parent is not None and references is not None
    artifact = context.artifact(
        "code", source=source, parent=context.parent.code, first=context.n_features, most=context.policy.new_features
    )
    if execution.artifacts.exists(artifact):
        return load_basis(execution, artifact)
    old, numbers, _ = files.load_code(execution.artifacts.path(context.parent.code), device_of(execution.settings))
    rows, folds = common_rows(activations, parent)
    regression = Regression(old, rows, folds)
    execution.progress(0.2)
    before, now = regression.solve(parent), regression.solve(activations)
    execution.progress(0.4)
    execution.check()
    new = new_columns(context, regression, (activations, now), (parent, before), references)
    execution.progress(0.9)
    code, size = old, extend.ExtendConfig().size * extend.typical_size(old, before)
    if new.m:
        code, regression, before, now = solve_jointly(regression, new, (parent, before), (activations, now), size)
    numbers = torch.cat([numbers, torch.arange(context.n_features, context.n_features + code.m - old.m)])
    born = torch.arange(code.m) >= old.m
    with execution.artifacts.create(artifact) as place:
        files.save_code(place, code, numbers, born)
    return Basis(code, numbers, born, artifact, regression, now, before)


def new_columns(
    context: OnboardingContext,
    regression: Regression,
    now: tuple[Activations, Solution],
    before: tuple[Activations, Solution],
    references: References,
) -> Code:
    """Sparse code [n, j] of the features that are new in this checkpoint."""
    energy = regression.energy.sum(0).float()
    maps = basis_maps(now[1].decoder, now[0].widths, before[1].decoder, before[0].widths, energy)
    was = map_rows(before[1].decoder, before[0].widths, maps)
    square = was.square().sum(1).clamp_min(1e-30)
    share = (now[1].decoder * was).sum(1) / square
    # Features that rarely fire are left alone: their rows fit whatever was written at a handful of positions.
    firings = torch.bincount(regression.code.latents, minlength=regression.m)
    solid = firings >= context.policy.min_firings
    weakened = solid & (share < WEAK * weighted_median(share[solid], (energy * square)[solid]))
    weak = weakened.nonzero().squeeze(1)
    innovation = extend.Innovation(regression, now, before, weak)
    # Weakened features' rows of this checkpoint are not taken: where a successor replaced one, they are its direction.
    gone = map_rows(references.rows, before[0].widths, maps)[references.gone]
    config = extend.ExtendConfig(most=context.policy.new_features, least_firings=context.policy.min_firings)
    size = extend.typical_size(regression.code, before[1])
    # A tiny row lies along the dictionary's residual, which may be exactly the new feature.
    holds = solid & ~weakened & (extend.sizes(now[1].decoder, energy, firings) >= config.size * size)
    taken = torch.cat([now[1].decoder[holds], was[weak], gone])
    n = regression.code.n
    if config.most == 0:
        return Code(torch.zeros(n + 1, dtype=torch.int64, device=was.device), weak[:0], was.new_zeros(0), 0)
    directions = extend.find_new_features(innovation, regression, size, taken, config)
    new = extend.encode_new(innovation, directions, n, torch.cat(list(regression.blocks())).sort().values)
    return select(new, ~extend.repeats(regression.code, new)) if new.m else new


def solve_jointly(
    old: Regression,
    new: Code,
    parent: tuple[Activations, Solution],
    checkpoint: tuple[Activations, Solution],
    size: float,
) -> tuple[Code, Regression, Solution, Solution]:
    """The code with its new columns, and both decoders on it.

    A new column may only have stood in for what the old ones missed of a weakened feature. Solved together with them
    it then writes little, and columns that write less than a feature (`size`) are dropped.
    """
    while new.m:
        code = extend.append_columns(old.code, new)
        regression = old.extended(code)
        now = regression.solve(*checkpoint)
        firings = torch.bincount(new.latents, minlength=new.m)
        keep = extend.sizes(now.decoder[old.m :], regression.energy.sum(0)[old.m :], firings) >= size
        if bool(keep.all()):
            return code, regression, regression.solve(*parent), now
        new = select(new, keep)
    return old.code, old, parent[1], checkpoint[1]
