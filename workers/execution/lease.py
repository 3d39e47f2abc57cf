"""Leases. A claim lapses unless it is renewed, and a run's transactions count only while its claim holds."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import structlog
from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.service.models import Run
from featurewatch.service.runs import logic
from featurewatch.service.runs.states import RunState
from featurewatch.workers.errors import LeaseLostError, RunCancelledError

log = structlog.get_logger("featurewatch.worker")

Result = TypeVar("Result")

RETRY_SECONDS = 0.5


class Lease:
    """A claim that lapses, by this process's clock, unless it is renewed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.lost = seconds, False
        self._until = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the claim lapses, as far as this process knows."""
        return self._until - time.monotonic()

    def renew(self, since: float) -> None:
        """The claim was renewed in a transaction that began at `since` (`time.monotonic()`)."""
        self._until = since + self.seconds

    def lose(self) -> None:
        """Give the claim up."""
        self.lost = True


class RunLease(Lease):
    """An attempt's claim of a run, and the transactions that are fenced by it."""

    def __init__(self, run: Run, settings: Settings, database: Database) -> None:
        super().__init__(settings.lease_seconds)
        self.run_id, self.attempt, self.family_id, self.priority = run.id, run.attempt, run.family_id, run.priority
        self.database = database
        self.cancelling = False
        self.gives_way = False
        self.finished = False
        """Whether the transaction that `finish` was part of has committed"""
        self._writing = False
        self.finishing = False
        """Set before the statement that ends the run: from then on a heartbeat may find it ended, by this attempt"""

    def lose(self) -> None:
        """Give the run up, unless this attempt is just ending it."""
        self.lost = not self.finishing

    def check_held(self) -> None:
        """Raise LeaseLostError or RunCancelledError if the run must not go on."""
        # `write()` locks the run's row: no heartbeat gets through meanwhile, but no other worker does either.
        if self.lost or (self.left() <= 0 and not self._writing):
            raise self._lost()
        if self.cancelling:
            raise RunCancelledError(f"run {self.run_id} was cancelled")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads. Waits for an unavailable database as long as the lease lasts."""
        with self._session(self.database.read, lambda session: session.connection()) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits only while this attempt holds the run; else LeaseLostError.

        The run's row stays locked until the end, so nobody can take the run over while the transaction is open.
        """
        try:
            with self._session(self.database.write, self._hold) as session:
                self._writing = True
                yield session
                began = time.monotonic()
                if not self.finishing:
                    self._hold(session)  # the lease counts from the commit, however long the body took
            self.renew(began)
            self.finished = self.finishing
        finally:
            self._writing = False
            self.finishing = self.finished

    def heartbeat(self, session: Session, **progress: Any) -> RunState | None:
        """Renew the lease in the database, with what `logic.heartbeat` takes; None if this attempt lost the run."""
        state = logic.heartbeat(
            session, run_id=self.run_id, attempt=self.attempt, lease_seconds=self.seconds, **progress
        )
        self.gives_way = logic.gives_way(session, family_id=self.family_id, priority=self.priority)
        return state

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(f"attempt {self.attempt} no longer holds run {self.run_id}")

    def _hold(self, session: Session) -> None:
        held = logic.hold(session, run_id=self.run_id, attempt=self.attempt, lease_seconds=self.seconds)
        if held is None:
            self.lost = True
            raise self._lost()

    @contextmanager
    def _session(
        self, opening: Callable[[], AbstractContextManager[Session]], first: Callable[[Session], Any]
    ) -> Iterator[Session]:
        """A session whose first statement succeeded. Later ones are not repeated: they may have taken effect."""
        while True:
            try:
                with ExitStack() as stack:
                    session = stack.enter_context(opening())
                    first(session)
                    transaction = stack.pop_all()
                break
            except AWAY as error:
                if self.left() <= RETRY_SECONDS:
                    raise
                log.warning("the database is unavailable", run=self.run_id, error=str(error.orig))
                time.sleep(RETRY_SECONDS)
        with transaction:
            yield session


def write_end(
    opening: Callable[[], AbstractContextManager[Session]],
    act: Callable[[Session], Result],
    seconds_left: Callable[[], float],
) -> Result | None:
    """Write the end of a run, retrying while the database is unavailable.

    None once no seconds are left: the lease runs out, and the reaper ends the run.
    """
    while True:
        try:
            with opening() as session:
                return act(session)
        except AWAY as error:
            if seconds_left() <= 0:
                log.error("cannot write the end of the run; its lease will run out", error=str(error.orig))
                return None
            time.sleep(RETRY_SECONDS)
