"""A harvest that several workers share: the leader, which has the run, and helpers, which are otherwise idle.

The leader writes the missing groups of positions as rows, reads one group after another itself, and moves in what
helpers have put into the artifact store. It waits only for helpers whose lease is alive, so a harvest without helpers
is an ordinary harvest, and one that loses all of them still ends.

A helper loads the model before it claims anything, so nobody waits for that. It claims one group at a time, checks each
time whether a run is waiting, which goes first, and leaves a group that it cannot read to others. Only the leader can
fail the run.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock
from featurewatch.service.kit.artifacts import ArtifactStore, DamagedArtifactError, content_key
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.service.models import Run, Shard
from featurewatch.service.runs import queries as runs
from featurewatch.service.shards import logic, queries
from featurewatch.workers.activations.corpus import load_documents
from featurewatch.workers.activations.harvest.reading import Group
from featurewatch.workers.activations.harvest.shards import HarvestSpec, Shards, open_shards
from featurewatch.workers.activations.positions import Positions
from featurewatch.workers.activations.sources.identity import Reference, Verified, verified
from featurewatch.workers.activations.tensorfiles import settle
from featurewatch.workers.errors import LeaseLostError, RunError, WorkerStoppingError
from featurewatch.workers.execution import Execution
from featurewatch.workers.execution.heartbeat import Heartbeat
from featurewatch.workers.execution.lease import Lease
from featurewatch.workers.pipelines.shared.context import device_of, set_threads

log = structlog.get_logger("featurewatch.worker")

TASK = "task.json"
WAIT_SECONDS = 0.25
LOOK_SECONDS = 1.0
DECLINED_SECONDS = 300.0
"""How long a worker ignores a harvest that it could not help with."""
_declined: dict[str, float] = {}
"""folder -> when this process declined it"""


@dataclass(frozen=True)
class HarvestTask:
    """What a harvest reads. Any worker makes the same HarvestSpec from it, apart from its own folders."""

    reference: dict[str, Any]
    """A resolved `Reference`"""
    hook_points: list[str]
    documents: str
    """Artifact: the family's copy of its corpus"""
    context_length: int
    positions: dict[str, Any] | None
    """The family's. None: this checkpoint defines them"""
    skip_tokens: int
    max_norm_ratio: float
    shard_positions: int

    def spec(self, settings: Settings, artifacts: ArtifactStore, device: str, checkpoint: Verified) -> HarvestSpec:
        """The specification for a verified checkpoint, with corpus and positions loaded."""
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


class HarvestLeader:
    """The worker that has the run, and the groups that it shares: a `Sharing`."""

    def __init__(self, execution: Execution, task: HarvestTask) -> None:
        self.execution, self.task = execution, task
        self._elsewhere, self._looked = 0, float("-inf")

    def groups(self, shards: Shards, missing: list[Group], out: Path, wait: Callable[[], None]) -> Iterator[Group]:
        """Groups for the leader to read. At the end those of the helpers are in `out` too."""
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
        """Positions that helpers have read; at most a second old."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            with self.execution.read() as session:
                self._elsewhere = queries.read_by_helpers(session, self.execution.run_id)
            self._looked = time.monotonic()
        return self._elsewhere

    def _offer(self, shards: Shards, missing: list[Group], out: Path) -> tuple[str, str, dict[int, Group]]:
        """Offer the missing groups. Returns their folder, the name of this worker, and the groups by number.

        Takes over what helpers of an earlier attempt have read, and removes leftovers of the family's other harvests.
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
        """Move groups that helpers have read into `out`, and remove them from `left`."""
        with self.execution.read() as session:
            done = queries.done_by_helpers(session, self.execution.run_id, folder)
        for row in done:
            if row.number not in left:
                continue
            self._fetch(shards, group_artifact(folder, row.number), left[row.number], out)
            if shards.are_whole(left[row.number], out):
                del left[row.number]
            else:
                log.warning("a helper's shards are incomplete; reading them again", group=row.number, by=row.worker)
                with self.execution.write() as session:
                    queries.reopen(session, row.id)

    def _fetch(self, shards: Shards, name: str, group: Group, out: Path) -> None:
        """Move the shards that a helper has stored into `out`. The caller checks that they are complete."""
        artifacts = self.execution.artifacts
        if not artifacts.exists(name):
            return
        try:
            for file in shards.files(group, artifacts.path(name)).values():
                if file.is_file():
                    _take(file, out / file.name)
        except DamagedArtifactError as error:  # or an earlier attempt was killed while it moved them
            log.warning("a helper's shards are damaged", artifact=name, reason=error.reason)
        except FileNotFoundError:
            log.warning("a helper's shards are missing", artifact=name)
        artifacts.remove(name)


def group_artifact(folder: str, number: int) -> str:
    """Artifact of one group: a folder with a file for each hook point."""
    return f"{folder}/{number:05d}"


def _take(file: Path, place: Path) -> None:
    """Move a file: rename it within a file system, else copy it atomically."""
    try:
        file.replace(place)
    except OSError:
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        shutil.copyfile(file, temporary)
        settle(temporary, place)


class ShardLease(Lease):
    """A helper's claim of one group, kept by a heartbeat."""

    def __init__(self, shard: Shard, settings: Settings, database: Database, stop: Callable[[], bool]) -> None:
        super().__init__(settings.lease_seconds)
        self.shard, self.run_id, self.settings, self.database = shard, shard.run_id, settings, database
        self.positions_read = 0
        self._stop = stop

    def add(self, positions: int) -> None:
        self.positions_read += positions

    def check(self) -> None:
        """Raise LeaseLostError if the group, or its run, is no longer wanted from here; WorkerStoppingError."""
        if self.lost or self.left() <= 0:
            raise _not_wanted(self.shard)
        if self._stop():
            raise WorkerStoppingError("the worker was asked to stop")

    def snapshot(self) -> tuple[Any, ...]:
        return (self.positions_read,)

    def beat(self) -> bool:
        began = time.monotonic()
        with self.database.write() as session:
            held = logic.heartbeat(session, self.shard, read=self.positions_read, lease_seconds=self.seconds)
        self.lost = not held
        self.renew(began)
        return held


def _not_wanted(shard: Shard) -> LeaseLostError:
    return LeaseLostError(f"group {shard.number} of run {shard.run_id} is no longer wanted from this worker")


class HarvestOffer(NamedTuple):
    """A run with groups waiting."""

    run_id: str
    folder: str


class HarvestHelper:
    """A worker without its own run."""

    def __init__(
        self, settings: Settings, database: Database, artifacts: ArtifactStore, *, worker: str, stop: Callable[[], bool]
    ) -> None:
        self.settings, self.database, self.artifacts = settings, database, artifacts
        self.worker, self.stop = worker, stop

    def help(self) -> int:
        """Read groups until none is waiting, or a run is, or this process should end. Returns how many were read."""
        done = 0
        while (offer := self._look()) is not None:
            try:
                done += self._help(offer)
            except LeaseLostError as error:
                log.info("the group was not needed", run=offer.run_id, reason=str(error))
            except WorkerStoppingError:
                break
            except AWAY as error:
                log.warning("stopped helping: the database is unavailable", run=offer.run_id, error=str(error.orig))
                break
            except Exception as error:
                log.exception("cannot help with a harvest", run=offer.run_id, worker=self.worker, reason=str(error))
                _declined[offer.folder] = time.monotonic()
        return done

    def _look(self) -> HarvestOffer | None:
        if self.stop():
            return None
        with self.database.read() as session:
            if runs.candidates(session, run_id=None):
                return None
            offers = [HarvestOffer(*row) for row in queries.offers(session, clock.database_now(session))]
        now = time.monotonic()
        return next((o for o in offers if now - _declined.get(o.folder, float("-inf")) > DECLINED_SECONDS), None)

    def _help(self, offer: HarvestOffer) -> int:
        """Read groups of one harvest while it is the first one waiting. Returns how many were read."""
        stored = json.loads(self.artifacts.path(f"{offer.folder}/{TASK}").read_text(encoding="utf-8"))
        done, check, reference = 0, self._watch(offer), Reference(**stored["task"]["reference"])
        with verified(reference, self.settings, lambda _done, _total: check()) as checkpoint:
            shards = self._load(offer, stored, checkpoint, check)
            while self._look() == offer:
                done += self._do_one(offer, shards, checkpoint)
        return done

    def _watch(self, offer: HarvestOffer) -> Callable[[], None]:
        """A check for the long steps before the first claim: WorkerStoppingError, or LeaseLostError if outdated."""
        looked = time.monotonic()

        def check() -> None:
            nonlocal looked
            if self.stop():
                raise WorkerStoppingError("the worker was asked to stop")
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if self._look() != offer:
                    raise LeaseLostError("its groups are read, or a run is waiting")

        return check

    def _load(
        self, offer: HarvestOffer, stored: dict[str, Any], checkpoint: Verified, check: Callable[[], None]
    ) -> Shards:
        """Open the model and the corpus. RunError `other-terms` if they are not what the leader reads."""
        set_threads(self.settings)
        log.info("helping", run=offer.run_id, worker=self.worker)
        task = HarvestTask(**stored["task"])
        shards = open_shards(task.spec(self.settings, self.artifacts, str(device_of(self.settings)), checkpoint), check)
        terms = shards.terms()
        if not offer.folder.endswith(content_key(**terms)):
            differ = [name for name in terms if json.dumps(terms[name]) != json.dumps(stored["terms"].get(name))]
            raise RunError(
                "other-terms",
                f"this worker's {', '.join(differ)} differ from those of the worker that leads the harvest",
            )
        return shards

    def _do_one(self, offer: HarvestOffer, shards: Shards, checkpoint: Verified) -> int:
        """Claim a group, read it and store it. Returns 1, or 0 if no group is waiting."""
        with self.database.write() as session:
            shard = logic.claim(session, offer.run_id, worker=self.worker, lease_seconds=self.settings.lease_seconds)
        if shard is None:
            return 0
        name = group_artifact(offer.folder, shard.number)
        lease = ShardLease(shard, self.settings, self.database, self.stop)
        heartbeat = Heartbeat(lease)
        heartbeat.start()

        def check() -> None:
            lease.check()
            checkpoint.recheck()

        try:
            with self.artifacts.create(name) as place:
                place.mkdir()
                shards.write(shards.groups[shard.number], place, check=check, read=lease.add)
            self.artifacts.forget(name)
            heartbeat.stop()
            with self.database.write() as session:
                held = logic.finish(session, shard)
        except BaseException:
            heartbeat.stop()
            with suppress(*AWAY), self.database.write() as session:
                logic.release(session, shard)
            raise
        if not held:
            self.artifacts.remove(name)  # the leader does not know about it
            raise _not_wanted(shard)
        log.info("read a group", run=offer.run_id, group=shard.number)
        return 1
