"""Stage fit: a family's first dictionary."""

from pathlib import Path

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.duplicates import ROWS, merge_duplicates
from featurewatch.workers.crosscoder.pursuit import pursued
from featurewatch.workers.crosscoder.regress import put_rows
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.basis import Basis, load_basis
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.sources import BLOCK, Activations
from featurewatch.workers.pipelines.shared.training import Members, train_dictionary


def fit_dictionary(
    execution: Execution, context: OnboardingContext, members: list[Activations], sources: list[str]
) -> Basis:
    """Fit over one checkpoint or several. `sources`: the artifacts that their activations are read from.

    Saves its state regularly; a resumed fit gives the same numbers, bit for bit.
    """
    artifact = context.artifact("code", sources=sources, crosscoder=context.crosscoder, generation=context.generation)
    saved = files.partial_fit(execution.settings.data_dir, artifact)
    if not execution.artifacts.exists(artifact):
        code = fit_code(execution, context, Members(members), saved)
        numbers = torch.arange(context.n_features, context.n_features + code.m)
        with execution.artifacts.create(artifact) as place:
            files.save_code(place, code, numbers, torch.zeros(code.m, dtype=torch.bool))
    files.remove_state(saved)  # only now that the code exists: a worker may be killed at any time
    return load_basis(execution, artifact)


def fit_code(
    execution: Execution, context: OnboardingContext, members: Members, saved: Path, known: Tensor | None = None
) -> Code:
    """Sparse code of a full fit, at all positions that are valid in at least one of the checkpoints.

    known: [w, D] decoder rows to start the fit from.
    """
    model = train_dictionary(execution, context, members, saved, known)
    rows = members.valid.nonzero().squeeze(1)
    merge_duplicates(model, concatenate_rows([pursued(model, members(part)) for part in _sample(rows).split(BLOCK)]))
    # Where one checkpoint is not valid, the code is read from the others.
    parts = [pursued(model, members(part)) for part in rows.split(BLOCK)]
    return put_rows(concatenate_rows(parts), rows.to(device_of(execution.settings)), len(members.valid))


def _sample(rows: Tensor) -> Tensor:
    """A sample of rows in runs of neighbours: scattered positions would cost a read each."""
    runs = rows.split(256)
    step = max(1, -(-len(rows) // ROWS))
    return torch.cat(runs[::step])
