"""`column IN (...)` with the whole list as a single parameter.

With one parameter per element, each length would be a different statement to compile, parse and plan, which takes
longer than the lookup itself. SQLite also limits the number of parameters.
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


class one_of(FunctionElement[bool]):  # noqa: N801 - called like an SQL function
    """Whether a column of numbers or texts is one of the values, passed here or later as the parameter `name`."""

    inherit_cache = True
    type = Boolean()

    def __init__(self, column: Any, name: str | None = None, values: Collection[Any] | None = None) -> None:
        super().__init__(column, bindparam(name, values, type_=_Listed(column.type)))

    def self_group(self, against: Any = None) -> Any:
        """No parentheses: SQLite uses no index for `(... IN ...) = 1`."""
        return self


@compiles(one_of)
def _as_subquery(element: one_of, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608 - names and placeholders from the compiler


@compiles(one_of, "postgresql")
def _as_array(element: one_of, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} = ANY ({values})"
