"""New features of a new checkpoint: what it writes that neither the old dictionary nor the parent explains.

The residual of the new checkpoint holds three things: what the dictionary never explained (the parent has it too),
noise, and what is new. A linear map of the parent's residual predicts the first, in whatever basis the parent
writes, so the *innovation*

    E = X_new' - X_parent' B,        X' = X~ - F D - b  with the weakened features left in (their share given back)

keeps only what is new. It is decoded sparsely by alternating least squares on whitened rows: the matched filter of a
direction d in noise of covariance C is C^-1 d, and a row counts as firing where the filter's output is beyond what
noise reaches. Features that weakened are given back to both sides first, so that a successor is learnt whole instead
of by the part that its predecessor's decoder does not absorb.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.kernels import active_entries
from featurewatch.workers.crosscoder.regress import (
    Reader,
    Regression,
    Solution,
    gram,
    take_rows,
    transposed_product,
    weighted_median,
)

HELD_BYTES = 512 * 2**20
"""An innovation up to this size is held in memory (with twice as much while it is made); of a larger one every row is
made anew each time."""


@dataclass(frozen=True)
class ExtendConfig:
    """How new features are looked for."""

    most: int = 64
    """New features at most."""
    sample: int = 40_000
    """Positions that directions are learnt on; their activations are held in memory."""
    reach: float = 4.0
    """While directions are learnt, a feature fires where its filter's output is over so many standard deviations."""
    least_reach: float = 2.0
    """In the code it may fire from here on: where the mirror image of its filter fires `false_firings` as often."""
    false_firings: float = 0.05
    rounds: int = 6
    size: float = 0.5
    """A new feature must write, where it fires, at least this share of what a typical one does (`typical_size`)."""
    heavy: float = 2.0
    """It must fire so many times more often than its mirror image: noise has no sign, features have."""
    least_firings: int = 30
    alike: float = 0.6
    """Cosine from which on a direction is one that an old feature has."""
    seed: int = 0


@dataclass
class NewFeatures:
    """Filters of new features: f_j = w_j . (e - mean) where that is over reach_j, else 0, with e the innovation."""

    filters: Tensor
    """[j, D]"""
    mean: Tensor
    """[D] of the innovation: what the weakened features, given back, write on average is in it"""
    reach: Tensor
    """[j]"""

    def __len__(self) -> int:
        return len(self.filters)


class Innovation:
    """The innovation of a checkpoint over its parent, at any rows.

    `weakened`: int64 [w], features whose share is given back.
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
        self.kept = now[1].decoder.clone()
        self.kept[weakened] = 0.0
        (d_b, d_c), device = (len(before[1].bias), len(now[1].bias)), self.kept.device
        hold = 4 * regression.count * d_c <= HELD_BYTES
        held: list[tuple[Tensor, Tensor]] = []
        square, cross = torch.zeros(d_b, d_b, device=device), torch.zeros(d_b, d_c, device=device)
        for block in regression.parts:
            old, new = self._residuals(block.rows, block.code)
            square.addmm_(old.T, old)
            cross.addmm_(old.T, new)
            if hold:
                held.append((old, new))
        square = square.double()
        square.diagonal().add_(ridge * float(square.diagonal().mean()) or 1.0)
        self.map = torch.linalg.solve(square, cross.double()).float()
        self.held: Tensor | None = None
        if hold:
            self.held = torch.cat([new.addmm_(old, self.map, alpha=-1) for old, new in held])
            self.place = torch.zeros(self.code.n, dtype=torch.int64, device=device)
            self.place[torch.cat(list(regression.blocks()))] = torch.arange(regression.count, device=device)

    def _residuals(self, rows: Tensor, code: Code) -> tuple[Tensor, Tensor]:
        (read_c, solution_c), (read_b, solution_b) = self.now, self.before
        old = (read_b(rows) - solution_b.bias).sub_(code.decode(solution_b.decoder))
        new = (read_c(rows) - solution_c.bias).sub_(code.decode(self.kept))
        return old, new

    def __call__(self, rows: Tensor) -> Tensor:
        """E at rows (sorted int64 [b]) of the regression's: [b, D]."""
        if self.held is not None:
            return self.held[self.place[rows]]
        old, new = self._residuals(rows, take_rows(self.code, rows))
        return new.addmm_(old, self.map, alpha=-1)


def find_new_features(
    innovation: Innovation, regression: Regression, typical_size: float, taken: Tensor, config: ExtendConfig
) -> NewFeatures:
    """Directions of the innovation that fire sparsely, with one sign, and as strongly as features do.

    typical_size: what `typical_size` says of the old features.
    taken: [t, D] directions that old features have here or had at the parent (the weakened ones, whose share was given
    back): what is written along them is the rest of an old feature, no new one.
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

    def accept(directions: Tensor) -> Tensor:
        return _accept(directions, z, e, typical_size, taken, config)

    found = torch.empty(0, z.shape[1], device=z.device)
    for _ in range(2):
        fresh = _refine(_seeds(z, found, config), z, found, accept, config.rounds, config.reach)
        if not len(fresh):
            break
        found = _distinct(torch.cat([found, fresh]))[: config.most]
    return NewFeatures((found @ whiten.T).contiguous(), mean, _reaches(z @ found.T, config))


def _seeds(z: Tensor, found: Tensor, config: ExtendConfig) -> Tensor:
    """Rows of the largest norm after what was found is taken out, no two alike: [s, D] of norm 1."""
    left = z - _over(z @ found.T, config.reach).decode(found) if len(found) else z
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
    """How far down each filter's output [n, j] is a firing: [j].

    Noise has no sign, so what fires under the mirrored filter tells how many firings are false. A fixed reach that is
    safe for a rare feature misses half of the firings of a frequent one, and then it seems to follow nobody.
    """
    grid = torch.arange(config.least_reach, config.reach, 0.1, device=outputs.device)
    fires, mirror = (torch.stack([(sign * outputs > g).sum(0) for g in grid]) for sign in (1, -1))
    safe = (mirror <= config.false_firings * fires).flip(0).cummin(0).values.flip(0)
    reach = torch.where(safe, grid.unsqueeze(1), config.reach)
    return reach.amin(0)


def _over(outputs: Tensor, reach: float | Tensor) -> Code:
    """Filter outputs [n, j] over the reach. They are few, so what is made of them costs next to nothing."""
    (n, j), entries = outputs.shape, active_entries(outputs > reach)
    indptr = torch.searchsorted(entries, torch.arange(n + 1, device=outputs.device) * j)
    return Code(indptr, entries % max(j, 1), outputs.flatten()[entries], j)


def _refine(
    seeds: Tensor, z: Tensor, found: Tensor, accept: Callable[[Tensor], Tensor], rounds: int, reach: float
) -> Tensor:
    """Alternate: which rows fire, then the direction that explains them best, given what was found already.

    Seeds that are no features after a few rounds are dropped: they are most of the seeds, and of the cost.
    """
    directions = seeds
    for done in range(1, rounds + 1):
        joint = torch.cat([found, directions])
        f = _over(z @ joint.T, reach)
        square = gram(f).float()
        square.diagonal().add_(1e-2 * float(square.diagonal().mean()) + 1e-6)
        solved = torch.linalg.solve(square, transposed_product(f, z))[len(found) :]
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
    """Which directions are features: they fire often enough, lopsidedly, write as much as features do, and anew."""
    outputs = z @ directions.T
    f = _over(outputs, config.reach)
    fires, mirror = torch.bincount(f.latents, minlength=f.m), (outputs < -config.reach).sum(0)
    energy = torch.zeros(f.m, device=z.device).index_add_(0, f.latents, f.values.square()).clamp_min(1e-30)
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
    """Activations of new features at all n positions, nothing at positions outside `rows`: [n, j]."""
    device = new.filters.device
    offset, parts = new.filters @ new.mean, rows.split(8192)
    found = concatenate_rows([_over(innovation(part) @ new.filters.T - offset, new.reach) for part in parts])
    counts = torch.zeros(n, dtype=torch.int64, device=device)
    counts[rows] = found.indptr.diff()
    return Code(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), found.latents, found.values, len(new))


def append_columns(code: Code, new: Code) -> Code:
    """The code with further latents after its own: [n, m + j]."""
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
    """||D_i|| times the root mean square activation where i fires, of the feature in the middle of what is written.

    Each feature counts by its size times its firings. With a vote for each it would be the size of noise, as most
    latents of a wide dictionary hold next to nothing; by energy it would be that of the few largest ones.
    """
    fires = torch.bincount(code.latents, minlength=code.m)
    energy = torch.zeros(code.m, device=code.values.device).index_add_(0, code.latents, code.values.square())
    live = fires > 0
    size = sizes(solution.decoder[live], energy[live], fires[live])
    return weighted_median(size, size * fires[live]) if len(size) else 0.0


def repeats(code: Code, new: Code, threshold: float = 0.8) -> Tensor:
    """Which new latents have the code of an old one, by the cosine of their activations: bool [j]."""
    dense = torch.zeros(new.n, new.m, device=new.values.device)
    rows = torch.arange(new.n, device=dense.device).repeat_interleave(new.indptr.diff())
    dense[rows, new.latents] = new.values
    cross = transposed_product(code, dense)  # [m, j]
    norm = torch.zeros(code.m, device=dense.device).index_add_(0, code.latents, code.values.square()).sqrt()
    cosine = cross / (norm.unsqueeze(1) * dense.norm(dim=0)).clamp_min(1e-30)
    return (cosine > threshold).any(0)
