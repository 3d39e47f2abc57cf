"""Lists: opaque keyset cursors, `{"data", "next_cursor"}` and `Link: rel="next"`.

A cursor holds the sort values of the last row of a page, so every page costs the same, and rows that are added or
removed between two pages do not shift the next one.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, Select, and_, or_
from sqlalchemy.orm import Session

from featurewatch.service.kit.problems import BadRequestError

MAX_LIMIT = 500
DEFAULT_LIMIT = 50

Row = TypeVar("Row")
Item = TypeVar("Item")
Statement = TypeVar("Statement", bound=Select)


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    data: list[Item]
    next_cursor: str | None = Field(
        None, description="Pass it as `cursor` to get the next page. Null on the last page."
    )


@dataclass(frozen=True)
class SortKey:
    """One column of a sort order. The last key must be unique, or rows are lost between pages."""

    column: Any
    descending: bool = False


@dataclass
class Pager:
    """`limit` and `cursor` of one request."""

    limit: int
    cursor: str | None
    request: Request
    response: Response

    @classmethod
    def first_page(cls, request: Request, limit: int = MAX_LIMIT) -> "Pager":
        """The first rows of a list, for a page on which `limit` and `cursor` belong to another list."""
        return cls(limit, None, request, Response())

    def after(self, order: str) -> list[Any] | None:
        """Sort values after which the page starts. order: names sort and filters; other cursors raise 400."""
        if self.cursor is None:
            return None
        try:
            text = base64.urlsafe_b64decode(self.cursor + "=" * (-len(self.cursor) % 4))
            digest, values = json.loads(text)
            if not isinstance(values, list):
                raise TypeError
            values = [_load(value) for value in values]
        except (ValueError, TypeError, KeyError, binascii.Error, UnicodeError):
            raise _invalid_cursor() from None
        if digest != _digest(order):
            raise BadRequestError(
                "This cursor belongs to another sort order or filter. Omit it to start from the first page.",
                code="bad-cursor",
            )
        return values

    def fetch(
        self, session: Session, statement: Statement, keys: Sequence[SortKey], order: str, view: Callable[..., Item]
    ) -> Page[Item]:
        """A page of a statement's rows, whose columns are passed to `view`. keys: columns of the first table selected.

        order: as in `after`.
        """
        fetched = session.execute(keyset(statement, keys, self.after(order), self.limit)).all()
        rows, cursor = self.page(fetched, order, lambda row: [getattr(row[0], key.column.key) for key in keys])
        return Page(data=[view(*row) for row in rows], next_cursor=cursor)

    def page(
        self, rows: Sequence[Row], order: str, values: Callable[[Row], Sequence[Any]]
    ) -> tuple[list[Row], str | None]:
        """Cut `limit + 1` rows to a page with its next cursor; sets the Link header. values: a row's sort values."""
        if len(rows) <= self.limit:
            return list(rows), None
        page = list(rows[: self.limit])
        text = json.dumps([_digest(order), [_dump(value) for value in values(page[-1])]], separators=(",", ":"))
        cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        url = self.request.url.include_query_params(cursor=cursor)
        self.response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
        return page, cursor


async def pager(
    request: Request,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of rows per page.")] = DEFAULT_LIMIT,
    cursor: Annotated[str | None, Query(max_length=2000, description="`next_cursor` of the previous page.")] = None,
) -> Pager:
    """Read `limit` and `cursor` from the query."""
    return Pager(limit, cursor, request, response)


Paging = Annotated[Pager, Depends(pager)]


def keyset(statement: Statement, keys: Sequence[SortKey], after: Sequence[Any] | None, limit: int) -> Statement:
    """Order a statement, start it after some sort values, and fetch one row more than the page holds."""
    if after is not None:
        check(keys, after)
        statement = statement.where(_beyond(keys, after))
    ordered = [key.column.desc() if key.descending else key.column.asc() for key in keys]
    return statement.order_by(*ordered).limit(limit + 1)


def newest_first(table: Any) -> list[SortKey]:
    """Sort keys by time of creation."""
    return [SortKey(table.created_at, descending=True), SortKey(table.id, descending=True)]


def check(keys: Sequence[SortKey], after: Sequence[Any]) -> None:
    """Reject sort values that no row can have, as in forged cursors. Raises 400."""
    kinds = [key.column.type.python_type for key in keys]
    wanted = [(int, float) if kind is float else kind for kind in kinds]
    if len(after) != len(keys) or not all(map(isinstance, after, wanted)):
        raise _invalid_cursor()


def _invalid_cursor() -> BadRequestError:
    return BadRequestError("Invalid cursor. Omit it to start from the first page.", code="bad-cursor")


def _beyond(keys: Sequence[SortKey], after: Sequence[Any]) -> ColumnElement[bool]:
    """Rows strictly after `after` in the order of `keys`."""
    first, value = keys[0], after[0]
    further = first.column < value if first.descending else first.column > value
    if len(keys) == 1:
        return further
    # The outer bound is implied, but it is what lets an index start at the right place.
    bound = first.column <= value if first.descending else first.column >= value
    return and_(bound, or_(further, and_(first.column == value, _beyond(keys[1:], after[1:]))))


def _digest(order: str) -> str:
    return hashlib.sha256(order.encode()).hexdigest()[:8]


def _dump(value: Any) -> Any:
    return {"t": value.isoformat()} if isinstance(value, datetime) else value


def _load(value: Any) -> Any:
    if isinstance(value, dict):
        return datetime.fromisoformat(value["t"]).astimezone(UTC)
    too_large = isinstance(value, int) and abs(value) >= 2**31
    if too_large or isinstance(value, bool) or (isinstance(value, str) and "\0" in value):
        raise ValueError("not a value of any column")
    return value
