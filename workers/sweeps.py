"""What must happen although nobody asks for it: ring bells, reap silent workers, deliver webhooks, watch, tidy up.

Any number of processes may sweep at the same time. Each step reads first and writes only where there is work, so an
idle installation makes no transactions that write.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta

import structlog

from featurewatch.service.alerts import evaluation, raising
from featurewatch.service.audit import queries as audit
from featurewatch.service.auth import queries as auth
from featurewatch.service.config import Settings
from featurewatch.service.deletions import families as deletions
from featurewatch.service.deletions import queries as deletion_queries
from featurewatch.service.kit import clock, outbound
from featurewatch.service.kit.crypto import SecretBox
from featurewatch.service.kit.db import Database
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs import queries as run_queries
from featurewatch.service.runs.kinds import queue_of
from featurewatch.service.shards import queries as shards
from featurewatch.service.store import logic as store
from featurewatch.service.store import queries as store_queries
from featurewatch.service.store.ledger import open_store
from featurewatch.service.webhooks import queries as webhooks
from featurewatch.service.webhooks import sending

log = structlog.get_logger("featurewatch.sweeps")

Publish = Callable[[str, str], None]
"""Tells a worker of a run by its id and its queue; raises where the broker cannot be reached."""

BELLS_AT_ONCE = 200
SENDERS = 8
SENDERS_EACH = 2
"""Of one webhook: receivers that hang must not keep the others' deliveries waiting."""
DELIVERY_SECONDS = 5.0
"""After so long no further deliveries are claimed in this sweep: the next one rings bells and reaps first."""
TIDY_SECONDS = 60.0
EVENTS_AT_ONCE = 500
ERASE_SECONDS = 5.0
"""After so long the other sweeps have their turn before a deletion goes on."""
VACUUM_SECONDS = 3600.0


class Sweeper:
    """The sweeps of one process. `publish` None: there is no broker, workers poll the database.

    `call_helper` asks one idle worker to help with harvests.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        publish: Publish | None,
        *,
        call_helper: Callable[[], None] | None = None,
    ) -> None:
        self.settings, self.database, self.publish, self.call_helper = settings, database, publish, call_helper
        self.artifacts = open_store(settings, database)
        self.allow = outbound.parse_networks(settings.webhook_allow)
        self._box: SecretBox | None = None
        self._tidied = self._vacuumed = float("-inf")
        self._unswept: list[str] = []
        """Families whose turn is yet to come in this round of `vacuum`"""

    def sweep(self) -> None:
        """Everything once. A step that fails is logged and does not keep the others from their work."""
        steps: list[Callable[[], object]] = [self.ring, self.call, self.reap, self.deliver]
        if time.monotonic() - self._tidied >= TIDY_SECONDS:
            steps += [self.watch, self.tidy]
            self._tidied = time.monotonic()
        for step in [*steps, self.erase, self.vacuum]:
            with _guarded(step.__name__):
                step()

    def ring(self) -> int:
        """Tell workers of queued runs, the forgotten ones too; how many bells were rung.

        First the message, then the mark: a crash in between rings twice, which a claim does not mind. A run that
        still waits a lease after its bell was rung is rung again: the broker may have lost the message.
        """
        with self.database.read() as session:
            bells = [*run_queries.silent_bells(session, BELLS_AT_ONCE)]
            if self.publish is not None:
                again_before = clock.database_now(session) - timedelta(seconds=self.settings.lease_seconds)
                bells += run_queries.unheard(session, rung_before=again_before, limit=BELLS_AT_ONCE)
        if not bells:
            return 0
        told: set[str] = set()
        marked: list[int] = []
        try:
            for bell_id, run_id, kind in bells:
                if self.publish is not None and run_id not in told:
                    self.publish(run_id, queue_of(kind))
                told.add(run_id)
                marked.append(bell_id)
        finally:
            # Also where the broker went away in the middle: what was told was told.
            if marked:
                with self.database.write() as session:
                    run_queries.mark_rung(session, marked, clock.database_now(session))
        return len(marked)

    def call(self) -> bool:
        """Call one more worker to the harvests of others, while groups of them wait; whether it did."""
        if self.call_helper is None:
            return False
        with self.database.read() as session:
            if not shards.any_free(session, clock.database_now(session)):
                return False
        self.call_helper()
        return True

    def reap(self) -> list[str]:
        """Put the runs of silent workers back into the queue, or end them; their ids."""
        with self.database.read() as session:
            if not run_queries.any_stale(session, clock.database_now(session)):
                return []
        with self.database.write() as session:
            return runs.reap(session, clock.database_now(session))

    def deliver(self) -> int:
        """Send webhooks that are due, several at a time; how many attempts were made."""
        began, attempts = time.monotonic(), 0
        under_way: dict[Future[None], str] = {}
        with ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook") as pool:
            while True:
                while len(under_way) < SENDERS and time.monotonic() - began < DELIVERY_SECONDS:
                    counts = Counter(under_way.values())
                    parcel = self._claim([each for each, count in counts.items() if count >= SENDERS_EACH])
                    if parcel is None:
                        break
                    under_way[pool.submit(self._send, parcel)] = parcel.webhook_id
                    attempts += 1
                if not under_way:
                    return attempts
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    del under_way[done]

    def watch(self) -> None:
        """Once a minute: raise and resolve the alerts that no judgement tells of, and end mutes that are over."""
        with self.database.write() as session:
            evaluation.sweep(session)
            raising.unmute(session, clock.database_now(session))

    def tidy(self) -> None:
        """Once a minute: forget remembered answers, heard bells, sessions, old events, secrets and audit entries."""
        settings = self.settings
        with self.database.write() as session:
            now = clock.database_now(session)
            audit.drop_records_before(session, now - timedelta(hours=settings.answer_hours))
            auth.drop_sessions_before(session, now)
            run_queries.drop_old_bells(session, rung_before=now - timedelta(hours=settings.bell_hours))
            if settings.audit_days:
                audit.drop_entries_before(session, now - timedelta(days=settings.audit_days))
            webhooks.drop_old_secrets(session, now)
            before = now - timedelta(days=settings.webhook_keep_days)
            webhooks.drop_events(session, before=before, limit=EVENTS_AT_ONCE)

    def erase(self) -> int:
        """Go on removing the families that were deleted, for some seconds; of how many nothing is left."""
        with self.database.read() as session:
            families = deletion_queries.under_way(session)
        began, erased = time.monotonic(), 0
        for family in families:
            state = "left"
            while state == "left" and time.monotonic() - began < ERASE_SECONDS:
                start = time.monotonic()
                with self.database.write() as session:
                    state = deletions.step(session, family)
                time.sleep(time.monotonic() - start)  # as long as nobody else could write on SQLite
            if state == "empty":
                deletions.clear(self.settings, self.artifacts, family)
                with self.database.write() as session:
                    deletions.finish(session, family)
                log.info("deleted", family=family)
                erased += 1
        return erased

    def erase_again(self) -> None:
        """Remove what workers that were cut off have written of families that are gone, and this machine's copies."""
        with self.database.read() as session:
            families = deletions.finished_lately(session)
        for family in families:
            deletions.clear(self.settings, self.artifacts, family)

    def vacuum(self) -> int:
        """Once an hour, one family in each sweep: let go what the policy keeps no longer; how many artifacts went.

        A family that a worker has a run of has its turn in the next round.
        """
        if not self._unswept:
            if time.monotonic() - self._vacuumed < VACUUM_SECONDS:
                return 0
            self._vacuumed = time.monotonic()
            self.erase_again()
            with self.database.read() as session:
                self._unswept = list(store_queries.families(session))
            if not self._unswept:
                return 0
        family = self._unswept.pop()
        stored = self.artifacts.listing(family)  # outside the transaction: a remote store takes its time
        with self.database.write() as session:
            done = store.vacuum(session, self.artifacts, self.settings, family, stored, now=clock.database_now(session))
        if done.left:
            self._unswept.append(family)
        if done.removed:
            log.info("vacuum", family=family, artifacts=len(done.removed), bytes=sum(done.removed.values()))
        return len(done.removed)

    def _claim(self, but: Collection[str]) -> sending.Parcel | None:
        with self.database.read() as session:
            if not webhooks.due(session, now=clock.database_now(session), limit=1, excluding=but):
                return None
        with self.database.write() as session:
            return next(iter(sending.claim_due(session, limit=1, excluding=but)), None)

    def _send(self, parcel: sending.Parcel) -> None:
        """One attempt; an error of our own leaves the delivery reserved, and it becomes due again."""
        with _guarded("delivery"):
            outcome = sending.send(parcel, self._secrets(), self.allow, self.settings.webhook_seconds)
            pause_after = timedelta(days=self.settings.webhook_pause_days)
            with self.database.write() as session:
                sending.record(session, parcel, outcome, pause_after=pause_after)
            log.info("webhook", delivery=parcel.delivery_id, status=outcome.status, error=outcome.error)

    def _secrets(self) -> SecretBox:
        if self._box is None:
            self._box = SecretBox(self.settings)
        return self._box


@contextmanager
def _guarded(step: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.exception("a sweep failed", step=step, error=str(error))
