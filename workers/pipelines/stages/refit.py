"""Stage refit: the next generation of a family's dictionary, whose features go on under the ids of the last one's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.matching import Link, match
from featurewatch.workers.crosscoder.regress import Reader, Regression, take_rows
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.basis import Basis, References, common_rows
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.pipelines.shared.training import Members
from featurewatch.workers.pipelines.stages.fit import fitted_code
from featurewatch.workers.pipelines.stages.harvest import open_earlier


def refit_dictionary(
    execution: Execution, context: OnboardingContext, activations: Activations, parent: Activations, source: str
) -> Basis:
    """A full fit over the anchors and the newest checkpoint, its columns in the order of feature numbers.

    Columns that go on with an id have the units of the last generation's, so that strengths compare over generations.
    """
    assert context.parent is not None
    inputs: dict[str, Any] = {
        "source": source,
        "anchors": [anchor.activations[anchor.hook_points[0]] for anchor in context.anchors],
        "crosscoder": context.crosscoder,
        "generation": context.generation,
        "parent": context.parent.code,
        "first": context.n_features,
        "threshold": context.policy.match_threshold,
        "warm": context.policy.min_firings if context.policy.warm_start else None,
    }
    artifact, lineage = context.artifact("code", **inputs), context.artifact("lineage", **inputs)
    saved = files.partial_fit(execution.settings.data_dir, artifact)
    device = device_of(execution)
    if not all(map(execution.artifacts.exists, (artifact, lineage))):
        anchors = [
            parent if one.id == context.parent.id else open_earlier(execution, context, one) for one in context.anchors
        ]
        old, old_numbers, _ = files.load_code(execution.artifacts.path(context.parent.code), device)
        members = Members([*anchors, activations])
        known = _known_rows(old, members, context.policy.min_firings) if context.policy.warm_start else None
        code = fitted_code(execution, context, members, saved, known)
        execution.check()
        rows, _ = common_rows(activations, parent)
        pair = take_rows(old, rows), take_rows(code, rows)
        columns = match(pair[0].to_scipy(), pair[1].to_scipy(), context.policy.match_threshold)
        numbers = _numbers(columns, old_numbers, code.m, context.n_features)
        code = _in_former_units(code, pair, columns)
        with execution.artifacts.create(lineage) as place:
            files.save_lineage(place, _between_numbers(columns, old_numbers, numbers))
        with execution.artifacts.create(artifact) as place:  # last: where it is there, all is
            order = numbers.argsort()
            ordered = Code.from_scipy(code.to_scipy()[:, order.numpy()], device)
            files.save_code(place, ordered, numbers[order], numbers[order] >= context.n_features)
    files.remove_state(saved)
    code, numbers, born = files.load_code(execution.artifacts.path(artifact), device)
    return Basis(code, numbers, born, artifact, lineage=files.load_lineage(execution.artifacts.path(lineage)))


def _known_rows(old: Code, members: Members, least_firings: int) -> Tensor | None:
    """`written_rows` of the last generation in the members. None: no position is common."""
    valid = torch.stack([member.valid for member in members.members]).all(0)
    rows = valid.nonzero().squeeze(1).to(old.values.device)
    return written_rows(old, rows, members.members, least_firings) if len(rows) else None


def written_rows(code: Code, rows: Tensor, sources: Sequence[Reader], least_firings: int) -> Tensor:
    """What features write into every source, [w, D], by regression on their code at some positions; those that write
    most come first. What hardly fires has no row worth to start from."""
    regression = Regression(code, rows, torch.zeros_like(rows))
    decoder = torch.cat([regression.solve(source).decoder for source in sources], 1)
    firings = torch.bincount(code.latents, minlength=code.m)
    written = decoder.square().sum(1) * regression.energy.sum(0).float()
    solid = (firings >= least_firings).nonzero().squeeze(1)
    return decoder[solid[written[solid].argsort(descending=True)]]


def _numbers(columns: list[Link], old_numbers: Tensor, m: int, first: int) -> Tensor:
    """Feature number of each new column: the old one's where it was carried, else the next free one, from `first`."""
    numbers = torch.full((m,), -1)
    for link in columns:
        if link.kind == "carried":
            numbers[link.new] = old_numbers[link.old]
    fresh = numbers < 0
    numbers[fresh] = torch.arange(first, first + int(fresh.sum()))
    return numbers


def _in_former_units(code: Code, pair: tuple[Code, Code], columns: list[Link]) -> Code:
    """The code with carried columns as large as they were, by the root mean square over the rows of the pair."""
    former, now = (_energy(part).sqrt() for part in pair)
    units = torch.ones(code.m, device=code.values.device)
    for link in columns:
        if link.kind == "carried":
            units[link.new] = former[link.old] / now[link.new]
    return code._replace(values=code.values * units[code.latents])


def _between_numbers(columns: list[Link], old_numbers: Tensor, numbers: Tensor) -> list[Link]:
    """Links between columns as links between feature numbers."""
    return [
        link._replace(
            old=None if link.old is None else int(old_numbers[link.old]),
            new=None if link.new is None else int(numbers[link.new]),
        )
        for link in columns
    ]


def _energy(code: Code) -> Tensor:
    """Sum of f^2 of each column: [m]."""
    return torch.zeros(code.m, device=code.values.device).index_add_(0, code.latents, code.values.square())


def carried_references(
    execution: Execution, context: OnboardingContext, basis: Basis, references: References
) -> References:
    """The parent's references as those of the new generation's columns; a new column has none."""
    assert context.parent is not None
    _, old_numbers, _ = files.load_code(execution.artifacts.path(context.parent.code), torch.device("cpu"))
    _, column, before = np.intersect1d(basis.numbers.numpy(), old_numbers.numpy(), return_indices=True)
    device = references.rows.device
    here, there = torch.from_numpy(column).to(device), torch.from_numpy(before).to(device)
    rows = references.rows.new_zeros(basis.code.m, references.rows.shape[1])
    gone = torch.zeros(basis.code.m, dtype=torch.bool, device=device)
    rows[here], gone[here] = references.rows[there], references.gone[there]
    return References(rows, gone)
