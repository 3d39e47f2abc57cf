"""The cost of verification: `python -m benchmarks.identity`.

1. Hashing a checkpoint's files, compared with hashing data in memory.
2. Onboardings of SmolLM2-135M, first fits and extensions, alternately with and without verification of the
   checkpoint's identity and of artifacts when they are written and opened. Pairs differ by several percent on a busy
   machine, so the share of the time that verification takes is measured directly too. The last line is one JSON object.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import torch

from featurewatch.service import migrate
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints.schemas import CheckpointIn
from featurewatch.service.config import Settings
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.kit import digests
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


VERIFICATION = (
    "featurewatch.service.kit.artifacts.sha256_all",
    "featurewatch.service.checkpoints.contents.sha256_all",
    "featurewatch.workers.activations.sources.identity.Verified.recheck",
)
"""The functions that verification spends its time in."""


@contextmanager
def unverified() -> Iterator[None]:
    """Disable hashing and nothing else."""

    def pretend(paths: Sequence[Path], progress: Any = None) -> list[str]:
        return [ZERO for _ in paths]

    with patch(VERIFICATION[0], pretend), patch(VERIFICATION[1], pretend), patch(VERIFICATION[2], lambda _: None):
        yield


@contextmanager
def measured() -> Iterator[list[float]]:
    """Count the seconds spent in verification."""
    seconds: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds.append(time.perf_counter() - began)

        return call

    with ExitStack() as stack:
        for name in VERIFICATION:
            stack.enter_context(patch(name, timed(resolve_name(name))))
        yield seconds


class Onboarding:
    """An installation in which releases are onboarded one after the other."""

    def __init__(self, folder: Path, releases: list[Path]) -> None:
        self.settings = Settings(data_dir=folder, roots=str(releases[0].parent), log_level="ERROR")
        self.releases = releases

    def create(self) -> None:
        """Create the database and the family."""
        migrate.upgrade(self.settings)
        body = {"name": "smol", "hook_points": [PLAN.hook_point], "corpus": PLAN.corpus, "crosscoder": PLAN.crosscoder}
        database = Database(self.settings.resolved_database_url)
        with database.write() as session:
            families.create(session, self.settings, FamilyIn.model_validate(body))
        database.close()

    def run(self, number: int, *, verify: bool) -> tuple[float, float]:
        """Seconds of the run of a release, and those spent in verification, as a worker that has just started."""
        digests._memory.clear()
        settings, database = self.settings, Database(self.settings.resolved_database_url)
        with database.write() as session:
            wanted = CheckpointIn(name=f"v{number}", uri=self.releases[number].resolve().as_uri())
            checkpoints.register(session, settings, families.get(session, "smol"), wanted)
        with measured() if verify else unverified() as seconds:
            began = time.perf_counter()
            run_id = runner.run_next(settings=settings, database=database, artifacts=open_store(settings, database))
            took = time.perf_counter() - began
        with database.read() as session:
            run = session.get_one(Run, run_id)
            if run.state != "succeeded":
                raise SystemExit(str(run.error))
        database.close()
        return took, sum(seconds or [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="pairs of extensions")
    parser.add_argument("--first-pairs", type=int, default=2, help="pairs of first fits, which take longer")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/featurewatch/demo").expanduser())
    options = parser.parse_args()
    torch.manual_seed(0)
    configure_logging(Settings(log_level="ERROR"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {"hashing": hashing(folder, 2)}
        print(result["hashing"], file=sys.stderr)
        base = base_model(options.cache, lambda text: print(text, file=sys.stderr))
        releases = [folder / "releases" / "v1", folder / "releases" / "v2"]
        shutil.copytree(base, releases[0])
        save_rounded(base, releases[1])
        site = Onboarding(folder / "data", releases)
        # A template for each: without verification the digests in the database are not those of the artifacts.
        fitted = {verify: folder / f"fitted-{verify}" for verify in (True, False)}
        for verify, template in fitted.items():  # and imports, and the first use of everything
            fresh(site, None, 0, verify)
            shutil.copytree(site.settings.data_dir, template)
        result["first_fit"] = pairs(options.first_pairs, lambda verify: fresh(site, None, 0, verify))
        result["extension"] = pairs(options.pairs, lambda verify: fresh(site, fitted[verify], 1, verify))
        print(json.dumps(result))


def fresh(site: Onboarding, template: Path | None, number: int, verify: bool) -> tuple[float, float]:
    """Run a release in a copy of an installation, or in an empty one."""
    shutil.rmtree(site.settings.data_dir, ignore_errors=True)
    if template is None:
        site.create()
    else:
        shutil.copytree(template, site.settings.data_dir)
    return site.run(number, verify=verify)


def pairs(count: int, run: Callable[[bool], tuple[float, float]]) -> dict[str, Any]:
    """Ratios of the times with and without verification, and the share of the time that verification takes."""
    ratios, shares = [], []
    for pair in range(count):
        timed = {verify: run(verify) for verify in ((True, False), (False, True))[pair % 2]}
        print(timed, file=sys.stderr)
        ratios.append(timed[True][0] / timed[False][0])
        shares.append(timed[True][1] / timed[True][0])
    return {
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median": round(statistics.median(ratios), 4),
        "verification_share": round(statistics.median(shares), 4),
    }


if __name__ == "__main__":
    main()
