"""The past of features that an extension discovers: how the ancestors with stored activations write them.

All ancestors share one regression, on the extended code, at the positions that are valid in each. An ancestor costs one
solve of its decoder, one pass for the errors of the few rows in question, and the read-outs of those.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from featurewatch.service.verdicts.intervals import reach
from featurewatch.service.verdicts.judge import BASELINE_Z
from featurewatch.service.verdicts.origins import held
from featurewatch.service.verdicts.past import Discovered, Past
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.crosscoder.regress import Regression, select
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.basis import basis_maps, common_rows
from featurewatch.workers.pipelines.shared.context import EarlierCheckpoint
from featurewatch.workers.pipelines.shared.pairing import ParentPair
from featurewatch.workers.pipelines.shared.sources import Activations, normaliser_of, open_sources
from featurewatch.workers.pipelines.stages.judge import ParentComparison
from featurewatch.workers.pipelines.stages.measure import appearance, readability_of
from featurewatch.workers.verdicts.measure import Ratios, jackknife_error, map_rows, over_noise, ratios
from featurewatch.workers.verdicts.selected_rows import Rows, room, row_products, rows_of, weights

LEAST_ROWS = 0.5
"""The past ends before an ancestor that is valid at a smaller share of the remaining positions."""


@dataclass
class AncestorReading:
    """How one ancestor writes j discovered features."""

    checkpoint: EarlierCheckpoint
    widths: list[int]
    rows: Rows
    decoder: Tensor
    """[m, D]"""
    readability: Tensor
    """[h, j]"""


@dataclass
class AncestorComparison:
    """An ancestor against the one before it."""

    total: Ratios
    """[K + 1, j] over hook points, each divided by its median over the other features"""
    per_hook: dict[str, np.ndarray]
    """metric -> [h, j], as stored"""
    z: Tensor
    """[j] squared strength over its error"""
    share: Tensor
    """[K + 1, j] projection of the earlier ancestor onto this one"""
    z_before: Tensor
    """[j] `z` of the earlier ancestor"""


def backfill(execution: Execution, comparison: ParentComparison) -> Discovered | None:
    """The past of the new features that did not emerge here; None if there are none."""
    basis, evidence, policy = comparison.basis, comparison.evidence, comparison.pair.context.policy
    columns = np.flatnonzero(comparison.new & ~evidence.born_here)
    if not len(columns):
        return None
    rows, folds, ancestors = _open_ancestors(execution, comparison.pair)
    regression = basis.regression
    if regression is None or regression.count != len(rows):
        regression = Regression(basis.code, rows, folds)
    chosen = torch.from_numpy(columns).to(rows.device)
    weight = weights(regression, chosen)
    readings: list[AncestorReading] = []
    comparisons: list[AncestorComparison] = []
    while ancestors:  # oldest first, and each is dropped after its turn: they need not fit into memory together
        execution.check()
        checkpoint, activations = ancestors.pop()
        activations.normalise_by(normaliser_of(execution, checkpoint, activations.device))
        readings.append(_read(regression, weight, chosen, checkpoint, activations, (rows, folds)))
        comparisons.append(_compare(regression, chosen, readings[-1], readings[max(len(readings) - 2, 0)], policy))
        for older in readings[:-1]:
            older.decoder = older.decoder[:0]
    there = _there(readings, comparisons, policy)
    return Discovered(
        numbers=comparison.numbers[columns],
        firings=evidence.firings[columns],
        documents=evidence.documents[columns],
        n_positions=basis.code.n,
        ancestors=[_past(*parts) for parts in zip(readings, comparisons, there, strict=True)],
    )


def _open_ancestors(
    execution: Execution, pair: ParentPair
) -> tuple[Tensor, Tensor, list[tuple[EarlierCheckpoint, Activations]]]:
    """Positions valid in all ancestors that are used, their folds, and the ancestors, the parent first."""
    assert pair.parent is not None
    rows, folds = common_rows(pair.compared, pair.parent)
    ancestors: list[tuple[EarlierCheckpoint, Activations]] = []
    for checkpoint in pair.context.earlier:
        hooks = _hook_points(checkpoint, pair.parent.hook_points)
        if hooks is None:
            break
        stored = (names[hook] for names in (checkpoint.activations, checkpoint.dictionaries) for hook in hooks)
        if not all(map(execution.artifacts.exists, stored)):
            continue  # this run can do without it
        folder = execution.artifacts.path(checkpoint.activations[hooks[0]])
        activations = open_sources(execution, pair.context, folder, hooks)
        valid = activations.valid.to(rows.device)[rows]
        if float(valid.float().mean()) < LEAST_ROWS:
            break
        rows, folds = rows[valid], folds[valid]
        ancestors.append((replace(checkpoint, hook_points=hooks), activations))
    return rows, folds, ancestors


def _hook_points(checkpoint: EarlierCheckpoint, parents: list[str]) -> list[str] | None:
    """An ancestor's hook points for those of the parent: of the same names, or if equally many, by position."""
    if set(parents) <= set(checkpoint.hook_points):
        return parents
    return checkpoint.hook_points if len(checkpoint.hook_points) == len(parents) else None


def _read(
    regression: Regression,
    weight: Tensor,
    columns: Tensor,
    checkpoint: EarlierCheckpoint,
    activations: Activations,
    positions: tuple[Tensor, Tensor],
) -> AncestorReading:
    """How an ancestor writes the features where they fire. positions: rows and folds."""
    solution = regression.solve(activations)
    rows = rows_of(regression, weight, columns, activations, solution)
    chosen = torch.zeros(regression.m, dtype=torch.bool, device=columns.device)
    chosen[columns] = True
    readability = readability_of(select(regression.code, chosen), activations, *positions).cpu()
    return AncestorReading(checkpoint, activations.widths, rows, solution.decoder, readability)


def _compare(
    regression: Regression, columns: Tensor, now: AncestorReading, before: AncestorReading, policy: Policy
) -> AncestorComparison:
    """One ancestor against an earlier one; the earliest against itself."""
    energy = regression.energy.sum(0).float()
    maps: list[Tensor | None] = [None] * len(now.widths)
    if now is not before:
        maps = basis_maps(now.decoder, now.widths, before.decoder, before.widths, energy)
    rows_b, share = before.rows.mapped(before.widths, maps), room(regression, columns)
    cc, bb, cb = (
        row_products(x, y, now.widths, share) for x, y in ((now.rows, now.rows), (rows_b, rows_b), (now.rows, rows_b))
    )
    others = energy > 0
    others[columns] = False
    c, b = now.decoder[others], map_rows(before.decoder, before.widths, maps)[others]
    wrote = b.square().sum(1).clamp_min(1e-30)
    # Rescaling a whole checkpoint does not change its features.
    size, strength_size = ((c * b).sum(1) / wrote).median().cpu(), (c.square().sum(1) / wrote).sqrt().median().cpu()
    if not len(c):
        size = strength_size = torch.tensor(1.0)
    total, at_hooks = ratios(cc.sum(1), bb.sum(1), cb.sum(1)), ratios(cc, bb, cb)
    per_hook = {name: value[0].numpy() for name, value in at_hooks._asdict().items()}
    error = jackknife_error(at_hooks.projection).numpy()
    per_hook["projection_reach"] = reach(per_hook["projection"], error, float(size), len(cc) - 1, policy)
    return AncestorComparison(
        total=total._replace(
            projection=total.projection / size,
            strength_ratio=total.strength_ratio / strength_size,
            orthogonal=total.orthogonal / size.abs(),
        ),
        per_hook=per_hook,
        z=over_noise(cc.sum(1)),
        share=cb.sum(1) / cc.sum(1).where(cc.sum(1) > 0, torch.nan),
        z_before=over_noise(bb.sum(1)),
    )


def _there(readings: list[AncestorReading], comparisons: list[AncestorComparison], policy: Policy) -> list[np.ndarray]:
    """bool [j] for each ancestor, which features it has: traced back from the parent until the first that lacks it."""
    there = [(comparison.z >= BASELINE_Z).numpy() for comparison in comparisons]
    for i in reversed(range(len(comparisons) - 1)):
        later = comparisons[i + 1]
        share, error = later.share[0], jackknife_error(later.share)
        earlier_appearance = appearance(share, error, later.total.strength_ratio, later.z_before)
        before, now = (reading.readability.amax(0).numpy() for reading in readings[i : i + 2])
        there[i] &= there[i + 1] & held(earlier_appearance, now, before, policy)
    return there


def _past(reading: AncestorReading, comparison: AncestorComparison, there: np.ndarray) -> Past:
    metrics = comparison.per_hook | {"readability": reading.readability.numpy()}
    hooks = reading.checkpoint.hook_points
    return Past(
        checkpoint_id=reading.checkpoint.id,
        there=there,
        projection=comparison.total.projection.numpy(),
        strength_ratio=comparison.total.strength_ratio.numpy(),
        strength=comparison.total.strength.numpy(),
        cosine=comparison.total.cosine[0].numpy(),
        readability=reading.readability.amax(0).numpy(),
        per_hook={hook: {metric: values[s] for metric, values in metrics.items()} for s, hook in enumerate(hooks)},
    )
