"""Bulk inserts of tens of thousands of rows, without SQLAlchemy's work on each value."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from sqlalchemy import JSON
from sqlalchemy.orm import Session

from featurewatch.service.kit.db import Base


def insert_columns(session: Session, model: type[Base], columns: Mapping[str, Sequence[Any]]) -> None:
    """Insert rows, given as columns, in the session's transaction.

    JSON documents are encoded here; other values must already be as the database stores them. Omitted columns get the
    database's default, not the model's. KeyError for an unknown column, ValueError if the lengths differ.
    """
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"the columns of {model.__tablename__} differ in length")
    table, connection = Base.metadata.tables[model.__tablename__], session.connection()
    types = [table.columns[name].type for name in columns]
    if not any(map(len, columns.values())):
        return
    values = [
        [to_json(value).decode() for value in column] if isinstance(kind, JSON) else column
        for kind, column in zip(types, columns.values(), strict=True)
    ]
    into = f"INSERT INTO {table.name} ({', '.join(columns)})"
    if connection.dialect.name == "postgresql":
        # One binary array per column: inserting row by row took twice as long.
        arrays = ", ".join(f"%b::{kind.compile(connection.dialect)}[]" for kind in types)
        connection.exec_driver_sql(f"{into} SELECT * FROM unnest({arrays})", tuple(map(list, values)))  # noqa: S608
    else:
        marks = ", ".join("?" * len(values))
        connection.exec_driver_sql(f"{into} VALUES ({marks})", list(zip(*values, strict=True)))
