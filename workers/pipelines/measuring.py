"""Stage measure: dictionaries of the checkpoint's sources, and all that the verdicts are made from, as artifacts."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featurewatch.service.verdicts.origins import ELSEWHERE, Appearance, elsewhere
from featurewatch.workers.crosscoder.regress import Regression, Solution, select
from featurewatch.workers.crosscoder.regress.readout import solve_readout
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.dictionary import Basis, References, common_rows
from featurewatch.workers.pipelines.sources import Activations
from featurewatch.workers.pipelines.work import Work, device_of
from featurewatch.workers.verdicts.measure import (
    Products,
    Side,
    jackknife_error,
    map_rows,
    over_noise,
    procrustes,
    products,
    ratios,
    unexplained,
)


@dataclass
class Measures:
    """Measurements of m features at h hook points; replicates first. All float32 on the CPU."""

    replicates: dict[str, Tensor]
    """projection, strength, strength_ratio, orthogonal, cosine: [K + 1, m] over all hook points"""
    per_hook: dict[str, Tensor]
    """the same names, readability, and projection_error (jackknife): [h, m], estimates only"""
    baseline_z: Tensor
    """[m]"""
    born_share: Tensor
    """[m] projection of the parent on this checkpoint: 0 where a feature was not there before; and its error"""
    born_share_se: Tensor
    parent_readability: Tensor
    """[m] of new features that the parent writes a good deal of, NaN of the others"""
    fvu: Tensor
    """[h]"""
    dictionaries: dict[str, str]
    """hook point -> artifact"""


def load_references(execution: Execution, work: Work, gone: list[int]) -> References:
    """References that the parent's dictionaries hold. gone: feature numbers that are not there at the parent."""
    assert work.parent is not None
    parent = work.parent
    kept = [load_file(execution.artifacts.path(parent.dictionaries[hook])) for hook in parent.hook_points]
    code = load_file(execution.artifacts.path(work.parent.code))
    rows = torch.cat([tensors["reference"] for tensors in kept], 1)
    flags = torch.isin(code["feature_numbers"], torch.tensor(gone, dtype=torch.int64))
    return References(rows.to(device_of(execution)), flags.to(device_of(execution)))


def measured(
    execution: Execution,
    work: Work,
    basis: Basis,
    activations: Activations,
    parent: Activations | None,
    references: References | None,
) -> Measures:
    """Measure the checkpoint against its parent (against itself where it is the first)."""
    # A code that was made again need not be the same bit by bit: what was measured with another one is not for it.
    code = [basis.artifact, execution.artifacts.digest(basis.artifact)]
    inputs = {"code": code, "checkpoint": work.checkpoint_id, "parent": _parent_key(work)}
    name = work.artifact("measures", read_from=ELSEWHERE, **inputs)
    names = {
        hook: work.artifact("dictionary", hook=hook, code=code, checkpoint=work.checkpoint_id)
        for hook in work.hook_points
    }
    if not all(map(execution.artifacts.exists, (name, *names.values()))):
        tensors = measure(execution, work, basis, activations, parent, references, names)
        with execution.artifacts.create(name) as place:
            save_file({key: tensor.cpu().float().contiguous() for key, tensor in tensors.items()}, place)
    for dictionary in names.values():
        execution.artifacts.path(dictionary)  # of an earlier attempt, perhaps, and nothing in this run reads it
    tensors = load_file(execution.artifacts.path(name))

    def named(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    plain = {key: tensors[key] for key in ("baseline_z", "born_share", "born_share_se", "parent_readability", "fvu")}
    return Measures(named("replicates."), named("hook."), **plain, dictionaries=names)


def _parent_key(work: Work) -> Any:
    return [work.parent.id, work.parent.dictionaries] if work.parent else None


def measure(
    execution: Execution,
    work: Work,
    basis: Basis,
    activations: Activations,
    parent: Activations | None,
    references: References | None,
    names: dict[str, str],
) -> dict[str, Tensor]:
    """Tensors of `Measures`, as they are kept; writes the dictionaries that `names` has an artifact for."""
    rows, folds = common_rows(activations, parent)
    regression = basis.regression or Regression(basis.code, rows, folds)
    # The first ones are paired with the parent's; what is left over is read, but held against nothing.
    n_paired = len(activations.hook_points if parent is None else parent.hook_points)
    left_over = activations.hook_points[n_paired:]
    everything, activations = activations, activations.at(activations.hook_points[:n_paired])
    now = Side(activations, basis.now or regression.solve(activations))
    before, fixed, rows_b = now, None, now.solution.decoder
    if parent is not None and references is not None:
        before = Side(parent, basis.before or regression.solve(parent))
        fixed = torch.zeros(basis.code.m, dtype=torch.bool, device=activations.device)
        fixed[: len(references.gone)] = references.gone
        rows_b = before.solution.decoder.clone()
        rows_b[fixed] = references.rows[references.gone]
    execution.progress(0.2)
    energy = regression.energy.sum(0).float()
    widths_b = activations.widths if parent is None else parent.widths
    pairs = zip(now.solution.decoder.split(activations.widths, 1),
                rows_b.split(widths_b, 1), strict=True)  # fmt: skip
    maps = [None if parent is None else procrustes(c, b, energy) for c, b in pairs]
    widths = list(zip(widths_b, activations.widths, strict=True))
    got = products(regression, now, before, widths, maps, fixed, rows_b)
    execution.progress(0.6)
    # Where a feature is gone at a checkpoint, its children compare it with where it was last: its row before.
    reference = map_rows(rows_b, widths_b, maps)
    readability = _dictionaries(execution, work, basis, activations, now.solution, reference, rows, folds, names)
    fvu = unexplained(regression, now, activations.widths)
    tensors = _tensors(got) | {"fvu": fvu, "hook.readability": readability}
    tensors["parent_readability"] = _parent_readability(basis, tensors, parent, rows, folds)
    if left_over:
        rest = everything.at(left_over)
        solution = regression.solve(rest)
        more = _read_alone(regression, Side(rest, solution), rest.widths)
        more["hook.readability"] = _dictionaries(
            execution, work, basis, rest, solution, solution.decoder.clone(), rows, folds, names
        )
        tensors |= {key: torch.cat([tensors[key].cpu(), value.cpu()]) for key, value in more.items()}
    execution.progress(1.0)
    return tensors


def _read_alone(regression: Regression, side: Side, widths: list[int]) -> dict[str, Tensor]:
    """Strength and FVU at hook points that nothing is held against, [h, m] and [h]; their ratios are NaN."""
    got = products(regression, side, side, [(d, d) for d in widths], [None] * len(widths))
    found = ratios(got.now[0], got.before[0], got.both[0])._asdict()
    nothing = torch.full_like(found["strength"], torch.nan)
    fvu = unexplained(regression, side, widths)
    read = {f"hook.{key}": value if key == "strength" else nothing for key, value in found.items()}
    return read | {"hook.projection_error": nothing, "fvu": fvu}


def _tensors(got: Products) -> dict[str, Tensor]:
    """Ratios over all hook points with replicates, and at each hook point."""
    total = ratios(got.now.sum(1), got.before.sum(1), got.both.sum(1))
    result = {f"replicates.{key}": value for key, value in total._asdict().items()}
    at_hooks = ratios(got.now, got.before, got.both)
    result |= {f"hook.{key}": value[0] for key, value in at_hooks._asdict().items()}
    result["hook.projection_error"] = jackknife_error(at_hooks.projection)
    share = got.both.sum(1) / got.now.sum(1).where(got.now.sum(1) > 0, torch.nan)
    result["baseline_z"] = over_noise(got.before.sum(1))
    result["born_share"], result["born_share_se"] = share[0], jackknife_error(share)
    return result


def appearance(share: Tensor, share_se: Tensor, strength_ratio: Tensor, baseline_z: Tensor) -> Appearance:
    """What the parent writes of a checkpoint's features: [m], [m], [K + 1, m], [m]."""
    strength = 1 / strength_ratio.where(strength_ratio > 0, torch.nan)
    return Appearance(*(part.cpu().numpy() for part in (share, share_se, strength, baseline_z)))


def _parent_readability(
    basis: Basis, tensors: dict[str, Tensor], parent: Activations | None, rows: Tensor, folds: Tensor
) -> Tensor:
    """Readability at the parent, best hook point, of new features that it writes a good deal of: [m], else NaN."""
    found = torch.full((basis.code.m,), torch.nan)
    names = ("born_share", "born_share_se", "replicates.strength_ratio", "baseline_z")
    asked = basis.born.cpu() & torch.from_numpy(elsewhere(appearance(*(tensors[name] for name in names))))
    if parent is None or not bool(asked.any()):
        return found
    code, start, best = select(basis.code, asked.to(parent.device)), 0, []
    for width in parent.widths:
        read = partial(columns_of, parent, slice(start, start := start + width))
        best.append(solve_readout(read, code, rows, folds).readability)
    found[asked] = torch.stack(best).amax(0).cpu()
    return found


def _dictionaries(
    execution: Execution,
    work: Work,
    basis: Basis,
    activations: Activations,
    solution: Solution,
    reference: Tensor,
    rows: Tensor,
    folds: Tensor,
    names: dict[str, str],
) -> Tensor:
    """Write the dictionary of each source; returns the readability of each, [h, m]."""
    widths, readability, start = activations.widths, [], 0
    parts = zip(
        activations.hook_points,
        activations.statistics(),
        solution.decoder.split(widths, 1),
        solution.bias.split(widths),
        reference.split(widths, 1),
        strict=True,
    )
    for hook, (mean, rms), decoder, bias, where_last in parts:
        columns = slice(start, start := start + len(mean))
        readout = solve_readout(partial(columns_of, activations, columns), basis.code, rows, folds)
        readability.append(readout.readability)
        if hook not in names:
            continue
        tensors = {
            "mean": mean,
            "rms": torch.tensor(rms),
            "decoder": decoder,
            "bias": bias,
            "readout": readout.weight,
            "readout_bias": readout.bias,
            "readout_slope": readout.slope,
            "reference": where_last,
        }
        with execution.artifacts.create(names[hook]) as place:
            save_file({key: tensor.cpu().float().contiguous() for key, tensor in tensors.items()}, place)
    return torch.stack(readability)


def columns_of(activations: Activations, columns: slice, rows: Tensor) -> Tensor:
    """Activations of one source: [b, d]."""
    return activations(rows)[:, columns]


def firing(basis: Basis, document: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Firings [m] and number of documents with firings [m] of each feature, int64."""
    m = basis.code.m
    latents = basis.code.latents.cpu().numpy()
    rows = torch.arange(basis.code.n).repeat_interleave(basis.code.indptr.diff().cpu()).numpy()
    _, index = np.unique(document.cpu().numpy(), return_inverse=True)
    pairs = np.unique(latents.astype(np.int64) * (int(index.max(initial=0)) + 1) + index[rows])
    documents = np.bincount(pairs // (int(index.max(initial=0)) + 1), minlength=m)
    return np.bincount(latents, minlength=m), documents
