"""SQL over all tables: what they hold, which artifacts they refer to, and which activations are still wanted."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from featurewatch.service.families.queries import LISTED
from featurewatch.service.kit.artifacts import Entry
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.models import Artifact, Base, Checkpoint, Family, Run, Shard, Source, Unreferenced
from featurewatch.service.runs.states import FINAL


def tables() -> list[Table]:
    """All tables, those that others refer to first."""
    return list(Base.metadata.sorted_tables)


def row_counts(session: Session) -> dict[str, int]:
    """Table -> rows."""
    return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables()}


def engine(session: Session) -> str:
    """The database's name and version."""
    dialect = session.get_bind().dialect
    version = ".".join(str(part) for part in dialect.server_version_info or ())
    return f"{'SQLite' if dialect.name == 'sqlite' else 'PostgreSQL'} {version}"


def size(session: Session) -> int:
    """Bytes that the database takes."""
    sqlite = session.get_bind().dialect.name == "sqlite"
    pages = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    return int(session.scalar(text(pages if sqlite else "SELECT pg_database_size(current_database())")) or 0)


def orphans(session: Session) -> list[str]:
    """Tables with rows whose parents are not there. Postgres has none; SQLite has where somebody wrote without keys."""
    if session.get_bind().dialect.name != "sqlite":
        return []
    return sorted({str(row[0]) for row in session.execute(text("PRAGMA foreign_key_check"))})


def families(session: Session) -> dict[str, str]:
    """Id -> name of all families."""
    statement = select(Family.id, Family.name).where(LISTED).order_by(Family.name)
    return {row[0]: row[1] for row in session.execute(statement)}


def references(session: Session, family_id: str) -> dict[str, str]:
    """Artifact -> the column that refers to it, of all that a family's rows need."""
    found: dict[str, str] = {}
    for column in _artifact_columns():
        names = session.scalars(select(column).where(_of_family(column, family_id)).distinct())
        found |= dict.fromkeys(names, f"{column.table.name}.{column.name}")
    positions = session.get_one(Family, family_id).positions or {}
    kept = [positions[part] for part in ("artifact", "documents") if positions.get(part)]
    found |= dict.fromkeys(kept, "family.positions")
    documents = session.get_one(Family, family_id).documents
    return found | ({documents["artifact"]: "family.documents"} if documents else {})


def shared_folders(session: Session, family_id: str) -> set[str]:
    """Artifacts that hold what helpers have read for harvests that go on, or will. They need not be there."""
    statement = select(Shard.folder).join(Run, Run.id == Shard.run_id)
    return set(session.scalars(statement.where(Run.family_id == family_id, Run.state.not_in(FINAL)).distinct()))


def activations(session: Session, family_id: str) -> list[tuple[str, str]]:
    """(checkpoint id, artifact) of a family's activations that are kept."""
    statement = (
        select(Source.checkpoint_id, Source.activations)
        .join(Checkpoint, Checkpoint.id == Source.checkpoint_id)
        .where(Checkpoint.family_id == family_id, Source.activations.is_not(None))
    )
    return [(row[0], str(row[1])) for row in session.execute(statement)]


def awaited(session: Session, family_id: str) -> set[str]:
    """Ids of the checkpoints that unfinished runs are about, and of their parents."""
    statement = (
        select(Checkpoint.id, Checkpoint.parent_id)
        .join(Run, Run.checkpoint_id == Checkpoint.id)
        .where(Run.family_id == family_id, Run.state.not_in(FINAL))
    )
    return {id_ for row in session.execute(statement) for id_ in row if id_ is not None}


def checkpoint_names(session: Session, ids: Collection[str]) -> list[str]:
    """Names of checkpoints."""
    return list(session.scalars(select(Checkpoint.name).where(Checkpoint.id.in_(ids)).order_by(Checkpoint.created_at)))


def let_go(session: Session, checkpoint_ids: Collection[str]) -> None:
    """Refer to the activations of these checkpoints no longer."""
    session.execute(update(Source).where(Source.checkpoint_id.in_(checkpoint_ids)).values(activations=None))


def unreferenced(session: Session, family_id: str) -> dict[str, datetime]:
    """Artifact -> since when nothing is known to refer to it."""
    statement = select(Unreferenced.artifact, Unreferenced.since)
    rows = session.execute(statement.where(_of_family(Unreferenced.artifact, family_id)))
    return {row[0]: row[1] for row in rows}


def note(session: Session, artifacts: Iterable[str], since: datetime) -> None:
    """Write down that nothing refers to these."""
    if rows := [{"artifact": name, "since": since} for name in artifacts]:
        session.execute(insert(Unreferenced), rows)


def forget(session: Session, artifacts: Iterable[str]) -> None:
    """Strike off what is referred to again, or is gone."""
    for name in artifacts:
        session.execute(delete(Unreferenced).where(Unreferenced.artifact == name))


def entry(session: Session, name: str) -> Entry | None:
    """What an artifact was written as."""
    files = session.scalar(select(Artifact.files).where(Artifact.name == name))
    return None if files is None else Entry({key: (size, digest) for key, (size, digest) in files.items()})


def record(session: Session, name: str, entry: Entry, *, replace: bool = True) -> None:
    """Write what an artifact holds, in the place of what is there. replace False: only where nothing is."""
    files = {key: list(value) for key, value in entry.files.items()}
    values = {"size": entry.size, "digest": entry.digest, "files": files, "created_at": utcnow()}
    # Writers of one name must not meet between a look and an insert.
    insert_into = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert_into(Artifact).values(name=name, **values)
    names = [Artifact.name]
    session.execute(
        statement.on_conflict_do_update(index_elements=names, set_=values)
        if replace
        else statement.on_conflict_do_nothing(index_elements=names)
    )


def erase(session: Session, artifacts: Iterable[str]) -> None:
    """Strike off what artifacts hold, and what is below them."""
    for name in artifacts:
        below = Artifact.name.startswith(f"{name}/", autoescape=True)
        session.execute(delete(Artifact).where((Artifact.name == name) | below))


def dependents(session: Session, artifact: str) -> list[str]:
    """What refers to an artifact, for people: `checkpoint v2 (source.activations)`, `signature refusal`."""
    found: set[str] = set()
    for column in _artifact_columns():
        table, where = column.table, f"{column.table.name}.{column.name}"
        if "checkpoint_id" in table.columns:
            statement = select(Checkpoint.name).join(table, table.c.checkpoint_id == Checkpoint.id)
            found |= {f"checkpoint {name} ({where})" for name in session.scalars(statement.where(column == artifact))}
        else:
            title = select(table.c.name).where(column == artifact)
            found |= {f"{table.name} {name} ({where})" for name in session.scalars(title)}
    family = session.get(Family, artifact.partition("/")[0])
    copies = [(family.positions or {}).get(part) for part in ("artifact", "documents")] if family else []
    copies += [(family.documents or {}).get("artifact")] if family else []
    return sorted(found | ({f"family {family.name}"} if family and artifact in copies else set()))


def holders(session: Session, column: Any, artifact: str) -> Sequence[Any]:
    """Rows whose column, such as `Source.dictionary`, refers to an artifact."""
    return session.scalars(select(column.class_).where(column == artifact)).all()


def entries(session: Session, family_id: str, before: datetime | None = None) -> dict[str, int]:
    """Artifact -> bytes, of a family's artifacts as they were written. before: only those written earlier."""
    statement = select(Artifact.name, Artifact.size).where(_of_family(Artifact.name, family_id))
    if before is not None:
        statement = statement.where(Artifact.created_at < before)
    return {row[0]: row[1] for row in session.execute(statement)}


def _artifact_columns() -> list[Any]:
    return [column for table in tables() for column in table.columns if column.info.get("artifact")]


def _of_family(column: Any, family_id: str) -> ColumnElement[bool]:
    found: ColumnElement[bool] = column.startswith(f"{family_id}/", autoescape=True)
    return found
