"""Stage measure: the checkpoint's dictionaries, and the measurements behind its verdicts, as artifacts."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featurewatch.service.verdicts.origins import ELSEWHERE, Appearance, elsewhere
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress import Regression, Solution, select
from featurewatch.workers.crosscoder.regress.readout import solve_readout
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.basis import Basis, basis_maps, common_rows
from featurewatch.workers.pipelines.shared.pairing import ParentPair
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.verdicts.measure import (
    Products,
    Side,
    jackknife_error,
    map_rows,
    over_noise,
    products,
    ratios,
    unexplained,
)


@dataclass
class Measurements:
    """Measurements of m features at h hook points, float32 on the CPU. Estimate first, then one replicate per fold."""

    replicates: dict[str, Tensor]
    """projection, strength, strength_ratio, orthogonal, cosine: [K + 1, m] over all hook points"""
    per_hook: dict[str, Tensor]
    """[h, m] estimates under the same names, readability, and projection_error (jackknife)"""
    baseline_z: Tensor
    """[m]"""
    born_share: Tensor
    """[m] projection of the parent onto this checkpoint: 0 for a feature that the parent did not have"""
    born_share_se: Tensor
    """[m] its standard error"""
    parent_readability: Tensor
    """[m] of new features that the parent writes to a considerable part; NaN for the others"""
    fvu: Tensor
    """[h]"""
    dictionaries: dict[str, str]
    """hook point -> artifact"""


def measure_checkpoint(execution: Execution, pair: ParentPair, basis: Basis) -> Measurements:
    """Measure the checkpoint against its parent, or a first checkpoint against itself; or load an earlier result."""
    context, artifacts = pair.context, execution.artifacts
    # The digest too: a code that was made again may differ in its last bits, and measurements belong to one code.
    code = [basis.artifact, artifacts.digest(basis.artifact)]
    parent = [context.parent.id, context.parent.dictionaries] if context.parent else None
    name = context.artifact("measures", read_from=ELSEWHERE, code=code, checkpoint=context.checkpoint_id, parent=parent)
    dictionaries = {
        hook: context.artifact("dictionary", hook=hook, code=code, checkpoint=context.checkpoint_id)
        for hook in context.hook_points
    }
    if not all(map(artifacts.exists, (name, *dictionaries.values()))):
        tensors = measure(execution, pair, basis, dictionaries)
        with artifacts.create(name) as place:
            save_file({key: tensor.cpu().float().contiguous() for key, tensor in tensors.items()}, place)
    for dictionary in dictionaries.values():
        artifacts.path(dictionary)  # verifies one of an earlier attempt, which nothing else in this run reads
    return of_tensors(load_file(artifacts.path(name)), dictionaries)


def of_tensors(tensors: dict[str, Tensor], dictionaries: dict[str, str]) -> Measurements:
    """What `measure` returned."""

    def named(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    plain = {key: tensors[key] for key in ("baseline_z", "born_share", "born_share_se", "parent_readability", "fvu")}
    return Measurements(named("replicates."), named("hook."), **plain, dictionaries=dictionaries)


def measure(execution: Execution, pair: ParentPair, basis: Basis, dictionaries: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of `Measurements`, as they are stored. Writes the dictionaries of the hook points that are named."""
    activations, parent = pair.compared, pair.parent
    rows, folds = common_rows(activations, parent)
    regression, solution, solution_before = basis.solved(activations, parent)
    now = Side(activations, solution)
    before, fixed, rows_b = now, None, now.solution.decoder
    widths_b, widths = activations.widths, activations.widths
    maps: list[Tensor | None] = [None] * len(widths)
    energy = regression.energy.sum(0).float()
    if parent is not None and pair.references is not None and solution_before is not None:
        references = pair.references.aligned(basis.numbers)
        before = Side(parent, solution_before)
        fixed, widths_b = references.gone, parent.widths
        rows_b = before.solution.decoder.clone()
        rows_b[fixed] = references.rows[fixed]
        maps = basis_maps(now.solution.decoder, widths, rows_b, widths_b, energy)
    execution.progress(0.2)
    sums = products(regression, now, before, list(zip(widths_b, widths, strict=True)), maps, fixed, rows_b)
    execution.progress(0.6)
    # Children compare a feature that is gone here with where it was last: its row before.
    reference = map_rows(rows_b, widths_b, maps)
    readability = _dictionaries(execution, basis, activations, now.solution, reference, rows, folds, dictionaries)
    tensors = ratio_tensors(sums) | {"fvu": unexplained(regression, now, widths), "hook.readability": readability}
    tensors["parent_readability"] = _parent_readability(basis, tensors, parent, rows, folds)
    if unpaired := pair.activations.hook_points[len(widths) :]:
        # Read, but compared with nothing.
        alone = pair.activations.at(unpaired)
        solution = regression.solve(alone)
        more = _read_alone(regression, Side(alone, solution), alone.widths)
        more["hook.readability"] = _dictionaries(
            execution, basis, alone, solution, solution.decoder.clone(), rows, folds, dictionaries
        )
        tensors |= {key: torch.cat([tensors[key].cpu(), value.cpu()]) for key, value in more.items()}
    execution.progress(1.0)
    return tensors


def _read_alone(regression: Regression, side: Side, widths: list[int]) -> dict[str, Tensor]:
    """Strength [h, m] and FVU [h] at hook points that are compared with nothing; their ratios are NaN."""
    sums = products(regression, side, side, [(d, d) for d in widths], [None] * len(widths))
    at_hooks = ratios(sums.now[0], sums.before[0], sums.both[0])._asdict()
    nothing = torch.full_like(at_hooks["strength"], torch.nan)
    fvu = unexplained(regression, side, widths)
    read = {f"hook.{key}": value if key == "strength" else nothing for key, value in at_hooks.items()}
    return read | {"hook.projection_error": nothing, "fvu": fvu}


def ratio_tensors(sums: Products) -> dict[str, Tensor]:
    """Ratios over all hook points with replicates, and estimates at each hook point."""
    total = ratios(sums.now.sum(1), sums.before.sum(1), sums.both.sum(1))
    result = {f"replicates.{key}": value for key, value in total._asdict().items()}
    at_hooks = ratios(sums.now, sums.before, sums.both)
    result |= {f"hook.{key}": value[0] for key, value in at_hooks._asdict().items()}
    result["hook.projection_error"] = jackknife_error(at_hooks.projection)
    share = sums.both.sum(1) / sums.now.sum(1).where(sums.now.sum(1) > 0, torch.nan)
    result["baseline_z"] = over_noise(sums.before.sum(1))
    result["born_share"], result["born_share_se"] = share[0], jackknife_error(share)
    return result


def appearance(share: Tensor, share_se: Tensor, strength_ratio: Tensor, baseline_z: Tensor) -> Appearance:
    """How the parent writes a checkpoint's features. Shapes: [m], [m], [K + 1, m], [m]."""
    strength = 1 / strength_ratio.where(strength_ratio > 0, torch.nan)
    return Appearance(*(part.cpu().numpy() for part in (share, share_se, strength, baseline_z)))


def _parent_readability(
    basis: Basis, tensors: dict[str, Tensor], parent: Activations | None, rows: Tensor, folds: Tensor
) -> Tensor:
    """[m] readability at the parent's best hook point of new features that it writes considerably, NaN for others."""
    readability = torch.full((basis.code.m,), torch.nan)
    names = ("born_share", "born_share_se", "replicates.strength_ratio", "baseline_z")
    wanted = basis.born.cpu() & torch.from_numpy(elsewhere(appearance(*(tensors[name] for name in names))))
    if parent is None or not bool(wanted.any()):
        return readability
    code = select(basis.code, wanted.to(parent.device))
    readability[wanted] = readability_of(code, parent, rows, folds).amax(0).cpu()
    return readability


def readability_of(code: Code, activations: Activations, rows: Tensor, folds: Tensor) -> Tensor:
    """[h, m] how well each hook point reads the features of a code."""
    readability, start = [], 0
    for width in activations.widths:
        read = partial(columns_of, activations, slice(start, start := start + width))
        readability.append(solve_readout(read, code, rows, folds).readability)
    return torch.stack(readability)


def _dictionaries(
    execution: Execution,
    basis: Basis,
    activations: Activations,
    solution: Solution,
    reference: Tensor,
    rows: Tensor,
    folds: Tensor,
    names: dict[str, str],
) -> Tensor:
    """Write the dictionary of each hook point that is named; returns the readability at all of them, [h, m]."""
    widths, readability, start = activations.widths, [], 0
    parts = zip(
        activations.hook_points,
        activations.statistics(),
        solution.decoder.split(widths, 1),
        solution.bias.split(widths),
        reference.split(widths, 1),
        strict=True,
    )
    for hook, (mean, rms), decoder, bias, reference_row in parts:
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
            "reference": reference_row,
        }
        with execution.artifacts.create(names[hook]) as place:
            save_file({key: tensor.cpu().float().contiguous() for key, tensor in tensors.items()}, place)
    return torch.stack(readability)


def columns_of(activations: Activations, columns: slice, rows: Tensor) -> Tensor:
    """Activations [b, d] at one hook point."""
    return activations(rows)[:, columns]


def firing(basis: Basis, document: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """int64 [m] firings of each feature, and in how many documents it fires."""
    m = basis.code.m
    latents = basis.code.latents.cpu().numpy()
    rows = torch.arange(basis.code.n).repeat_interleave(basis.code.indptr.diff().cpu()).numpy()
    _, index = np.unique(document.cpu().numpy(), return_inverse=True)
    pairs = np.unique(latents.astype(np.int64) * (int(index.max(initial=0)) + 1) + index[rows])
    documents = np.bincount(pairs // (int(index.max(initial=0)) + 1), minlength=m)
    return np.bincount(latents, minlength=m), documents
