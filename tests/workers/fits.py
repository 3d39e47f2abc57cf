"""Fits of precomputed activations, as a run has them trained; as a program, one that can be killed."""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.planted_data import make_lineage, write_checkpoint
from featurewatch.service.config import Settings
from featurewatch.service.families.schemas import CrosscoderOptions
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Run
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.activations.store import open_activations
from featurewatch.workers.crosscoder.model import Crosscoder
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import OnboardingContext
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.pipelines.shared.training import Members, train_dictionary

HOOKS = ["resid_post.1"]


def write_activations(folder: Path) -> None:
    """Two checkpoints of width 24 that share 40 features, 6000 positions."""
    lineage = make_lineage(
        1, n_checkpoints=2, n_positions=6000, width=24, n_planted=40, n_suppressed=2, n_removed=2, n_born=2
    )
    for checkpoint in (1, 2):
        write_checkpoint(lineage, checkpoint, folder / f"v{checkpoint}")


def execution_of(folder: Path, stop: Callable[[], bool] = lambda: False, **settings: Any) -> Execution:
    """A run that trains; `stop` says when it is to end, and is asked about five times a second at least."""
    values = Settings(data_dir=folder / "data", device="cpu", lease_seconds=600.0, **settings)
    run = Run(id="run_1", kind="onboard", attempt=1, family_id="fam_1", checkpoint_id="ckp_1", params={}, seconds={})
    artifacts = ArtifactStore(values.artifacts_uri, values.data_dir / "cache")
    database = Database(values.resolved_database_url)  # training neither reads nor writes
    return Execution(run, settings=values, database=database, artifacts=artifacts, stop=stop)


def fitted(execution: Execution, folder: Path, **options: Any) -> Crosscoder:
    """A dictionary of 48 latents over both checkpoints, saved as it goes at folder / `x.fit`."""
    usual = {"n_features": 48, "k": 3, "steps": 60, "batch_size": 256, "learning_rate": 5e-3}
    crosscoder = CrosscoderOptions().model_dump() | usual | options
    context = OnboardingContext(
        family_id="fam_1", family_name="f", checkpoint_id="ckp_1", name="v1", uri="file:///v1", adapter=None,
        documents=None, hook_points=HOOKS, corpus={}, crosscoder=crosscoder, policy=Policy(), positions=None,
        n_features=48, generation=1, parent=None, fit="fit", why="fit",
    )  # fmt: skip
    members = [
        Activations(open_activations(folder / name, hook_points=HOOKS), HOOKS, torch.device("cpu"))
        for name in ("v1", "v2")
    ]
    return train_dictionary(execution, context, Members(members), folder / "x.fit")


def _tell_children(folder: Path) -> bool:
    """Write down which processes fit."""
    new = folder / "ranks.new"
    new.write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
    new.replace(folder / "ranks")  # atomically, for concurrent readers
    return False


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Path(sys.argv[1])
    execution = execution_of(here, lambda: _tell_children(here), fit_processes=2, save_seconds=0.01)
    fitted(execution, here, steps=1_000_000)
