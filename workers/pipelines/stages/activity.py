"""Where features are active: own codes of a checkpoint and its parent, and what changed between them.

Every checkpoint is read with the directions along which it writes the features: its decoder rows. They follow a basis
or features that turn slowly. A feature that it hardly writes is read along its parent's row, mapped into the
checkpoint's basis.
"""

import json
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from featurewatch.service.verdicts.activity import Comparison, OwnCode, compare_activity
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.own_code import OwnCoder, noise_threshold
from featurewatch.workers.crosscoder.regress import Regression, Solution, assign_folds, take_rows
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.basis import Basis, basis_maps
from featurewatch.workers.pipelines.shared.pairing import ParentPair
from featurewatch.workers.pipelines.shared.sources import BLOCK, Activations
from featurewatch.workers.verdicts.folds import FOLDS
from featurewatch.workers.verdicts.measure import map_rows

FOLLOWS = 0.8
"""Cosine from which a decoder row continues the direction of its feature."""


@dataclass(frozen=True)
class Rows:
    """What own codes are read with: see `OwnCoder`."""

    rows: Tensor
    """[m, D] unit rows over the hook points of a checkpoint"""
    bias: Tensor
    """[D]"""
    threshold: float
    numbers: Tensor
    """int64 [m] feature numbers"""
    hook_points: dict[str, int]
    """What they cover, in order: hook point -> width"""

    def save(self, execution: Execution, name: str) -> None:
        """Store them as an artifact."""
        tensors = {"rows": self.rows, "bias": self.bias, "feature_numbers": self.numbers}
        tensors["threshold"] = torch.tensor([self.threshold], dtype=torch.float64)
        with execution.artifacts.create(name) as place:
            metadata = {"hook_points": json.dumps(self.hook_points)}
            save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, place, metadata)

    @classmethod
    def load(cls, execution: Execution, name: str, device: torch.device) -> "Rows":
        """Stored rows, on a device."""
        with safe_open(execution.artifacts.path(name), "pt", device=str(device)) as file:
            t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a mapping
            hook_points = json.loads(file.metadata()["hook_points"])
        return cls(t["rows"], t["bias"], float(t["threshold"]), t["feature_numbers"].cpu(), hook_points)

    def equals(self, other: "Rows") -> bool:
        """Whether own codes read with both are comparable and the same."""
        pairs = ((self.rows, other.rows), (self.bias, other.bias), (self.numbers, other.numbers))
        same = self.hook_points == other.hook_points and self.threshold == other.threshold
        return same and all(torch.equal(a, b) for a, b in pairs)

    def first(self, count: int) -> "Rows":
        """The rows of the first features."""
        return replace(self, rows=self.rows[:count], numbers=self.numbers[:count])

    def at(self, hook_points: list[str]) -> "Rows":
        """The rows at some of their hook points, in the given order."""
        own = list(self.hook_points)
        if hook_points == own:
            return self
        index = torch.arange(self.rows.shape[1], device=self.rows.device).split(list(self.hook_points.values()))
        columns = torch.cat([index[own.index(hook)] for hook in hook_points])
        widths = {hook: self.hook_points[hook] for hook in hook_points}
        return replace(self, rows=normalize(self.rows[:, columns], dim=1), bias=self.bias[columns], hook_points=widths)


@dataclass(frozen=True)
class Activity:
    """Where a checkpoint's features are active, compared with its parent; a first checkpoint with itself."""

    rows: str
    """The artifact of the rows"""
    own_code: str
    """The artifact of the own code"""
    comparison: Comparison


def read_activity(execution: Execution, pair: ParentPair, basis: Basis, relocated: Tensor) -> Activity:
    """Read own codes of the checkpoint and its parent, and compare them. Reuses what is stored.

    relocated: bool [m] features that the checkpoint writes along another direction than its parent.
    """
    context, activations = pair.context, pair.compared
    stored = context.parent if context.parent and context.parent.generation == context.generation else None
    name = context.artifact(
        "rows", code=basis.artifact, checkpoint=context.checkpoint_id, parent=stored.rows if stored else None
    )
    rows, parent_rows = _make_rows(execution, pair, basis, relocated)
    if stored and stored.rows and rows.equals(Rows.load(execution, stored.rows, rows.rows.device)):
        name = stored.rows
    if not execution.artifacts.exists(name):
        rows.save(execution, name)
    own_code = context.artifact("own-code", rows=name, activations=activations.opened.path.name)
    now = _stored_code(execution, own_code, rows, activations)
    execution.progress(0.5)
    if parent_rows is None or pair.parent is None:
        return Activity(name, own_code, compare_activity(now, now))
    return Activity(name, own_code, compare_activity(_parent_code(execution, pair, parent_rows), now))


def read_own_code(rows: Rows, activations: Activations) -> OwnCode:
    """Read an own code. `activations` are at the hook points of the rows."""
    return _read(rows, activations, activations.valid)


def _make_rows(execution: Execution, pair: ParentPair, basis: Basis, relocated: Tensor) -> tuple[Rows, Rows | None]:
    """Rows of the checkpoint, and the rows that its parent is read with."""
    activations, parent, stored = pair.compared, pair.parent, pair.context.parent
    regression, now, before = basis.solved(activations, parent)
    own = Rows(normalize(now.decoder, dim=1), now.bias, 0.0, basis.numbers, _widths(activations))
    if parent is None or before is None or stored is None:
        return replace(own, threshold=_threshold(regression, activations, now)), None
    known = None
    if stored.rows is not None and stored.generation == pair.context.generation:
        known = Rows.load(execution, stored.rows, activations.device)
        known = known.at(parent.hook_points) if set(parent.hook_points) <= set(known.hook_points) else None
    maps = basis_maps(now.decoder, activations.widths, before.decoder, parent.widths, regression.energy.sum(0).float())
    back = [None if r is None else r.T for r in maps]
    earlier = _aligned(known, basis.numbers) if known else torch.zeros_like(before.decoder)
    unknown, at_parent = ~earlier.any(1, keepdim=True), normalize(before.decoder, dim=1)
    # Whichever of the two hardly writes a feature has a row of noise.
    weaker = now.decoder.norm(dim=1, keepdim=True) < before.decoder.norm(dim=1, keepdim=True)
    inherited = torch.where(unknown & weaker, at_parent, earlier)
    own = replace(
        own,
        rows=_following(own.rows, map_rows(inherited, parent.widths, maps), relocated.to(now.decoder.device)),
        threshold=known.threshold if known else _threshold(regression, activations, now),
    )
    there = _following(at_parent, map_rows(own.rows, activations.widths, back))
    return own, replace(
        own,
        rows=torch.where(unknown, there, earlier),
        bias=known.bias if known else before.bias,
        hook_points=_widths(parent),
    )


def _following(own: Tensor, inherited: Tensor, relocated: Tensor | None = None) -> Tensor:
    """[m, D] unit rows of a checkpoint: its own, or the inherited ones where it hardly writes the feature.

    Its own rows are used where they agree with the inherited ones, or where there are none (zeros). They are also used
    for features that were relocated (bool [m]): read along the old direction, their activation would be taken for that
    of their neighbours.
    """
    inherited = normalize(inherited, dim=1)
    follows = ((own * inherited).sum(1) >= FOLLOWS) | ~inherited.any(1)
    if relocated is not None:
        follows |= relocated
    return torch.where(follows.unsqueeze(1), own, inherited)


def _aligned(known: Rows, numbers: Tensor) -> Tensor:
    """[m, D] known rows of these features; zeros for the others."""
    _, here, there = np.intersect1d(numbers.numpy(), known.numbers.numpy(), return_indices=True)
    rows = known.rows.new_zeros(len(numbers), known.rows.shape[1])
    rows[here] = known.rows[there]
    return rows


def _widths(activations: Activations) -> dict[str, int]:
    return dict(zip(activations.hook_points, activations.widths, strict=True))


def _threshold(regression: Regression, activations: Activations, solution: Solution) -> float:
    return noise_threshold(
        activations(part) - solution.bias - take_rows(regression.code, part).decode(solution.decoder)
        for part in regression.blocks()
    )


def _stored_code(execution: Execution, name: str, rows: Rows, activations: Activations) -> OwnCode:
    """The own code of this name, read and stored if it does not exist."""
    if not execution.artifacts.exists(name):
        with execution.artifacts.create(name) as place:
            read_own_code(rows, activations).save(place)
    return OwnCode.load(execution.artifacts.path(name))


def _parent_code(execution: Execution, pair: ParentPair, rows: Rows) -> OwnCode:
    """The parent's own code with the given rows. A stored one is used if it was read with them, new features apart."""
    parent, stored = pair.parent, pair.context.parent
    assert parent is not None and stored is not None
    if stored.rows and stored.own_code and execution.artifacts.exists(stored.own_code):
        before, code = Rows.load(execution, stored.rows, rows.rows.device), stored.own_code
        if rows.first(len(before.numbers)).equals(before):
            return _with_new_features(OwnCode.load(execution.artifacts.path(code)), rows, parent)
    return read_own_code(rows, parent)


def _with_new_features(code: OwnCode, rows: Rows, activations: Activations) -> OwnCode:
    """An own code with columns for further rows. Only positions where one of these can be active are read again."""
    known, device = len(code.numbers), rows.rows.device
    new = rows.rows[known:]
    if not len(new):
        return code
    old, again = Code.from_scipy(code.matrix, device), torch.zeros(len(code.valid), dtype=torch.bool)
    for part in activations.valid.nonzero().squeeze(1).to(device).split(BLOCK):
        x = activations(part) - rows.bias
        residual = x - take_rows(old, part).decode(rows.rows[:known])
        again[part.cpu()] = (torch.maximum(x @ new.T, residual @ new.T) >= rows.threshold).any(1).cpu()
    fresh = _read(rows, activations, again)
    kept = scipy.sparse.diags((~again).numpy().astype(np.float32)) @ code.matrix
    kept.resize(fresh.matrix.shape)
    matrix = (kept + fresh.matrix).tocsr()
    matrix.eliminate_zeros()
    return replace(fresh, matrix=matrix, valid=code.valid)


def _read(rows: Rows, activations: Activations, where: Tensor) -> OwnCode:
    """Read an own code at some positions (bool [n]). Values are rounded as they are stored."""
    coder = OwnCoder(rows.rows, rows.bias, rows.threshold)
    positions = where.nonzero().squeeze(1).to(activations.device)
    parts = [coder(activations(part)) for part in positions.split(BLOCK)]
    counts = torch.zeros(len(where), dtype=torch.int64)
    latents, values = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("latents", "values"))
    counts[where] = torch.cat([part.indptr.diff().cpu() for part in parts])
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return OwnCode(
        matrix=Code(indptr, latents, values.half().float(), rows.rows.shape[0]).to_scipy(),
        valid=where.numpy(),
        document=activations.document.unique(return_inverse=True)[1].numpy(),
        fold=assign_folds(activations.document, FOLDS).numpy(),
        threshold=rows.threshold,
        numbers=rows.numbers.numpy(),
    )
