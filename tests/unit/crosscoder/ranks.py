"""Fits on several processes, as the ranks of a process group run them, and the same fits on one."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import FitState, fit, start
from featurewatch.workers.crosscoder.fit.sharding import collected, dealt
from featurewatch.workers.crosscoder.model import shared_maps
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.sparsity import SPARSITIES, Penalised
from featurewatch.workers.pipelines.shared.files import load_state, save_state
from tests.unit.crosscoder.planted import dense_code, directions

N, D, M = 3000, 12, 32
STEPS, MIDDLE = 16, 7
LAYOUT = Layout((D, D), (0, 1))


@dataclass(frozen=True)
class Case:
    """One fit. AuxK is active from step 2 on, and resampling after steps 5 and 10."""

    options: dict[str, Any] = field(default_factory=dict)
    invalid: bool = False
    batch: int = 300

    @property
    def config(self) -> FitConfig:
        usual = {"n_features": M, "k": 3, "steps": STEPS, "batch_size": self.batch, "learning_rate": 5e-3}
        revived = {"dead_after": 3 * self.batch, "resample_every": 0.3, "resample_below": 0.3}
        return FitConfig(**usual | revived | self.options)


CASES = {
    **{name: Case({"sparsity": name}) for name in SPARSITIES},
    "uneven batches": Case(batch=301),
    "source dropout": Case({"source_dropout": 0.3}, invalid=True),
    "shared": Case({"decoder": "shared", "prefixes": (5, 20)}),
    "partitions": Case({"designated": 10, "dedicated": (7, 6), "prefixes": (9,), "window": 1000}),
    "jumprelu with partitions": Case({"sparsity": "jumprelu", "designated": 10, "dedicated": (7, 6)}, invalid=True),
}


def activations(case: Case) -> Tensor:
    """float32 [N, 2 D], in which a source lacks every fifth position where `invalid`."""
    code = torch.from_numpy(dense_code(N, 24, 0.1, seed=3)).float()
    x = code @ torch.from_numpy(directions(24, 2 * D, seed=1)).float() * 4
    x += 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    if case.invalid:
        x[::5, D:] = torch.nan
    return x


def begin(case: Case) -> FitState:
    """The whole state before the first step: a third of the latents can't be selected and are silent for long."""
    x = activations(case).nan_to_num(0.0)
    maps = shared_maps([part.T @ x[:, :D] for part in x.split(D, 1)], LAYOUT.widths)
    state = start(case.config, LAYOUT, maps=maps if case.config.decoder == "shared" else ())
    if not isinstance(SPARSITIES[case.config.sparsity], Penalised):
        state.model.decoder[::3] *= 0.05
    state.silent[::3] = 2 * case.batch
    return state


def run(case: Case, state: FitState, parallel: Parallel, until: int = STEPS) -> FitState:
    """Go on to step `until`."""
    x = activations(case)

    def on_step(state: FitState) -> None:
        if state.step == until:
            raise StopIteration

    with suppress(StopIteration):
        fit(lambda rows: x[rows], N, LAYOUT, case.config, state=state, parallel=parallel, on_step=on_step)
    return state


def rank(number: int, world: int, jobs: list[tuple[int, int, str]], folder: Path) -> None:
    """One process: each job, a case on a grid, is fitted from the start to the middle, and on from where one process
    stood in the middle. Rank 0 saves the whole states."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=number, world_size=world)
    try:
        grids = {(data, latent): Parallel(data, latent) for data, latent in sorted({job[:2] for job in jobs})}
        for data, latent, name in jobs:
            case, parallel = CASES[name], grids[data, latent]
            for step, first in ((MIDDLE, begin(case)), (STEPS, load(folder, name, (1, 1), MIDDLE))):
                state = collected(run(case, dealt(first, parallel), parallel, step), parallel)
                if number == 0:
                    save(folder, name, (data, latent), state)
    finally:
        dist.destroy_process_group()


def save(folder: Path, name: str, grid: tuple[int, int], state: FitState) -> None:
    """Keep a whole state that a grid of processes reached."""
    save_state(folder / f"{name}-{grid[0]}x{grid[1]}-{state.step}.fit", state)


def load(folder: Path, name: str, grid: tuple[int, int], step: int) -> FitState:
    """A state as `save` kept it."""
    path = folder / f"{name}-{grid[0]}x{grid[1]}-{step}.fit"
    return load_state(path, CASES[name].config, LAYOUT, torch.device("cpu"))
