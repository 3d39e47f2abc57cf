"""SQL over all tables: sizes, references to artifacts, and activations that are still needed."""

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
    """All tables, parents before children."""
    return list(Base.metadata.sorted_tables)


def row_counts(session: Session) -> dict[str, int]:
    """Table -> number of rows."""
    return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables()}


def engine(session: Session) -> str:
    """The database's name and version."""
    dialect = session.get_bind().dialect
    version = ".".join(str(part) for part in dialect.server_version_info or ())
    return f"{'SQLite' if dialect.name == 'sqlite' else 'PostgreSQL'} {version}"


def size(session: Session) -> int:
    """Size of the database in bytes."""
    sqlite = session.get_bind().dialect.name == "sqlite"
    pages = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    return int(session.scalar(text(pages if sqlite else "SELECT pg_database_size(current_database())")) or 0)


def orphans(session: Session) -> list[str]:
    """Tables with rows whose parents are missing. Only SQLite can have any, from writes without foreign keys."""
    if session.get_bind().dialect.name != "sqlite":
        return []
    return sorted({str(row[0]) for row in session.execute(text("PRAGMA foreign_key_check"))})


def families(session: Session) -> dict[str, str]:
    """Id -> name of all families."""
    statement = select(Family.id, Family.name).where(LISTED).order_by(Family.name)
    return {row[0]: row[1] for row in session.execute(statement)}


def references(session: Session, family_id: str) -> dict[str, str]:
    """Artifact -> the column that refers to it, for all artifacts that a family's rows refer to."""
    columns: dict[str, str] = {}
    for column in _artifact_columns():
        names = session.scalars(select(column).where(_of_family(column, family_id)).distinct())
        columns |= dict.fromkeys(names, f"{column.table.name}.{column.name}")
    family = session.get_one(Family, family_id)
    positions = family.positions or {}
    columns |= {positions[part]: "family.positions" for part in ("artifact", "documents") if positions.get(part)}
    return columns | ({family.documents["artifact"]: "family.documents"} if family.documents else {})


def shared_folders(session: Session, family_id: str) -> set[str]:
    """Artifacts with what helpers have read for unfinished harvests. They may not exist yet."""
    statement = select(Shard.folder).join(Run, Run.id == Shard.run_id)
    return set(session.scalars(statement.where(Run.family_id == family_id, Run.state.not_in(FINAL)).distinct()))


def activations(session: Session, family_id: str) -> list[tuple[str, str]]:
    """(checkpoint id, artifact) of the activations that a family keeps."""
    statement = (
        select(Source.checkpoint_id, Source.activations)
        .join(Checkpoint, Checkpoint.id == Source.checkpoint_id)
        .where(Checkpoint.family_id == family_id, Source.activations.is_not(None))
    )
    return [(row[0], str(row[1])) for row in session.execute(statement)]


def awaited(session: Session, family_id: str) -> set[str]:
    """Ids of the checkpoints of unfinished runs, and of their parents."""
    statement = (
        select(Checkpoint.id, Checkpoint.parent_id)
        .join(Run, Run.checkpoint_id == Checkpoint.id)
        .where(Run.family_id == family_id, Run.state.not_in(FINAL))
    )
    return {id_ for row in session.execute(statement) for id_ in row if id_ is not None}


def checkpoint_names(session: Session, ids: Collection[str]) -> list[str]:
    """Names of checkpoints, oldest first."""
    return list(session.scalars(select(Checkpoint.name).where(Checkpoint.id.in_(ids)).order_by(Checkpoint.created_at)))


def release_activations(session: Session, checkpoint_ids: Collection[str]) -> None:
    """Remove the references to the activations of these checkpoints."""
    session.execute(update(Source).where(Source.checkpoint_id.in_(checkpoint_ids)).values(activations=None))


def unreferenced(session: Session, family_id: str) -> dict[str, datetime]:
    """Artifact -> when it was first seen without a reference."""
    statement = select(Unreferenced.artifact, Unreferenced.since)
    rows = session.execute(statement.where(_of_family(Unreferenced.artifact, family_id)))
    return {row[0]: row[1] for row in rows}


def note(session: Session, artifacts: Iterable[str], since: datetime) -> None:
    """Note artifacts as unreferenced."""
    if rows := [{"artifact": name, "since": since} for name in artifacts]:
        session.execute(insert(Unreferenced), rows)


def forget(session: Session, artifacts: Iterable[str]) -> None:
    """Delete the notes of artifacts that are referred to again or removed."""
    for name in artifacts:
        session.execute(delete(Unreferenced).where(Unreferenced.artifact == name))


def entry(session: Session, name: str) -> Entry | None:
    """The ledger entry of an artifact."""
    files = session.scalar(select(Artifact.files).where(Artifact.name == name))
    return None if files is None else Entry({key: (size, digest) for key, (size, digest) in files.items()})


def record(session: Session, name: str, entry: Entry, *, replace: bool = True) -> None:
    """Write a ledger entry. An existing entry is replaced, unless `replace` is False."""
    files = {key: list(value) for key, value in entry.files.items()}
    values = {"size": entry.size, "digest": entry.digest, "files": files, "created_at": utcnow()}
    # An upsert, so that two writers of one name cannot collide.
    insert_into = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert_into(Artifact).values(name=name, **values)
    names = [Artifact.name]
    session.execute(
        statement.on_conflict_do_update(index_elements=names, set_=values)
        if replace
        else statement.on_conflict_do_nothing(index_elements=names)
    )


def erase(session: Session, artifacts: Iterable[str]) -> None:
    """Delete the ledger entries of artifacts and of everything below them."""
    for name in artifacts:
        below = Artifact.name.startswith(f"{name}/", autoescape=True)
        session.execute(delete(Artifact).where((Artifact.name == name) | below))


def dependents(session: Session, artifact: str) -> list[str]:
    """Descriptions of what refers to an artifact: `checkpoint v2 (source.activations)`, `signature refusal`."""
    descriptions: set[str] = set()
    for column in _artifact_columns():
        table, where = column.table, f"{column.table.name}.{column.name}"
        if "checkpoint_id" in table.columns:
            statement = select(Checkpoint.name).join(table, table.c.checkpoint_id == Checkpoint.id)
            names = session.scalars(statement.where(column == artifact))
            descriptions |= {f"checkpoint {name} ({where})" for name in names}
        else:
            names = session.scalars(select(table.c.name).where(column == artifact))
            descriptions |= {f"{table.name} {name} ({where})" for name in names}
    family = session.get(Family, artifact.partition("/")[0])
    copies = [(family.positions or {}).get(part) for part in ("artifact", "documents")] if family else []
    copies += [(family.documents or {}).get("artifact")] if family else []
    return sorted(descriptions | ({f"family {family.name}"} if family and artifact in copies else set()))


def holders(session: Session, column: Any, artifact: str) -> Sequence[Any]:
    """Rows that refer to an artifact in a column such as `Source.dictionary`."""
    return session.scalars(select(column.class_).where(column == artifact)).all()


def entries(session: Session, family_id: str, before: datetime | None = None) -> dict[str, int]:
    """Artifact -> bytes, from a family's ledger entries; with `before`, only those written earlier."""
    statement = select(Artifact.name, Artifact.size).where(_of_family(Artifact.name, family_id))
    if before is not None:
        statement = statement.where(Artifact.created_at < before)
    return {row[0]: row[1] for row in session.execute(statement)}


def _artifact_columns() -> list[Any]:
    return [column for table in tables() for column in table.columns if column.info.get("artifact")]


def _of_family(column: Any, family_id: str) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = column.startswith(f"{family_id}/", autoescape=True)
    return condition
