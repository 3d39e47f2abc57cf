"""What must happen although nobody asks for it: ring bells, reap silent workers, deliver webhooks, tidy up.

Any number of processes may sweep at the same time. Each step reads first and writes only where there is work, so an
idle installation makes no transactions that write.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import structlog

from service.alerts import queries as alerts
from service.audit import queries as audit
from service.config import Settings
from service.kit import clock, outbound
from service.kit.artifacts import ArtifactStore
from service.kit.crypto import SecretBox
from service.kit.db import Database
from service.runs import logic as runs
from service.runs import queries as run_queries
from service.shards import queries as shards
from service.store import logic as store
from service.store import queries as store_queries
from service.webhooks import logic as webhooks
from service.webhooks import queries as webhook_queries

log = structlog.get_logger("featurewatch.sweeps")

Publish = Callable[[str], None]
"""Tells a worker of a run by its id; raises where the broker cannot be reached."""

BELLS_AT_ONCE = 200
SENDERS = 8
DELIVERY_SECONDS = 5.0
"""After so long no further deliveries are claimed in this sweep: the next one rings bells and reaps first."""
TIDY_SECONDS = 60.0
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
        self.artifacts = ArtifactStore(settings.artifacts_uri, settings.data_dir / "cache" / "artifacts")
        self.allow = outbound.parse_networks(settings.webhook_allow)
        self._box: SecretBox | None = None
        self._tidied = self._vacuumed = float("-inf")
        self._unswept: list[str] = []
        """Families whose turn is yet to come in this round of `vacuum`"""

    def sweep(self) -> None:
        """Everything once. A step that fails is logged and does not keep the others from their work."""
        for step in (self.ring, self.call, self.reap, self.deliver, self.tidy, self.vacuum):
            with _guarded(step.__name__):
                step()

    def ring(self) -> int:
        """Tell workers of queued runs, the forgotten ones too; how many bells were rung.

        First the message, then the mark: a crash in between rings twice, which a claim does not mind. A run that
        still waits a lease after its bell was rung is rung again: the broker may have lost the message.
        """
        again_before = clock.utcnow() - timedelta(seconds=self.settings.lease_seconds)
        with self.database.read() as session:
            bells = [*run_queries.silent_bells(session, BELLS_AT_ONCE)]
            if self.publish is not None:
                bells += run_queries.unheard(session, rung_before=again_before, limit=BELLS_AT_ONCE)
            waiting = [(bell.id, bell.run_id) for bell in bells]
        if not waiting:
            return 0
        told: set[str] = set()
        marked: list[int] = []
        try:
            for bell_id, run_id in waiting:
                if self.publish is not None and run_id not in told:
                    self.publish(run_id)
                told.add(run_id)
                marked.append(bell_id)
        finally:
            # Also where the broker went away in the middle: what was told was told.
            if marked:
                with self.database.write() as session:
                    run_queries.mark_rung(session, marked, clock.utcnow())
        return len(marked)

    def call(self) -> bool:
        """Call one more worker to the harvests of others, while groups of them wait; whether it did."""
        if self.call_helper is None:
            return False
        with self.database.read() as session:
            if not shards.any_free(session, clock.utcnow()):
                return False
        self.call_helper()
        return True

    def reap(self) -> list[str]:
        """Put the runs of silent workers back into the queue, or end them; their ids."""
        with self.database.read() as session:
            if not run_queries.any_stale(session, clock.utcnow()):
                return []
        with self.database.write() as session:
            return runs.reap(session, clock.utcnow())

    def deliver(self) -> int:
        """Send webhooks that are due, several at a time; how many attempts were made."""
        began, attempts = time.monotonic(), 0
        with ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook") as pool:
            while time.monotonic() - began < DELIVERY_SECONDS:
                parcels = self._claim()
                if not parcels:
                    break
                attempts += sum(pool.map(self._send, parcels))
        return attempts

    def tidy(self) -> None:
        """Once a minute: forget old answers, bells and audit entries, end mutes that are over."""
        if time.monotonic() - self._tidied < TIDY_SECONDS:
            return
        now, settings = clock.utcnow(), self.settings
        with self.database.write() as session:
            audit.drop_records_before(session, now - timedelta(hours=settings.answer_hours))
            run_queries.drop_old_bells(session, rung_before=now - timedelta(hours=settings.bell_hours))
            if settings.audit_days:
                audit.drop_entries_before(session, now - timedelta(days=settings.audit_days))
            alerts.unmute(session, now)
        self._tidied = time.monotonic()

    def vacuum(self) -> int:
        """Once an hour, one family in each sweep: let go what the policy keeps no longer; how many artifacts went.

        A family that a worker has a run of has its turn in the next round.
        """
        if not self._unswept:
            if time.monotonic() - self._vacuumed < VACUUM_SECONDS:
                return 0
            self._vacuumed = time.monotonic()
            with self.database.read() as session:
                self._unswept = list(store_queries.families(session))
            if not self._unswept:
                return 0
        family = self._unswept.pop()
        stored = self.artifacts.listing(family)  # outside the transaction: a remote store takes its time
        with self.database.write() as session:
            done = store.vacuum(session, self.artifacts, self.settings, family, stored, now=clock.utcnow())
        if done.left:
            self._unswept.append(family)
        if done.removed:
            log.info("vacuum", family=family, artifacts=len(done.removed), bytes=sum(done.removed.values()))
        return len(done.removed)

    def _claim(self) -> list[webhooks.Parcel]:
        with self.database.read() as session:
            if not webhook_queries.due(session, now=clock.utcnow(), limit=1):
                return []
        with self.database.write() as session:
            return webhooks.claim_due(session, limit=SENDERS)

    def _send(self, parcel: webhooks.Parcel) -> int:
        """One attempt; an error of our own leaves the delivery reserved, and it becomes due again."""
        with _guarded("delivery"):
            outcome = webhooks.send(parcel, self._secrets(), self.allow)
            with self.database.write() as session:
                webhooks.record(session, parcel, outcome)
            log.info("webhook", delivery=parcel.delivery_id, status=outcome.status, error=outcome.error)
        return 1

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
