"""A helper: an idle worker that does groups of a harvest that another worker leads (see `sharing`).

It loads the model before it claims anything, so that nobody waits for that; claims one group at a time and looks each
time whether a run waits, which goes first; and leaves a group that it cannot do to others. Only the run's own worker
can fail the run.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, cast

import structlog
import torch

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock
from featurewatch.service.kit.artifacts import ArtifactStore, content_key
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.service.models import Shard
from featurewatch.service.runs import queries as runs
from featurewatch.service.shards import logic, queries
from featurewatch.workers.activations.harvest.shards import Shards, open_shards
from featurewatch.workers.activations.sources.identity import Reference, Verified, verified
from featurewatch.workers.errors import LeaseLostError, RunError, WorkerStoppingError
from featurewatch.workers.heart import Heart
from featurewatch.workers.pipelines.sharing import LOOK_SECONDS, TASK, Task, part
from featurewatch.workers.pipelines.work import device_of

log = structlog.get_logger("featurewatch.worker")

DECLINED_SECONDS = 300.0
"""So long a worker leaves a harvest alone that it could not help with."""
_declined: dict[str, float] = {}
"""folder -> when, in this process."""


class Lease:
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


class Offer(NamedTuple):
    """A run with groups that wait."""

    run_id: str
    folder: str


class Helper:
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

    def _look(self) -> Offer | None:
        if self.stop():
            return None
        with self.database.read() as session:
            if runs.candidates(session, run_id=None):
                return None
            offers = [Offer(*row) for row in queries.offers(session, clock.database_now(session))]
        now = time.monotonic()
        return next((o for o in offers if now - _declined.get(o.folder, float("-inf")) > DECLINED_SECONDS), None)

    def _help(self, offer: Offer) -> int:
        """Do groups of one harvest while it is the first that waits; how many were done."""
        task = json.loads(self.artifacts.path(f"{offer.folder}/{TASK}").read_text(encoding="utf-8"))["task"]
        done, check = 0, self._watch(offer)
        with verified(Reference(**task["reference"]), self.settings, lambda _done, _total: check()) as checkpoint:
            shards = self._load(offer, checkpoint, check)
            while self._look() == offer:
                done += self._do_one(offer, shards, checkpoint)
        return done

    def _watch(self, offer: Offer) -> Callable[[], None]:
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

    def _load(self, offer: Offer, checkpoint: Verified, check: Callable[[], None]) -> Shards:
        """The model and the corpus as the run's own worker has them; RunError where they are others here."""
        told = json.loads(self.artifacts.path(f"{offer.folder}/{TASK}").read_text(encoding="utf-8"))
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        log.info("helps", run=offer.run_id, worker=self.worker)
        task = Task(**told["task"])
        device = device_of(cast(Any, self))  # it looks at the settings alone
        shards = open_shards(task.spec(self.settings, self.artifacts, str(device), checkpoint), check)
        terms = shards.terms()
        if not offer.folder.endswith(content_key(**terms)):
            differ = [name for name in terms if json.dumps(terms[name]) != json.dumps(told["terms"].get(name))]
            raise RunError("other-terms", f"this worker reads with other {', '.join(differ)} than the run's own")
        return shards

    def _do_one(self, offer: Offer, shards: Shards, checkpoint: Verified) -> int:
        """Claim a group, read it, put it into the store; 0 where none waits any more."""
        with self.database.write() as session:
            shard = logic.claim(session, offer.run_id, worker=self.worker, lease_seconds=self.settings.lease_seconds)
        if shard is None:
            return 0
        name, lease = part(offer.folder, shard.number), Lease(shard, self.settings, self.database, self.stop)
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
