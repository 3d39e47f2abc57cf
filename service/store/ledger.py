"""The artifact store of an installation, with its ledger in the database."""

from sqlalchemy.orm import Session

from service.config import Settings
from service.kit.artifacts import ArtifactStore, Entry
from service.kit.db import Database
from service.store import queries


def open_store(settings: Settings, database: Database) -> ArtifactStore:
    """The artifact store of an installation. What it opens is verified."""
    return ArtifactStore(settings.artifacts_uri, settings.cache_dir / "artifacts", DatabaseLedger(database))


class DatabaseLedger:
    """A `Ledger` in the table `artifact`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def find(self, name: str) -> Entry | None:
        """The entry of an artifact; None where it has none."""
        with self.database.read() as session:
            return SessionLedger(session).find(name)

    def record(self, name: str, entry: Entry) -> None:
        """Write an entry, in the place of one that is there."""
        with self.database.write() as session:
            SessionLedger(session).record(name, entry)

    def erase(self, name: str) -> None:
        """Remove the entries of an artifact, and of what is below it."""
        with self.database.write() as session:
            SessionLedger(session).erase(name)


class SessionLedger:
    """A `Ledger` within a transaction that is open."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def find(self, name: str) -> Entry | None:
        """The entry of an artifact; None where it has none."""
        return queries.entry(self.session, name)

    def record(self, name: str, entry: Entry) -> None:
        """Write an entry, in the place of one that is there."""
        queries.record(self.session, name, entry)

    def erase(self, name: str) -> None:
        """Remove the entries of an artifact, and of what is below it."""
        queries.erase(self.session, [name])
