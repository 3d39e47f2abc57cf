"""The cost of verification: `python -m benchmarks.identity`.

1. Hashing a checkpoint's files, compared with hashing data in memory.
2. Onboardings of SmolLM2-135M, a first fit and an extension, alternately with and without verification of the
   checkpoint's identity and of artifacts when they are written and opened. The last line is one JSON object.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from featurewatch.service import migrate
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints.schemas import CheckpointIn
from featurewatch.service.config import Settings
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.kit import artifacts, digests
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.models import Run
from featurewatch.service.store.ledger import open_store
from featurewatch.workers import runner
from featurewatch.workers.demo.main import Plan
from featurewatch.workers.demo.models import base_model, save_rounded

FILE_BYTES = 512 * 2**20
ZERO = "0" * 64
PLAN = Plan()


def hashing(folder: Path, files: int) -> dict[str, float]:
    """Bytes per second of the hash on one block in memory, by one thread and by all, and of `sha256_all` on files."""
    block = os.urandom(2**26)
    began = time.perf_counter()
    for _ in range(8):
        hashlib.sha256(block).digest()
    alone = 8 * len(block) / (time.perf_counter() - began)
    paths = [folder / f"file{number}" for number in range(files)]
    for path in paths:
        with path.open("wb") as file:
            for _ in range(FILE_BYTES // len(block)):
                file.write(block)
    digests._memory.clear()
    began = time.perf_counter()
    digests.sha256_all(paths)
    rate = files * FILE_BYTES / (time.perf_counter() - began)
    for path in paths:
        path.unlink()
    return {"sha256_one_thread": alone, "files": rate}


@contextmanager
def unverified() -> Iterator[None]:
    """Disable hashing and nothing else."""

    def pretend(paths: Sequence[Path], progress: Any = None) -> list[str]:
        return [ZERO for _ in paths]

    with (
        patch.object(artifacts, "sha256_all", pretend),
        patch("featurewatch.service.checkpoints.contents.sha256_all", pretend),
        patch("featurewatch.workers.activations.sources.identity.Verified.recheck", lambda _: None),
    ):
        yield


def onboard(folder: Path, releases: list[Path]) -> list[float]:
    """Seconds of the run of each release, in an installation of its own."""
    digests._memory.clear()
    settings = Settings(data_dir=folder, roots=str(releases[0].parent), log_level="ERROR")
    migrate.upgrade(settings)
    database, seconds = Database(settings.resolved_database_url), []
    body = {"name": "smol", "hook_points": [PLAN.hook_point], "corpus": PLAN.corpus, "crosscoder": PLAN.crosscoder}
    with database.write() as session:
        families.create(session, settings, FamilyIn.model_validate(body))
    for number, release in enumerate(releases):
        with database.write() as session:
            wanted = CheckpointIn(name=f"v{number}", uri=release.resolve().as_uri())
            checkpoints.register(session, settings, families.get(session, "smol"), wanted)
        began = time.perf_counter()
        run_id = runner.run_next(settings=settings, database=database, artifacts=open_store(settings, database))
        seconds.append(time.perf_counter() - began)
        with database.read() as session:
            run = session.get_one(Run, run_id)
            if run.state != "succeeded":
                raise SystemExit(str(run.error))
    database.close()
    shutil.rmtree(folder)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/featurewatch/demo").expanduser())
    options = parser.parse_args()
    torch.manual_seed(0)
    configure_logging(Settings(log_level="ERROR"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {"hashing": hashing(folder, 2)}
        print(result["hashing"], file=sys.stderr)
        base = base_model(options.cache, lambda text: print(text, file=sys.stderr))
        second = folder / "releases" / "v2"
        shutil.copytree(base, folder / "releases" / "v1")
        save_rounded(base, second)
        releases = [folder / "releases" / "v1", second]
        onboard(folder / "data", releases)  # imports, and the first use of everything
        ratios: list[list[float]] = [[], []]
        for pair in range(options.pairs):
            timed: dict[bool, list[float]] = {}
            for verify in ((True, False), (False, True))[pair % 2]:
                if verify:
                    timed[verify] = onboard(folder / "data", releases)
                else:
                    with unverified():
                        timed[verify] = onboard(folder / "data", releases)
            for run, found in enumerate(ratios):
                found.append(timed[True][run] / timed[False][run])
            print(timed, file=sys.stderr)
        for run, found in zip(("first_fit", "extension"), ratios, strict=True):
            result[run] = {"ratios": [round(x, 4) for x in found], "median": round(statistics.median(found), 4)}
        print(json.dumps(result))


if __name__ == "__main__":
    main()
