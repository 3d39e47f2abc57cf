"""Opens an installation's artifact store, whose ledger is in the database."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore, Entry
from featurewatch.service.kit.db import Database
from featurewatch.service.store import queries


def open_store(
    settings: Settings, database: Database, *, adopts: bool = False, cache: Path | None = None
) -> ArtifactStore:
    """Open an installation's artifact store, which verifies what it opens.

    With `adopts`, artifacts without a digest get one when opened. `cache` is another folder for copies of a remote
    store.
    """
    cache = cache or settings.cache_dir / "artifacts"
    return ArtifactStore(settings.artifacts_uri, cache, DatabaseLedger(database), adopts=adopts)


class DatabaseLedger:
    """A `Ledger` in the table `artifact`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def find(self, name: str) -> Entry | None:
        with self.database.read() as session:
            return SessionLedger(session).find(name)

    def record(self, name: str, entry: Entry) -> None:
        with self.database.write() as session:
            SessionLedger(session).record(name, entry)

    @contextmanager
    def recording(self, name: str, entry: Entry) -> Iterator[None]:
        """As `record`, in a transaction as long as the context. Other writers of the name wait for it."""
        with self.database.write() as session, SessionLedger(session).recording(name, entry):
            yield

    def adopt(self, name: str, entry: Entry) -> bool:
        """Write an entry unless there is one. False within a transaction of this thread, which may hold the lock."""
        if self.database.is_writing:
            return False
        with self.database.write() as session:
            return SessionLedger(session).adopt(name, entry)

    def erase(self, name: str) -> None:
        with self.database.write() as session:
            SessionLedger(session).erase(name)


class SessionLedger:
    """A `Ledger` within an open transaction."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def find(self, name: str) -> Entry | None:
        return queries.entry(self.session, name)

    def record(self, name: str, entry: Entry) -> None:
        queries.record(self.session, name, entry)

    @contextmanager
    def recording(self, name: str, entry: Entry) -> Iterator[None]:
        """As `record`. Other writers of the name wait until the transaction ends."""
        self.record(name, entry)
        yield

    def adopt(self, name: str, entry: Entry) -> bool:
        """Write an entry unless there is one."""
        queries.record(self.session, name, entry, replace=False)
        return True

    def erase(self, name: str) -> None:
        queries.erase(self.session, [name])
