"""Stage fit: a family's first dictionary."""

from pathlib import Path

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.duplicates import ROWS, merge_duplicates
from featurewatch.workers.crosscoder.pursuit import pursued
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.basis import Basis
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.sources import BLOCK, Activations
from featurewatch.workers.pipelines.shared.training import Members, train_dictionary


def fit_dictionary(
    execution: Execution, context: OnboardingContext, members: list[Activations], sources: list[str]
) -> Basis:
    """Stage fit: the first dictionary, over one checkpoint or several. Saves itself as it goes, resumes bit by bit."""
    device = device_of(execution)
    artifact = context.artifact("code", sources=sources, crosscoder=context.crosscoder, generation=context.generation)
    saved = files.partial_fit(execution.settings.data_dir, artifact)
    if not execution.artifacts.exists(artifact):
        code = fitted_code(execution, context, Members(members), saved)
        numbers = torch.arange(context.n_features, context.n_features + code.m)
        with execution.artifacts.create(artifact) as place:
            files.save_code(place, code, numbers, torch.zeros(code.m, dtype=torch.bool))
    files.remove_state(saved)  # not before the code is there: a worker may be killed at any time
    code, numbers, born = files.load_code(execution.artifacts.path(artifact), device)
    return Basis(code, numbers, born, artifact)


def fitted_code(
    execution: Execution, context: OnboardingContext, members: Members, saved: Path, known: Tensor | None = None
) -> Code:
    """Code of a full fit of these checkpoints, at all positions that are valid in one of them at least.

    known: [w, D] rows of features that the fit starts from.
    """
    model = train_dictionary(execution, context, members, saved, known)
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
