"""A harvest that several workers share: the part of the run's own worker, and what it tells the others.

The run's worker offers the groups that are missing as rows, does one after another itself, and moves in what helpers
(see `helping`) have put into the artifact store. It waits for nobody but helpers whose lease is alive, so a harvest
without any helper is a harvest as ever, and one that loses all helpers ends too.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore, DamagedArtifactError, content_key
from featurewatch.service.models import Run
from featurewatch.service.shards import logic, queries
from featurewatch.workers.activations import HarvestSpec, Positions, load_documents
from featurewatch.workers.activations.harvest.reading import Group
from featurewatch.workers.activations.harvest.shards import Shards
from featurewatch.workers.activations.sources.identity import Reference, Verified
from featurewatch.workers.activations.tensorfiles import settle
from featurewatch.workers.execution import Execution

log = structlog.get_logger("featurewatch.worker")

TASK = "task.json"
WAIT_SECONDS = 0.25
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Task:
    """What a harvest reads, as JSON: any worker makes the same HarvestSpec of it, but for its own folders."""

    reference: dict[str, Any]
    """A `Reference`, resolved"""
    hook_points: list[str]
    documents: str
    """Artifact: the family's copy of its corpus"""
    context_length: int
    positions: dict[str, Any] | None
    """The family's; None: this checkpoint defines them."""
    skip_tokens: int
    max_norm_ratio: float
    shard_positions: int

    def spec(self, settings: Settings, artifacts: ArtifactStore, device: str, checkpoint: Verified) -> HarvestSpec:
        """With corpus and positions loaded, for the checkpoint that the reference leads to."""
        positions = Positions.load(artifacts.path(self.positions["artifact"])) if self.positions else None
        return HarvestSpec(
            uri=checkpoint.uri,
            adapter=checkpoint.adapter,
            content=checkpoint.digest,
            model=Reference(**self.reference).title,
            hook_points=self.hook_points,
            corpus=load_documents(artifacts.path(self.documents)),
            context_length=self.context_length,
            positions=positions,
            roots=checkpoint.roots,
            device=device,
            cache_dir=settings.cache_dir,
            skip_tokens=self.skip_tokens,
            max_norm_ratio=self.max_norm_ratio,
            shard_positions=self.shard_positions,
        )


class Shared:
    """The run's own worker, and the groups that it shares: a `Sharing`."""

    def __init__(self, execution: Execution, task: Task) -> None:
        self.execution, self.task = execution, task
        self._elsewhere, self._looked = 0, float("-inf")

    def groups(self, shards: Shards, missing: list[Group], out: Path, wait: Callable[[], None]) -> Iterator[Group]:
        """Groups to do oneself; at its end those of the helpers are in `out` too."""
        folder, worker, left = self._offer(shards, missing, out)
        mine = None
        while left or mine:
            with self.execution.write() as session:
                if mine is not None:
                    logic.finish(session, mine)
                mine = logic.claim(session, self.execution.run_id, worker=worker, lease_seconds=None)
            self._looked = float("-inf")
            self._collect(shards, folder, left, out)
            if mine is not None:
                yield left.pop(mine.number)
            elif left:
                wait()
                time.sleep(WAIT_SECONDS)
        self.execution.artifacts.remove(folder)

    def elsewhere(self) -> int:
        """Positions that helpers have read, as of a second ago."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            with self.execution.read() as session:
                self._elsewhere = queries.read_by_helpers(session, self.execution.run_id)
            self._looked = time.monotonic()
        return self._elsewhere

    def _offer(self, shards: Shards, missing: list[Group], out: Path) -> tuple[str, str, dict[int, Group]]:
        """Rows for what is missing: their folder, the name of this worker, and the groups by number.

        What helpers of an earlier attempt have done is taken over; what is left of other harvests of the family goes.
        """
        execution, artifacts, terms = self.execution, self.execution.artifacts, shards.terms()
        folder = f"{execution.family_id}/shards-{content_key(**terms)}"
        left = {group.number: group for group in missing}
        self._collect(shards, folder, left, out)
        with execution.read() as session:
            stale = [other for other in queries.folders(session, execution.family_id) if other != folder]
        for other in stale:
            artifacts.remove(other)
        if not artifacts.exists(f"{folder}/{TASK}"):
            with artifacts.create(f"{folder}/{TASK}") as place:
                place.write_text(json.dumps({"task": asdict(self.task), "terms": terms}), encoding="utf-8")
        with execution.write() as session:
            run = session.get_one(Run, execution.run_id, populate_existing=True)
            sizes = [(number, group.end - group.begin) for number, group in left.items()]
            logic.open_all(session, run, folder=folder, sizes=sizes)
            return folder, str(run.worker), left

    def _collect(self, shards: Shards, folder: str, left: dict[int, Group], out: Path) -> None:
        """Move groups that helpers have done into `out`, and out of `left`."""
        with self.execution.read() as session:
            done = queries.done_by_helpers(session, self.execution.run_id, folder)
        for row in done:
            if row.number not in left:
                continue
            self._fetch(shards, part(folder, row.number), left[row.number], out)
            if shards.are_whole(left[row.number], out):
                del left[row.number]
            else:
                log.warning("a helper's shards are not whole; they are read again", group=row.number, by=row.worker)
                with self.execution.write() as session:
                    queries.reopen(session, row.id)

    def _fetch(self, shards: Shards, name: str, group: Group, out: Path) -> None:
        """Move a helper's shards into `out`, those that are there: the caller looks whether they are whole."""
        artifacts = self.execution.artifacts
        if not artifacts.exists(name):
            return
        try:
            for file in shards.files(group, artifacts.path(name)).values():
                if file.is_file():
                    _take(file, out / file.name)
        except DamagedArtifactError as error:  # or an earlier attempt has moved some of it, and was killed
            log.warning("a helper's shards are damaged", artifact=name, reason=error.reason)
        except FileNotFoundError:
            log.warning("a helper's shards are gone", artifact=name)
        artifacts.remove(name)


def part(folder: str, number: int) -> str:
    """Artifact of one group: a folder with a file for each hook point."""
    return f"{folder}/{number:05d}"


def _take(file: Path, place: Path) -> None:
    """Move a file: a rename where both are on one file system, else a copy that is whole or not there."""
    try:
        file.replace(place)
    except OSError:
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        shutil.copyfile(file, temporary)
        settle(temporary, place)
