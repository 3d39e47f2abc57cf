"""Training on several processes: the result, and how it ends when it is stopped, diverges, or is killed."""

import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import billiard
import pytest
import torch

from featurewatch.workers.activations.models.loading import compute_dtype
from featurewatch.workers.crosscoder.model import Crosscoder
from featurewatch.workers.errors import RunError, WorkerStoppingError
from tests.processes import alive
from tests.unit.activations.tiny import in_place, zero
from tests.workers.conftest import ROOT, wait_for
from tests.workers.fits import execution_of, fitted, write_activations

torch.set_num_threads(1)
TOLERANCE = 5e-3 if compute_dtype("cpu") == torch.float32 else 5e-2
"""Where the encoder's product is rounded to bfloat16, other sums in it move a few choices of latents.
`tests/unit/crosscoder/test_parallel.py` holds float32 to rounding on every machine."""


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the activations of v1 and v2."""
    folder = tmp_path_factory.mktemp("activations")
    write_activations(folder)
    return folder


@pytest.fixture
def folder(activations: Path, tmp_path: Path) -> Path:
    """A folder of the test's own, with the activations."""
    for name in ("v1", "v2"):
        (tmp_path / name).symlink_to(activations / name)
    return tmp_path


def _close(a: Crosscoder, b: Crosscoder) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert float((p - q).norm() / q.norm()) < TOLERANCE


@pytest.mark.parametrize("n_features", [48, 47], ids=["latents dealt", "positions dealt"])
def test_two_processes_give_the_dictionary_of_one(folder: Path, n_features: int) -> None:
    options = {"n_features": n_features, "steps": 20}
    one = fitted(execution_of(folder), folder, **options)
    (folder / "x.fit").unlink(missing_ok=True)
    execution = execution_of(folder, fit_processes=2)
    _close(fitted(execution, folder, **options), one)
    assert execution.snapshot()[1] == 1.0
    assert not active_children()


def test_one_process_goes_on_from_what_two_saved(folder: Path) -> None:
    whole = fitted(execution_of(folder), folder, sparsity="jumprelu")
    (folder / "x.fit").unlink(missing_ok=True)
    execution = execution_of(folder, (folder / "x.fit").exists, fit_processes=2, save_seconds=0.01)
    with pytest.raises(WorkerStoppingError):
        fitted(execution, folder, sparsity="jumprelu")
    assert not active_children()
    _close(fitted(execution_of(folder), folder, sparsity="jumprelu"), whole)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 5])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("damage", [lambda file: in_place(file, zero), _cut], ids=["zeroed", "truncated"])
def test_a_saved_fit_that_is_damaged_begins_again(folder: Path, damage: Callable[[Path], None], processes: int) -> None:
    whole, saved = fitted(execution_of(folder), folder, steps=20), folder / "x.fit"
    saved.unlink(missing_ok=True)
    with pytest.raises(WorkerStoppingError):
        fitted(execution_of(folder, saved.exists, save_seconds=1e-9), folder, steps=20)
    damage(saved)
    _close(fitted(execution_of(folder, fit_processes=processes), folder, steps=20), whole)


def _once_it_runs(act: Callable[[], bool]) -> Callable[[], bool]:
    """What an execution asks while it waits: `act` answers once both processes are there."""

    def asked() -> bool:
        return len(active_children()) == 2 and act()

    return asked


def test_a_fit_that_is_stopped_ends_its_processes(folder: Path) -> None:
    """A cancelled run and a worker that ends come by the same check."""
    seen: list[BaseProcess] = []

    def stop() -> bool:
        seen[:] = active_children()
        return execution.snapshot()[1] > 0

    execution = execution_of(folder, _once_it_runs(stop), fit_processes=2)
    with pytest.raises(WorkerStoppingError):
        fitted(execution, folder, steps=1_000_000)
    assert len(seen) == 2
    assert not any(child.is_alive() for child in seen)
    assert not (folder / "x.meeting").exists()


@pytest.mark.parametrize("when", ["at once", "in the middle"])
def test_a_fit_whose_process_is_killed_fails_and_says_so(folder: Path, when: str) -> None:
    def kill() -> bool:
        if when == "at once" or execution.snapshot()[1] > 0:
            active_children()[-1].kill()
        return False

    execution = execution_of(folder, _once_it_runs(kill), fit_processes=2)
    began = time.monotonic()
    with pytest.raises(RunError, match="SIGKILL") as raised:
        fitted(execution, folder, steps=1_000_000)
    assert raised.value.code == "fit-process-killed"
    assert time.monotonic() - began < 60
    assert not active_children()


@pytest.mark.parametrize(
    ("processes", "rate", "sparsity"),
    [(1, rate, sparsity) for rate in (1e20, float("inf")) for sparsity in ("batch_topk", "topk", "l1", "jumprelu")]
    + [(2, float("inf"), "l1")],
)
def test_a_fit_that_diverges_says_so(folder: Path, processes: int, rate: float, sparsity: str) -> None:
    execution = execution_of(folder, fit_processes=processes)
    with pytest.raises(RunError, match="use a learning rate below") as raised:
        fitted(execution, folder, learning_rate=rate, sparsity=sparsity)
    assert raised.value.code == "fit-diverged"
    assert not active_children()


def test_activations_that_are_damaged_are_the_run_s_error(folder: Path) -> None:
    """What a process finds of bad input is told as it would be by one."""
    (folder / "v2").unlink()
    write_activations(folder / "own")
    (folder / "own" / "v2").rename(folder / "v2")
    execution = execution_of(folder, lambda: bool((folder / "v2" / "manifest.json").unlink(missing_ok=True)),
                             fit_processes=2)  # fmt: skip
    with pytest.raises(RunError):
        fitted(execution, folder)


def test_celery_s_processes_may_have_children(folder: Path) -> None:
    """Celery's pool marks its processes as daemons, to which multiprocessing denies any."""
    process = billiard.get_context("spawn").Process(target=_fit_in_pool, args=(folder,), daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert (folder / "x.fit").exists()


def _fit_in_pool(folder: Path) -> None:
    fitted(execution_of(folder, fit_processes=2), folder, steps=3)


def test_the_processes_end_with_a_worker_that_is_killed(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.workers.fits", str(folder)]
    with subprocess.Popen(command, cwd=ROOT) as worker:
        try:
            wait_for((folder / "x.fit").exists, 60)
            ranks = [int(pid) for pid in (folder / "ranks").read_text().split()]
        finally:
            worker.kill()
    assert len(ranks) == 2
    wait_for(lambda: not any(map(alive, ranks)), 30)
