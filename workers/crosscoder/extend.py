"""New features of a checkpoint: what it writes that neither the dictionary nor its parent explains.

The residual of the new checkpoint consists of what the dictionary never explained (the parent has it too), noise, and
what is new. A linear map of the parent's residual predicts the first part, whatever basis the parent uses, so the
*innovation*

    E = X_new' - X_parent' B,        X' = X~ - F D - b  with the contribution of weakened features added back

keeps only what is new. It is decomposed sparsely by alternating least squares on whitened rows: the matched filter of a
direction d in noise of covariance C is C^-1 d, and a row fires if the filter's output exceeds what noise reaches.
Weakened features are added back on both sides first, so that a successor is learned as a whole, including the part that
its predecessor's decoder would absorb.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.kernels import active_entries
from featurewatch.workers.crosscoder.regress import (
    Reader,
    Regression,
    Solution,
    dense_rows,
    energies,
    gram,
    put_rows,
    take_rows,
    transposed_product,
    weighted_median,
)

HELD_BYTES = 512 * 2**20
"""An innovation up to this size is kept in memory (building it takes three times as much). Rows of a larger one are
recomputed on each access."""


@dataclass(frozen=True)
class ExtendConfig:
    """Parameters of the search for new features."""

    most: int = 64
    """Maximum number of new features"""
    sample: int = 40_000
    """Positions that directions are learned from; their activations are held in memory"""
    reach: float = 4.0
    """While directions are learned, a feature fires if its filter's output exceeds this many standard deviations"""
    least_reach: float = 2.0
    """Lower limit of that threshold in the code, where it is set so that the mirrored filter fires at most
    `false_firings` as often"""
    false_firings: float = 0.05
    rounds: int = 6
    size: float = 0.5
    """Minimum size of a new feature, as a fraction of `typical_size`"""
    heavy: float = 2.0
    """Minimum ratio of its firings to those of its mirror image: noise is symmetric, features are not"""
    least_firings: int = 30
    alike: float = 0.6
    """Cosine at which a direction counts as that of a known feature"""
    seed: int = 0


@dataclass
class NewFeatures:
    """Filters of new features: f_j = w_j . (e - mean) where that exceeds reach_j, else 0, with e the innovation."""

    filters: Tensor
    """[j, D]"""
    mean: Tensor
    """[D] of the innovation, including the average contribution of the weakened features"""
    reach: Tensor
    """[j]"""

    def __len__(self) -> int:
        return len(self.filters)


class Innovation:
    """The innovation of a checkpoint over its parent, at any rows.

    weakened: int64 [w] features whose contribution is added back.
    """

    def __init__(
        self,
        regression: Regression,
        now: tuple[Reader, Solution],
        before: tuple[Reader, Solution],
        weakened: Tensor,
        ridge: float = 1e-3,
    ) -> None:
        self.code, self.weakened = regression.code, weakened
        self.now, self.before = now, before
        self.decoder = now[1].decoder.clone()
        self.decoder[weakened] = 0.0
        (d_b, d_c), device = (len(before[1].bias), len(now[1].bias)), self.decoder.device
        in_memory = 4 * regression.count * d_c <= HELD_BYTES
        residuals: list[tuple[Tensor, Tensor]] = []
        square, cross = torch.zeros(d_b, d_b, device=device), torch.zeros(d_b, d_c, device=device)
        for block in regression.parts:
            old, new = self._residuals(block.rows, block.code)
            square.addmm_(old.T, old)
            cross.addmm_(old.T, new)
            if in_memory:
                residuals.append((old, new))
        square = square.double()
        square.diagonal().add_(ridge * float(square.diagonal().mean()) or 1.0)
        self.map = torch.linalg.solve(square, cross.double()).float()
        self.rows: Tensor | None = None
        if in_memory:
            self.rows = torch.cat([new.addmm_(old, self.map, alpha=-1) for old, new in residuals])
            self.place = torch.zeros(self.code.n, dtype=torch.int64, device=device)
            self.place[torch.cat(list(regression.blocks()))] = torch.arange(regression.count, device=device)

    def _residuals(self, rows: Tensor, code: Code) -> tuple[Tensor, Tensor]:
        (read_c, solution_c), (read_b, solution_b) = self.now, self.before
        old = (read_b(rows) - solution_b.bias).sub_(code.decode(solution_b.decoder))
        new = (read_c(rows) - solution_c.bias).sub_(code.decode(self.decoder))
        return old, new

    def __call__(self, rows: Tensor) -> Tensor:
        """E at some of the regression's rows (sorted int64 [b]): [b, D]."""
        if self.rows is not None:
            return self.rows[self.place[rows]]
        old, new = self._residuals(rows, take_rows(self.code, rows))
        return new.addmm_(old, self.map, alpha=-1)


def find_new_features(
    innovation: Innovation, regression: Regression, typical_size: float, taken: Tensor, config: ExtendConfig
) -> NewFeatures:
    """Directions of the innovation that fire sparsely, with one sign, and as strongly as features do.

    typical_size: of the known features (see `typical_size`). taken: [t, D] directions of known features here, and of
    the weakened ones at the parent. What is written along them belongs to a known feature.
    """
    rows = torch.cat(list(regression.blocks())).sort().values
    generator = torch.Generator().manual_seed(config.seed)
    if len(rows) > config.sample:
        rows = rows[torch.randperm(len(rows), generator=generator)[: config.sample]].sort().values
    e = torch.cat([innovation(part) for part in rows.split(8192)])
    mean = e.mean(0)
    e -= mean
    covariance = (e.T @ e).double() / len(e)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = (vectors * values.clamp_min(1e-6 * float(values.max()) + 1e-30).rsqrt()).float()
    z = e @ whiten  # [n, D], unit covariance

    accept = partial(_accept, z=z, e=e, typical_size=typical_size, taken=taken, config=config)
    directions = torch.empty(0, z.shape[1], device=z.device)
    for _ in range(2):
        fresh = _refine(_seeds(z, directions, config), z, directions, accept, config.rounds, config.reach)
        if not len(fresh):
            break
        directions = _distinct(torch.cat([directions, fresh]))[: config.most]
    return NewFeatures((directions @ whiten.T).contiguous(), mean, _reaches(z @ directions.T, config))


def _seeds(z: Tensor, known: Tensor, config: ExtendConfig) -> Tensor:
    """Rows with the largest norm after removing the known directions, no two alike: [s, D] of norm 1."""
    left = z - _over(z @ known.T, config.reach).decode(known) if len(known) else z
    top = left.norm(dim=1).topk(min(len(z), 16 * config.most)).indices
    unit = torch.nn.functional.normalize(left[top], dim=1)
    chosen: list[int] = []
    cover = torch.zeros(len(unit), device=z.device)
    for candidate in range(len(unit)):
        if cover[candidate] < 0.5:
            chosen.append(candidate)
            cover = torch.maximum(cover, unit @ unit[candidate])
            if len(chosen) >= config.most:
                break
    return unit[chosen]


def _reaches(outputs: Tensor, config: ExtendConfig) -> Tensor:
    """The firing threshold of each filter's output [n, j]: [j].

    Noise is symmetric, so the firings of the mirrored filter estimate the false ones. A fixed threshold that is safe
    for a rare feature misses half of the firings of a frequent one, and its predecessor would not be recognised.
    """
    grid = torch.arange(config.least_reach, config.reach, 0.1, device=outputs.device)
    fires, mirror = (torch.stack([(sign * outputs > g).sum(0) for g in grid]) for sign in (1, -1))
    safe = (mirror <= config.false_firings * fires).flip(0).cummin(0).values.flip(0)
    reach = torch.where(safe, grid.unsqueeze(1), config.reach)
    return reach.amin(0)


def _over(outputs: Tensor, reach: float | Tensor) -> Code:
    """The code of filter outputs [n, j] over the threshold."""
    (n, j), entries = outputs.shape, active_entries(outputs > reach)
    indptr = torch.searchsorted(entries, torch.arange(n + 1, device=outputs.device) * j)
    return Code(indptr, entries % max(j, 1), outputs.flatten()[entries], j)


def _refine(
    seeds: Tensor, z: Tensor, known: Tensor, accept: Callable[[Tensor], Tensor], rounds: int, reach: float
) -> Tensor:
    """Alternate between the rows that fire and the directions that explain them best, given the known directions.

    Seeds that do not qualify as features after a few rounds are dropped: they are most of the seeds, and of the cost.
    """
    directions = seeds
    for done in range(1, rounds + 1):
        joint = torch.cat([known, directions])
        f = _over(z @ joint.T, reach)
        square = gram(f).float()
        square.diagonal().add_(1e-2 * float(square.diagonal().mean()) + 1e-6)
        solved = torch.linalg.solve(square, transposed_product(f, z))[len(known) :]
        directions = _distinct(torch.nn.functional.normalize(solved, dim=1))
        if done in (3, rounds):
            directions = directions[accept(directions)]
        if not len(directions):
            break
    return directions


def _distinct(directions: Tensor) -> Tensor:
    """Drop directions that repeat an earlier one (cosine over 0.8)."""
    alike = (directions @ directions.T).abs().tril(-1) > 0.8
    return directions[~alike.any(1)]


def _accept(
    directions: Tensor, z: Tensor, e: Tensor, typical_size: float, taken: Tensor, config: ExtendConfig
) -> Tensor:
    """Which directions qualify as features (frequent, one-sided, large enough and not yet known): bool [j]."""
    outputs = z @ directions.T
    f = _over(outputs, config.reach)
    fires, mirror = torch.bincount(f.latents, minlength=f.m), (outputs < -config.reach).sum(0)
    energy = energies(f).clamp_min(1e-30)
    written = transposed_product(f, e) / energy.unsqueeze(1)  # decoder row of each alone
    size = written.norm(dim=1) * (energy / fires.clamp_min(1)).sqrt()
    new = torch.ones(len(directions), dtype=torch.bool, device=z.device)
    if len(taken):
        unit = torch.nn.functional.normalize
        new = (unit(written, dim=1) @ unit(taken, dim=1).T).amax(1) < config.alike
    return (
        new & (fires >= config.least_firings) & (fires >= config.heavy * mirror) & (size >= config.size * typical_size)
    )


def encode_new(innovation: Innovation, new: NewFeatures, n: int, rows: Tensor) -> Code:
    """Code of new features at all n positions, empty outside `rows`: [n, j]."""
    offset, parts = new.filters @ new.mean, rows.split(8192)
    code = concatenate_rows([_over(innovation(part) @ new.filters.T - offset, new.reach) for part in parts])
    return put_rows(code, rows, n)


def append_columns(code: Code, new: Code) -> Code:
    """The code with further latents appended: [n, m + j]."""
    counts = code.indptr.diff() + new.indptr.diff()
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    latents = torch.empty(int(indptr[-1]), dtype=torch.int64, device=counts.device)
    values = torch.empty(len(latents), device=counts.device)
    for part, shift, lead in ((code, 0, None), (new, code.m, code.indptr.diff())):
        own = part.indptr.diff()
        start = indptr[:-1] if lead is None else indptr[:-1] + lead
        places = torch.arange(len(part.latents), device=counts.device)
        places += (start - part.indptr[:-1]).repeat_interleave(own)
        latents[places] = part.latents + shift
        values[places] = part.values
    return Code(indptr, latents, values, code.m + new.m)


def sizes(decoder: Tensor, energy: Tensor, firings: Tensor) -> Tensor:
    """||D_i|| times the root mean square activation where i fires: [m]. energy: sums of f^2 [m]."""
    return decoder.norm(dim=1) * (energy / firings.clamp_min(1)).sqrt()


def typical_size(code: Code, solution: Solution) -> float:
    """Median of ||D_i|| times the root mean square activation where i fires, weighted by size times firings.

    Unweighted it would be the size of noise, because most latents of a wide dictionary write next to nothing; weighted
    by energy, that of the few largest features.
    """
    fires = torch.bincount(code.latents, minlength=code.m)
    live = fires > 0
    size = sizes(solution.decoder[live], energies(code)[live], fires[live])
    return weighted_median(size, size * fires[live]) if len(size) else 0.0


def repeats(code: Code, new: Code, threshold: float = 0.8) -> Tensor:
    """Which new latents duplicate the code of an existing one, by the cosine of their activations: bool [j]."""
    dense = dense_rows(new)
    cross = transposed_product(code, dense)  # [m, j]
    cosine = cross / (energies(code).sqrt().unsqueeze(1) * dense.norm(dim=0)).clamp_min(1e-30)
    return (cosine > threshold).any(0)
