"""The artifact store of an installation, with its ledger in the database."""

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
            return queries.entry(session, name)

    def record(self, name: str, entry: Entry) -> None:
        """Write an entry, in the place of one that is there."""
        with self.database.write() as session:
            queries.record(session, name, entry)

    def erase(self, name: str) -> None:
        """Remove the entries of an artifact, and of what is below it."""
        with self.database.write() as session:
            queries.erase(session, [name])
