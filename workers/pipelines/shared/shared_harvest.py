"""A harvest that several workers share: the leader, which has the run, and helpers, which have nothing else to do.

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
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import structlog
import torch

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock
from featurewatch.service.kit.artifacts import ArtifactStore, DamagedArtifactError, content_key
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.service.models import Run, Shard
from featurewatch.service.runs import queries as runs
from featurewatch.service.shards import logic, queries
from featurewatch.workers.activations.harvest.reading import Group
from featurewatch.workers.activations.harvest.shards import Shards, open_shards
from featurewatch.workers.activations.sources.identity import Reference, Verified, verified
from featurewatch.workers.activations.tensorfiles import settle
from featurewatch.workers.errors import LeaseLostError, RunError, WorkerStoppingError
from featurewatch.workers.execution import Execution
from featurewatch.workers.heart import Heart
from featurewatch.workers.pipelines.shared.context import device_of
from featurewatch.workers.pipelines.shared.harvest_task import HarvestTask

log = structlog.get_logger("featurewatch.worker")

TASK = "task.json"
WAIT_SECONDS = 0.25
LOOK_SECONDS = 1.0
DECLINED_SECONDS = 300.0
"""So long a worker leaves a harvest alone that it could not help with."""
_declined: dict[str, float] = {}
"""folder -> when, in this process."""


class HarvestLeader:
    """The run's own worker, and the groups that it shares: a `Sharing`."""

    def __init__(self, execution: Execution, task: HarvestTask) -> None:
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


class ShardLease:
    """A claimed group, held by a heartbeat."""

    def __init__(self, shard: Shard, settings: Settings, database: Database, stop: Callable[[], bool]) -> None:
        self.shard, self.run_id, self.settings, self.database = shard, shard.run_id, settings, database
        self.read = 0
        self._stop, self._lost = stop, False
        self._until = time.monotonic() + settings.lease_seconds

    def add(self, positions: int) -> None:
        """So many more were read."""
        self.read += positions

    def check(self) -> None:
        """LeaseLostError where the group or its run is lost or the run is to end; WorkerStoppingError."""
        if self._lost or self.lease_left() <= 0:
            raise LeaseLostError(f"group {self.shard.number} of run {self.run_id} is not wanted from here any more")
        if self._stop():
            raise WorkerStoppingError("the worker was told to end")

    def snapshot(self) -> tuple[Any, ...]:
        """What a beat would write."""
        return (self.read,)

    def beat(self) -> bool:
        """Renew the lease and write the progress; False: lost."""
        began, seconds = time.monotonic(), self.settings.lease_seconds
        with self.database.write() as session:
            held = logic.heartbeat(session, self.shard, read=self.read, lease_seconds=seconds)
        self._lost = not held
        self._until = began + seconds
        return held

    def lease_left(self) -> float:
        """Seconds until the lease is over, as far as this worker knows."""
        return self._until - time.monotonic()

    def lose(self) -> None:
        """Give the group up: its lease is over."""
        self._lost = True


class HarvestOffer(NamedTuple):
    """A run with groups that wait."""

    run_id: str
    folder: str


class HarvestHelper:
    """One worker, while it has nothing else to do."""

    def __init__(
        self, settings: Settings, database: Database, artifacts: ArtifactStore, *, worker: str, stop: Callable[[], bool]
    ) -> None:
        self.settings, self.database, self.artifacts = settings, database, artifacts
        self.worker, self.stop = worker, stop

    def help(self) -> int:
        """Do groups until none waits, or a run does, or this process is to end; how many were done."""
        done = 0
        while (offer := self._look()) is not None:
            try:
                done += self._help(offer)
            except LeaseLostError as error:
                log.info("helped in vain", run=offer.run_id, reason=str(error))
            except WorkerStoppingError:
                break
            except AWAY as error:
                log.warning("helps no more: the database is away", run=offer.run_id, error=str(error.orig))
                break
            except Exception as error:
                log.exception("cannot help", run=offer.run_id, worker=self.worker, reason=str(error))
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
        """Do groups of one harvest while it is the first that waits; how many were done."""
        task = json.loads(self.artifacts.path(f"{offer.folder}/{TASK}").read_text(encoding="utf-8"))["task"]
        done, check = 0, self._watch(offer)
        with verified(Reference(**task["reference"]), self.settings, lambda _done, _total: check()) as checkpoint:
            shards = self._load(offer, checkpoint, check)
            while self._look() == offer:
                done += self._do_one(offer, shards, checkpoint)
        return done

    def _watch(self, offer: HarvestOffer) -> Callable[[], None]:
        """A check for what takes long before the first claim. WorkerStoppingError; LeaseLostError every so often."""
        looked = time.monotonic()

        def check() -> None:
            nonlocal looked
            if self.stop():
                raise WorkerStoppingError("the worker was told to end")
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if self._look() != offer:
                    raise LeaseLostError("its groups are done, or a run waits")

        return check

    def _load(self, offer: HarvestOffer, checkpoint: Verified, check: Callable[[], None]) -> Shards:
        """The model and the corpus as the run's own worker has them; RunError where they are others here."""
        told = json.loads(self.artifacts.path(f"{offer.folder}/{TASK}").read_text(encoding="utf-8"))
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        log.info("helps", run=offer.run_id, worker=self.worker)
        task = HarvestTask(**told["task"])
        device = device_of(cast(Any, self))  # it looks at the settings alone
        shards = open_shards(task.spec(self.settings, self.artifacts, str(device), checkpoint), check)
        terms = shards.terms()
        if not offer.folder.endswith(content_key(**terms)):
            differ = [name for name in terms if json.dumps(terms[name]) != json.dumps(told["terms"].get(name))]
            raise RunError("other-terms", f"this worker reads with other {', '.join(differ)} than the run's own")
        return shards

    def _do_one(self, offer: HarvestOffer, shards: Shards, checkpoint: Verified) -> int:
        """Claim a group, read it, put it into the store; 0 where none waits any more."""
        with self.database.write() as session:
            shard = logic.claim(session, offer.run_id, worker=self.worker, lease_seconds=self.settings.lease_seconds)
        if shard is None:
            return 0
        name, lease = part(offer.folder, shard.number), ShardLease(shard, self.settings, self.database, self.stop)
        heart = Heart(lease)
        heart.start()

        def check() -> None:
            lease.check()
            checkpoint.recheck()

        try:
            with self.artifacts.create(name) as place:
                place.mkdir()
                shards.write(shards.groups[shard.number], place, check=check, read=lease.add)
            self.artifacts.forget(name)
            heart.stop()
            with self.database.write() as session:
                held = logic.finish(session, shard)
        except BaseException:
            heart.stop()
            with suppress(*AWAY), self.database.write() as session:
                logic.release(session, shard)
            raise
        if not held:
            self.artifacts.remove(name)  # nobody knows of it
            raise LeaseLostError(f"group {shard.number} of run {offer.run_id} is not wanted from here any more")
        log.info("did a group", run=offer.run_id, group=shard.number)
        return 1
