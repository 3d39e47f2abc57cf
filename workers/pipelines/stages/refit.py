"""Stage refit: the next generation of a family's dictionary. Features keep the ids of the last one where they match."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.matching import Link, match
from featurewatch.workers.crosscoder.regress import Reader, Regression, energies, take_rows
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.basis import Basis, common_rows, load_basis
from featurewatch.workers.pipelines.shared.context import device_of
from featurewatch.workers.pipelines.shared.pairing import ParentPair
from featurewatch.workers.pipelines.shared.training import Members
from featurewatch.workers.pipelines.stages.fit import fit_code
from featurewatch.workers.pipelines.stages.harvest import open_earlier


def refit_dictionary(execution: Execution, pair: ParentPair, source: str) -> Basis:
    """A full fit over the anchors and the newest checkpoint, its columns ordered by feature number.

    Columns that continue a feature keep its units of the last generation, so that strengths compare across generations.
    """
    context, parent = pair.context, pair.parent
    assert context.parent is not None and parent is not None
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
    device = device_of(execution.settings)
    if not all(map(execution.artifacts.exists, (artifact, lineage))):
        anchors = [
            parent if anchor.id == context.parent.id else open_earlier(execution, context, anchor)
            for anchor in context.anchors
        ]
        old, old_numbers, _ = files.load_code(execution.artifacts.path(context.parent.code), device)
        members = Members([*anchors, pair.activations])
        known = _known_rows(old, members, context.policy.min_firings) if context.policy.warm_start else None
        code = fit_code(execution, context, members, saved, known)
        execution.check()
        rows, _ = common_rows(pair.activations, parent)
        codes = take_rows(old, rows), take_rows(code, rows)
        columns = match(codes[0].to_scipy(), codes[1].to_scipy(), context.policy.match_threshold)
        numbers = _numbers(columns, old_numbers, code.m, context.n_features)
        code = _in_former_units(code, codes, columns)
        with execution.artifacts.create(lineage) as place:
            files.save_lineage(place, _between_numbers(columns, old_numbers, numbers))
        with execution.artifacts.create(artifact) as place:  # last: once it exists, everything does
            order = numbers.argsort()
            ordered = Code.from_scipy(code.to_scipy()[:, order.numpy()], device)
            files.save_code(place, ordered, numbers[order], numbers[order] >= context.n_features)
    files.remove_state(saved)
    return replace(load_basis(execution, artifact), lineage=files.load_lineage(execution.artifacts.path(lineage)))


def _known_rows(old: Code, members: Members, least_firings: int) -> Tensor | None:
    """`written_rows` of the last generation in the members; None if they have no position in common."""
    valid = torch.stack([member.valid for member in members.members]).all(0)
    rows = valid.nonzero().squeeze(1).to(old.values.device)
    return written_rows(old, rows, members.members, least_firings) if len(rows) else None


def written_rows(code: Code, rows: Tensor, sources: Sequence[Reader], least_firings: int) -> Tensor:
    """Decoder rows [w, D] over all sources, solved on a code at some positions, largest first.

    Features that rarely fire have no row worth starting from.
    """
    regression = Regression(code, rows, torch.zeros_like(rows))
    decoder = torch.cat([regression.solve(source).decoder for source in sources], 1)
    firings = torch.bincount(code.latents, minlength=code.m)
    written = decoder.square().sum(1) * regression.energy.sum(0).float()
    solid = (firings >= least_firings).nonzero().squeeze(1)
    return decoder[solid[written[solid].argsort(descending=True)]]


def _numbers(columns: list[Link], old_numbers: Tensor, m: int, first: int) -> Tensor:
    """Feature number of each new column: that of the feature it continues, else the next free one, from `first`."""
    numbers = torch.full((m,), -1)
    for link in columns:
        if link.kind == "carried":
            numbers[link.new] = old_numbers[link.old]
    fresh = numbers < 0
    numbers[fresh] = torch.arange(first, first + int(fresh.sum()))
    return numbers


def _in_former_units(code: Code, pair: tuple[Code, Code], columns: list[Link]) -> Code:
    """The code with carried columns as large as before, by their root mean square over the rows of the pair."""
    former, now = (energies(part).sqrt() for part in pair)
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
