"""Periodic work: wake workers, reap runs of silent workers, deliver webhooks, watch alerts, tidy up.

Any number of processes may sweep at the same time. Each step reads first and writes only if there is work, so an idle
installation opens no write transactions.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property

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
"""Wakes a worker for a run, given its id and queue. Raises if the broker is unreachable."""

BELLS_AT_ONCE = 200
SENDERS = 8
SENDERS_EACH = 2
"""Per webhook: a receiver that hangs must not delay deliveries to others."""
DELIVERY_SECONDS = 5.0
"""After this time no more deliveries are claimed in a sweep: the next one wakes workers and reaps first."""
TIDY_SECONDS = 60.0
EVENTS_AT_ONCE = 500
ERASE_SECONDS = 5.0
"""After this time the other steps have their turn before a deletion continues."""
VACUUM_SECONDS = 3600.0


class Sweeper:
    """The sweeps of one process. `publish` None: without a broker, workers poll the database.

    `call_helper` asks an idle worker to help with harvests.
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
        self._tidied = self._vacuumed = float("-inf")
        self._unswept: list[str] = []
        """Families that are still to be vacuumed in this round"""

    def sweep(self) -> None:
        """Run every step once. A step that fails is logged, and the others still run."""
        steps: list[Callable[[], object]] = [self.ring, self.call, self.reap, self.deliver]
        if time.monotonic() - self._tidied >= TIDY_SECONDS:
            steps += [self.watch, self.tidy]
            self._tidied = time.monotonic()
        for step in [*steps, self.erase, self.vacuum]:
            with _guarded(step.__name__):
                step()

    def ring(self) -> int:
        """Wake workers for queued runs. Returns how many messages were sent.

        The message comes before the mark: a crash in between sends it twice, which is harmless. A run that is still
        queued a lease later gets another message, since the broker may have lost the first.
        """
        with self.database.read() as session:
            bells = [*run_queries.silent_bells(session, BELLS_AT_ONCE)]
            if self.publish is not None:
                again_before = clock.database_now(session) - timedelta(seconds=self.settings.lease_seconds)
                bells += run_queries.unheard(session, rung_before=again_before, limit=BELLS_AT_ONCE)
        if not bells:
            return 0
        published: set[str] = set()
        marked: list[int] = []
        try:
            for bell_id, run_id, kind in bells:
                if self.publish is not None and run_id not in published:
                    self.publish(run_id, queue_of(kind))
                published.add(run_id)
                marked.append(bell_id)
        finally:
            # Even if the broker failed halfway: those messages were sent.
            if marked:
                with self.database.write() as session:
                    run_queries.mark_rung(session, marked, clock.database_now(session))
        return len(marked)

    def call(self) -> bool:
        """Ask one more idle worker to help while groups of harvests are waiting. Returns whether it did."""
        if self.call_helper is None:
            return False
        with self.database.read() as session:
            if not shards.any_free(session, clock.database_now(session)):
                return False
        self.call_helper()
        return True

    def reap(self) -> list[str]:
        """Put the runs of silent workers back into the queue, or end them. Returns their ids."""
        with self.database.read() as session:
            if not run_queries.any_stale(session, clock.database_now(session)):
                return []
        with self.database.write() as session:
            return runs.reap(session, clock.database_now(session))

    def deliver(self) -> int:
        """Send webhooks that are due, several at a time. Returns the number of attempts."""
        began, attempts = time.monotonic(), 0
        under_way: dict[Future[None], str] = {}
        with ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook") as pool:
            while True:
                while len(under_way) < SENDERS and time.monotonic() - began < DELIVERY_SECONDS:
                    counts = Counter(under_way.values())
                    parcel = self._claim([webhook for webhook, count in counts.items() if count >= SENDERS_EACH])
                    if parcel is None:
                        break
                    under_way[pool.submit(self._send, parcel)] = parcel.webhook_id
                    attempts += 1
                if not under_way:
                    return attempts
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    del under_way[done]

    def watch(self) -> None:
        """Once a minute: raise and resolve alerts that do not depend on a judgement, and end expired mutes."""
        with self.database.write() as session:
            evaluation.sweep(session)
            raising.unmute(session, clock.database_now(session))

    def tidy(self) -> None:
        """Once a minute: drop expired idempotency records, messages, sessions, events, secrets and audit entries."""
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
        """Continue removing deleted families, for some seconds. Returns how many are gone completely."""
        with self.database.read() as session:
            families = deletion_queries.under_way(session)
        began, erased = time.monotonic(), 0
        for family in families:
            state = "left"
            while state == "left" and time.monotonic() - began < ERASE_SECONDS:
                start = time.monotonic()
                with self.database.write() as session:
                    state = deletions.step(session, family)
                time.sleep(time.monotonic() - start)  # gives others as much time to write to SQLite
            if state == "empty":
                deletions.clear(self.settings, self.artifacts, family)
                with self.database.write() as session:
                    deletions.finish(session, family)
                log.info("deleted", family=family)
                erased += 1
        return erased

    def vacuum(self) -> int:
        """Once an hour, one family per sweep: remove artifacts that the policy no longer keeps. Returns how many.

        A family with a run in progress is left for the next round.
        """
        if not self._unswept:
            if time.monotonic() - self._vacuumed < VACUUM_SECONDS:
                return 0
            self._vacuumed = time.monotonic()
            with self.database.read() as session:
                deleted = deletions.finished_lately(session)
                self._unswept = list(store_queries.families(session))
            for family in deleted:  # what disconnected workers wrote about them, and this machine's copies
                deletions.clear(self.settings, self.artifacts, family)
            if not self._unswept:
                return 0
        family = self._unswept.pop()
        stored = self.artifacts.listing(family)  # outside the transaction: a remote store is slow
        with self.database.write() as session:
            done = store.vacuum(session, self.artifacts, self.settings, family, stored, now=clock.database_now(session))
        if done.left:
            self._unswept.append(family)
        if done.removed:
            log.info("vacuum", family=family, artifacts=len(done.removed), bytes=sum(done.removed.values()))
        return len(done.removed)

    def _claim(self, busy: Collection[str]) -> sending.Parcel | None:
        with self.database.read() as session:
            if not webhooks.due(session, now=clock.database_now(session), limit=1, excluding=busy):
                return None
        with self.database.write() as session:
            return next(iter(sending.claim_due(session, limit=1, excluding=busy)), None)

    def _send(self, parcel: sending.Parcel) -> None:
        """One attempt. If it fails here, the delivery stays reserved and becomes due again."""
        with _guarded("delivery"):
            outcome = sending.send(parcel, self._secrets, self.allow, self.settings.webhook_seconds)
            pause_after = timedelta(days=self.settings.webhook_pause_days)
            with self.database.write() as session:
                sending.record(session, parcel, outcome, pause_after=pause_after)
            log.info("webhook", delivery=parcel.delivery_id, status=outcome.status, error=outcome.error)

    @cached_property
    def _secrets(self) -> SecretBox:
        return SecretBox(self.settings)


@contextmanager
def _guarded(step: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.exception("a sweep failed", step=step, error=str(error))
