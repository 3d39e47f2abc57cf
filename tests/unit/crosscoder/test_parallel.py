"""A fit on several processes is one process's: positions dealt, latents dealt, and both."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes

from featurewatch.workers.crosscoder.fit import FitState
from featurewatch.workers.crosscoder.fit.sharding import dealt
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.sparsity import SPARSITIES
from tests.unit.crosscoder.ranks import CASES, MIDDLE, STEPS, begin, load, rank, run, save

JOBS = {
    2: [(*grid, name) for grid in ((2, 1), (1, 2)) for name in CASES],
    4: [(2, 2, name) for name in (*SPARSITIES, "partitions")],
}
each_job = pytest.mark.parametrize(("data", "latent", "name"), [job for jobs in JOBS.values() for job in jobs])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states of all fits: one process's, then those of two and of four that run their jobs one after the other."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, case in CASES.items():
        state = begin(case)
        for step in (MIDDLE, STEPS):
            state = run(case, state, Parallel(), step)
            save(folder, name, (1, 1), state)
    multiprocessing.set_forkserver_preload([rank.__module__])  # torch is imported once for all
    for world, jobs in JOBS.items():
        processes.start_processes(rank, (world, jobs, folder), nprocs=world, start_method="forkserver")
    return folder


def _same(a: FitState, b: FitState) -> None:
    """But for the order in which float32 sums are added."""
    assert a.step == b.step
    torch.testing.assert_close(torch.tensor(a.losses), torch.tensor(b.losses), rtol=2e-4, atol=0)
    assert a.cut == pytest.approx(b.cut, rel=1e-3)
    assert a.penalty == pytest.approx(b.penalty, rel=1e-3)
    names = ("encoder", "encoder bias", "decoder", "decoder bias", "log threshold")
    for name, p, q in zip(names, a.model.parameters(), b.model.parameters(), strict=False):
        off = float((p - q).norm() / q.norm())
        assert off < 2e-3, f"{name} is off by {off}"
    torch.testing.assert_close(a.model.threshold, b.model.threshold, rtol=1e-3, atol=1e-3)
    # A latent may fire at a position more or less where its score is the threshold but for rounding.
    assert float((a.fired - b.fired).abs().float().mean()) < 1
    assert float((a.silent != b.silent).float().mean()) < 0.1


@each_job
def test_several_processes_do_what_one_does(folder: Path, data: int, latent: int, name: str) -> None:
    _same(load(folder, name, (data, latent), MIDDLE), load(folder, name, (1, 1), MIDDLE))


@each_job
def test_several_processes_go_on_from_what_one_saved(folder: Path, data: int, latent: int, name: str) -> None:
    _same(load(folder, name, (data, latent), STEPS), load(folder, name, (1, 1), STEPS))


@each_job
def test_one_process_goes_on_from_what_several_saved(folder: Path, data: int, latent: int, name: str) -> None:
    _same(run(CASES[name], load(folder, name, (data, latent), MIDDLE), Parallel()), load(folder, name, (1, 1), STEPS))


@pytest.mark.parametrize("name", CASES)
def test_the_fits_are_worth_comparing(folder: Path, name: str) -> None:
    """Something is learnt, and latents that were silent came back."""
    middle, end = (load(folder, name, (1, 1), step) for step in (MIDDLE, STEPS))
    assert end.losses[-1] < 0.9 * end.losses[0]
    assert int(middle.silent[::3].min()) < 2 * CASES[name].batch
    assert not torch.equal(middle.model.decoder, end.model.decoder)


@pytest.mark.parametrize("name", ["batch_topk", "jumprelu"])
def test_a_state_is_dealt_without_rest(folder: Path, name: str) -> None:
    """The parts of all ranks beside each other are the whole; each knows which latents it holds."""
    whole = load(folder, name, (1, 1), STEPS)
    parts = []
    for number in range(4):
        seat = Parallel()
        seat.latent, seat.latent_rank = 4, number
        parts.append(dealt(whole, seat))
    assert [part.model.first for part in parts] == [0, 8, 16, 24]
    for place in range(len(whole.model.parameters())):
        pieces = [part.model.parameters()[place] for part in parts]
        joined = pieces[0] if place == 3 else torch.cat(pieces)
        assert torch.equal(joined, whole.model.parameters()[place])
    assert torch.equal(torch.cat([part.silent for part in parts]), whole.silent)


def test_latents_that_cannot_be_dealt_evenly_are_refused() -> None:
    seat = Parallel()
    seat.latent = 3
    with pytest.raises(ValueError, match="32 latents cannot be split evenly over 3"):
        seat.latents(32)


def test_a_grid_of_another_size_than_the_group_is_refused() -> None:
    with pytest.raises(ValueError, match="the process group has 1"):
        Parallel(2, 2)
