"""`column IN (...)` over a list that is one parameter of a statement, however long the list is.

With a parameter for each element the statement would be another one for each length: written out, read again by the
driver and planned anew, which takes longer than to look the rows up. SQLite also has a limit on their number.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ARRAY, JSON, Boolean, Dialect, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine


class _Listed(TypeDecorator[Any]):
    """A list of values of one type: an array on Postgres, a JSON document on SQLite."""

    impl = JSON
    cache_ok = True

    def __init__(self, item: TypeEngine[Any]) -> None:
        super().__init__()
        self.item = item

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(self.item) if dialect.name == "postgresql" else JSON())

    def process_bind_param(self, value: Any, dialect: Dialect) -> list[Any]:
        return list(value)


class one_of(FunctionElement[bool]):  # noqa: N801 - it is called like a function of SQL
    """Whether a column of numbers or texts has one of some values: given here, or later as the parameter `name`."""

    inherit_cache = True
    type = Boolean()

    def __init__(self, column: Any, name: str | None = None, values: Collection[Any] | None = None) -> None:
        super().__init__(column, bindparam(name, values, type_=_Listed(column.type)))

    def self_group(self, against: Any = None) -> Any:
        """As it is: SQLite finds no index for `(... IN ...) = 1`."""
        return self


@compiles(one_of)
def _as_subquery(element: one_of, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(one, **options) for one in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608 - names and marks of the compiler


@compiles(one_of, "postgresql")
def _as_array(element: one_of, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(one, **options) for one in element.clauses)
    return f"{column} = ANY ({values})"
