"""The past of features that an extension discovers: what the ancestors whose activations are kept write of them.

One regression for all of them, on the wide code, at the positions that are valid in each. An ancestor costs one solve
of its decoder, a pass for the errors of the few rows asked for, and the read-outs of those.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from featurewatch.service.verdicts.intervals import reach
from featurewatch.service.verdicts.judge import BASELINE_Z, Evidence
from featurewatch.service.verdicts.origins import held
from featurewatch.service.verdicts.past import Discovered, Past
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.crosscoder.regress import Regression, select
from featurewatch.workers.crosscoder.regress.readout import solve_readout
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.dictionary import Basis, common_rows
from featurewatch.workers.pipelines.measuring import appearance, columns_of
from featurewatch.workers.pipelines.sources import Activations, normaliser_of, open_sources
from featurewatch.workers.pipelines.work import Kept, Work
from featurewatch.workers.verdicts.few import Rows, room, row_products, rows_of, weights
from featurewatch.workers.verdicts.measure import Ratios, jackknife_error, map_rows, over_noise, procrustes, ratios

LEAST_ROWS = 0.5
"""An ancestor that cannot be read at so large a share of the positions left is not taken, nor are those before it."""


@dataclass
class Read:
    """An ancestor's part, for j discovered features."""

    kept: Kept
    hook_points: list[str]
    widths: list[int]
    rows: Rows
    decoder: Tensor
    """[m, D]"""
    readability: Tensor
    """[h, j]"""


@dataclass
class Pair:
    """An ancestor against the one before it."""

    total: Ratios
    """over hook points, [K + 1, j] each, over their medians"""
    per_hook: dict[str, np.ndarray]
    """metric -> [h, j], as they are stored"""
    z: Tensor
    """[j] squared strength over its error"""
    share: Tensor
    """[K + 1, j] projection of the one before on this one"""
    z_before: Tensor


def discovered(
    execution: Execution, work: Work, basis: Basis, activations: Activations, parent: Activations, evidence: Evidence
) -> Discovered | None:
    """The past of the new features that did not emerge here, or None where there are none."""
    columns = np.flatnonzero(basis.born.numpy() & ~evidence.born_here)
    if not len(columns):
        return None
    rows, folds, kept = _opened(execution, work, activations, parent)
    regression = basis.regression
    if regression is None or regression.count != len(rows):
        regression = Regression(basis.code, rows, folds)
    chosen = torch.from_numpy(columns).to(rows.device)
    weight, measured = weights(regression, chosen), list[Read]()
    pairs: list[Pair] = []
    while kept:  # the oldest first, and none is held after its turn: all of them need not fit into memory
        execution.check()
        one, opened = kept.pop()
        opened.normalise_by(normaliser_of(execution, one, opened.device))
        measured.append(_read(regression, weight, chosen, one, opened, (rows, folds)))
        pairs.append(_pair(regression, chosen, measured[-1], measured[max(len(measured) - 2, 0)], work.policy))
        for past in measured[:-1]:
            past.decoder = past.decoder[:0]
    there = _there(measured, pairs, work)
    return Discovered(
        numbers=basis.numbers.numpy()[columns],
        firings=evidence.firings[columns],
        documents=evidence.documents[columns],
        n_positions=basis.code.n,
        ancestors=[_past(one, pair, known) for one, pair, known in zip(measured, pairs, there, strict=True)],
    )


def _opened(
    execution: Execution, work: Work, activations: Activations, parent: Activations
) -> tuple[Tensor, Tensor, list[tuple[Kept, Activations]]]:
    """Positions valid in all ancestors that are taken, the fold of each, and the ancestors, the parent first."""
    assert work.parent is not None
    rows, folds = common_rows(activations, parent)
    taken: list[tuple[Kept, Activations]] = []
    for one in work.earlier:
        hooks = _hook_points(one, parent.hook_points)
        if hooks is None:
            break
        if not all(
            execution.artifacts.exists(of[hook]) for of in (one.activations, one.dictionaries) for hook in hooks
        ):
            continue  # the checkpoint at hand does not need it
        folder = execution.artifacts.path(one.activations[hooks[0]])
        opened = open_sources(execution, work, folder, hooks)
        valid = opened.valid.to(rows.device)[rows]
        if float(valid.float().mean()) < LEAST_ROWS:
            break
        rows, folds = rows[valid], folds[valid]
        taken.append((replace(one, hook_points=hooks), opened))
    return rows, folds, taken


def _hook_points(kept: Kept, parents: list[str]) -> list[str] | None:
    """An ancestor's hook points for those of the parent: of the same names, or as many, by place."""
    if set(parents) <= set(kept.hook_points):
        return parents
    return kept.hook_points if len(kept.hook_points) == len(parents) else None


def _read(
    regression: Regression,
    weight: Tensor,
    columns: Tensor,
    kept: Kept,
    activations: Activations,
    positions: tuple[Tensor, Tensor],
) -> Read:
    """What an ancestor writes where the features fire. positions: rows and folds."""
    solution = regression.solve(activations)
    rows = rows_of(regression, weight, columns, activations, solution)
    asked = torch.zeros(regression.m, dtype=torch.bool, device=columns.device)
    asked[columns] = True
    code, start, readability = select(regression.code, asked), 0, []
    for width in activations.widths:
        read = partial(columns_of, activations, slice(start, start := start + width))
        readability.append(solve_readout(read, code, *positions).readability)
    return Read(
        kept, activations.hook_points, activations.widths, rows, solution.decoder, torch.stack(readability).cpu()
    )


def _pair(regression: Regression, columns: Tensor, now: Read, before: Read, policy: Policy) -> Pair:
    """now against before; against itself where it is the first."""
    energy = regression.energy.sum(0).float()
    parts = zip(now.decoder.split(now.widths, 1), before.decoder.split(before.widths, 1), strict=True)
    maps = [None if now is before else procrustes(c, b, energy) for c, b in parts]
    rows_b, share = before.rows.mapped(before.widths, maps), room(regression, columns)
    cc, bb, cb = (
        row_products(x, y, now.widths, share) for x, y in ((now.rows, now.rows), (rows_b, rows_b), (now.rows, rows_b))
    )
    others = energy > 0
    others[columns] = False
    c, b = now.decoder[others], map_rows(before.decoder, before.widths, maps)[others]
    wrote = b.square().sum(1).clamp_min(1e-30)
    # A change of scale of the whole checkpoint is no change of its features.
    size, strength_size = ((c * b).sum(1) / wrote).median().cpu(), (c.square().sum(1) / wrote).sqrt().median().cpu()
    if not len(c):
        size = strength_size = torch.tensor(1.0)
    total, at_hooks = ratios(cc.sum(1), bb.sum(1), cb.sum(1)), ratios(cc, bb, cb)
    per_hook = {name: value[0].numpy() for name, value in at_hooks._asdict().items()}
    error = jackknife_error(at_hooks.projection).numpy()
    per_hook["projection_reach"] = reach(per_hook["projection"], error, float(size), len(cc) - 1, policy)
    return Pair(
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


def _there(measured: list[Read], pairs: list[Pair], work: Work) -> list[np.ndarray]:
    """Which features each ancestor has, bool [j]: back from the parent, as far as each holds what the next one has."""
    there = [(pair.z >= BASELINE_Z).numpy() for pair in pairs]
    for i in reversed(range(len(pairs) - 1)):
        later = pairs[i + 1]
        share, error = later.share[0], jackknife_error(later.share)
        found = appearance(share, error, later.total.strength_ratio, later.z_before)
        readability = [one.readability.amax(0).numpy() for one in measured[i : i + 2]]
        there[i] &= there[i + 1] & held(found, readability[1], readability[0], work.policy)
    return there


def _past(read: Read, pair: Pair, there: np.ndarray) -> Past:
    metrics = pair.per_hook | {"readability": read.readability.numpy()}
    return Past(
        checkpoint_id=read.kept.id,
        there=there,
        projection=pair.total.projection.numpy(),
        strength_ratio=pair.total.strength_ratio.numpy(),
        strength=pair.total.strength.numpy(),
        cosine=pair.total.cosine[0].numpy(),
        readability=read.readability.amax(0).numpy(),
        per_hook={
            hook: {metric: values[s] for metric, values in metrics.items()} for s, hook in enumerate(read.hook_points)
        },
    )
