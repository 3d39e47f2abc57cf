"""Copies one database into another, of the same kind or not, then reads back and compares every row.

Rows are copied exactly: SQL NULL and JSON null stay distinct, times keep their microseconds, floats and arrays every
bit.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from sqlalchemy import JSON, Column, Connection, Integer, LargeBinary, MetaData, String, Table, insert, select, text
from sqlalchemy.orm import Session

from featurewatch.service.kit.clock import database_now
from featurewatch.service.runs import queries as runs
from featurewatch.service.shards import queries as shards
from featurewatch.service.store import queries

BATCH = 2000
BATCH_OF_ARRAYS = 16
"""Arrays take megabytes each."""


class CopyError(RuntimeError):
    """The copy was refused or rolled back; the message says why and what to do."""


class Copied(NamedTuple):
    """A copied table."""

    table: str
    rows: int
    bytes: int
    """Bytes in binary columns."""


def copy(source: Session, target: Session) -> list[Copied]:
    """Copy all tables, parents before children, and compare every row. After a CopyError, roll back.

    Uses the caller's transactions, which must be fresh.
    """
    if source.get_bind().dialect.name == "postgresql":
        source.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    if runs.any_active(source) or shards.any_leased(source, database_now(source)):
        raise CopyError(
            "A worker is processing a run in the source database. Stop the service and wait for its workers. A run "
            "left behind by a dead worker can be cancelled; starting `featurewatch up` again also puts it back into "
            "the queue."
        )
    if occupied := [name for name, rows in queries.row_counts(target).items() if rows]:
        raise CopyError(f"The target database is not empty (it has rows in {', '.join(occupied)}). Use an empty one.")
    copied = []
    for table in _exact_tables():
        copied.append(_copy_table(table, source.connection(), target.connection()))
        _compare(table, source.connection(), target.connection())
        _set_sequence(table, target.connection())
    return copied


def _exact_tables() -> list[Table]:
    """The tables with JSON columns that distinguish NULL from null."""
    metadata = MetaData()
    copies = [table.to_metadata(metadata) for table in queries.tables()]
    for column in (column for table in copies for column in table.columns):
        if isinstance(column.type, JSON):
            column.type = JSON(none_as_null=True)
    return copies


def _copy_table(table: Table, source: Connection, target: Connection) -> Copied:
    rows = size = 0
    binary = [column.name for column in table.columns if isinstance(column.type, LargeBinary)]
    for batch in _batches(table, source):
        target.execute(insert(table), batch)
        rows += len(batch)
        size += sum(len(row[name] or b"") for row in batch for name in binary)
    return Copied(table.name, rows, size)


def _batches(table: Table, connection: Connection) -> Iterator[Sequence[dict[str, Any]]]:
    """Rows as dictionaries, ordered by primary key. In a table that refers to itself, parents come first."""
    arrays = any(isinstance(column.type, LargeBinary) for column in table.columns)
    size = BATCH_OF_ARRAYS if arrays else BATCH
    documents = [column for column in table.columns if isinstance(column.type, JSON)]
    flags = [column.is_(None).label(f"{column.name} is null") for column in documents]
    postgres = connection.dialect.name == "postgresql"
    # The same order on both sides, whatever their collations.
    keys = [
        column.collate("C") if postgres and isinstance(column.type, String) else column
        for column in table.primary_key.columns
    ]
    result = connection.execute(select(*table.columns, *flags).order_by(*keys).execution_options(yield_per=size))
    batches = ([_exact(dict(row), documents) for row in part] for part in result.mappings().partitions(size))
    own = [key for key in table.foreign_keys if key.column.table is table]
    if not own:
        yield from batches
    elif rows := [row for batch in batches for row in batch]:
        yield _parents_first(rows, own[0].parent.name, own[0].column.name)


def _exact(row: dict[str, Any], documents: list[Column[Any]]) -> dict[str, Any]:
    for column in documents:
        if not row.pop(f"{column.name} is null") and row[column.name] is None:
            row[column.name] = JSON.NULL
    return row


def _parents_first(rows: list[dict[str, Any]], child: str, parent: str) -> list[dict[str, Any]]:
    by_key = {row[parent]: row for row in rows}

    def depth(row: dict[str, Any]) -> int:
        steps = 0
        while (row := by_key.get(row[child])) is not None:  # type: ignore[assignment]
            steps += 1
        return steps

    return sorted(rows, key=depth)


def _compare(table: Table, source: Connection, target: Connection) -> None:
    """Raise CopyError unless both have the same rows, in every column."""
    pairs = zip_longest(_rows(table, source), _rows(table, target))
    for ours, theirs in pairs:
        if ours != theirs:
            wrong = [name for name in ours or theirs if (ours or {}).get(name) != (theirs or {}).get(name)]
            key = {column.name: (ours or theirs)[column.name] for column in table.primary_key.columns}
            raise CopyError(f"The copy of {table.name} {key} differs in {', '.join(wrong)}. It was rolled back.")


def _rows(table: Table, connection: Connection) -> Iterator[dict[str, Any]]:
    for batch in _batches(table, connection):
        yield from batch


def _set_sequence(table: Table, target: Connection) -> None:
    """Advance Postgres' sequence past the copied keys. SQLite needs nothing: it continues from the largest key."""
    (key, *more) = table.primary_key.columns
    if target.dialect.name == "postgresql" and not more and isinstance(key.type, Integer):
        target.execute(
            text(
                f"SELECT setval(pg_get_serial_sequence('{table.name}', '{key.name}'), max({key.name})) "  # noqa: S608
                f"FROM {table.name} HAVING count(*) > 0"
            )
        )
