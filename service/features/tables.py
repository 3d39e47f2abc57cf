"""A family's verdicts, its features at every hook point, and its features as Parquet, for pandas or DuckDB.

Each checkpoint is a row group, read when it is sent, so memory does not grow with the number of checkpoints. The
metadata of a column has its description and unit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import queries as checkpoints
from featurewatch.service.features import queries
from featurewatch.service.features.codes import Outlet
from featurewatch.service.features.schemas import FeatureOut, Point, feature_fields
from featurewatch.service.features.sources import METRICS, FeatureAtSource, ends_of, over_size
from featurewatch.service.kit import extras
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.problems import ConflictError
from featurewatch.service.models import Checkpoint, Source
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.figures import COLUMNS, FIGURE, FIGURES, Figure

TableName = Literal["verdicts", "sources", "features"]
MEDIA_TYPE = "application/vnd.apache.parquet"
_FEATURES_AT_ONCE = 10_000

Reading = Callable[[], AbstractContextManager[Session]]
"""Opens a session for one row group: a slow client must not hold a connection."""
Columns = dict[str, Sequence[Any]]


class _Of(NamedTuple):
    """A column: type, unit (`1`: a plain number), and description, by default that of the API's schema."""

    type: str
    unit: str | None = None
    about: str | None = None


_RATIO = _Of("double", "1")
_END = _Of("double", "1", "End of the ratio's interval, at the confidence of the family's policy.")
_TEXT = _Of("string")


def _of(figure: Figure, column: str) -> _Of:
    about = figure.about if column == figure.name else _END.about
    return _Of("int64" if figure.whole else "double", figure.unit, about)


_NAMES = _Of("list<string>")

COLUMNS_OF: dict[TableName, dict[str, _Of]] = {
    "verdicts": {
        "checkpoint": _Of("string", None, "The judged checkpoint. Row groups are in order, parents before children."),
        "baseline": _TEXT,
        "id": _Of("string", None, "The feature."),
        "status": _TEXT,
        "previous_status": _Of("string", None, "At the baseline."),
        "places": _TEXT,
        **{column: _of(figure, column) for figure in FIGURES for column in figure.columns},
        "successors": _Of("list<successor>", None, "Features that are active where it weakened."),
        "rewired": _Of("bool"),
    },
    "sources": {
        "checkpoint": _TEXT,
        "id": _Of("string", None, "The feature."),
        "hook_point": _TEXT,
        "d_model": _Of("int64", "dimensions"),
        "paired_with": _TEXT,
        "readability": _RATIO,
        "strength": _Of("double", FIGURE["strength"].unit),
        "projection_ratio": _RATIO,
        "projection_ratio_lo": _END,
        "projection_ratio_hi": _END,
        "direction_cosine": _RATIO,
    },
    "features": {
        "id": _TEXT,
        "label": _TEXT,
        "auto_label": _TEXT,
        "model_label": _TEXT,
        "model_label_by": _TEXT,
        "model_label_score": _RATIO,
        "tags": _NAMES,
        "watched": _Of("bool"),
        "born_in": _TEXT,
        "origin": _TEXT,
        "top_tokens": _NAMES,
        "promoted_tokens": _NAMES,
        "generation": _Of("int64"),
        "retired_in": _Of("int64"),
    },
}
_SCHEMAS: dict[TableName, type[BaseModel]] = {"verdicts": Point, "sources": FeatureAtSource, "features": FeatureOut}


def stream(read: Reading, family_id: str, table: TableName) -> Iterator[bytes]:
    """The table as a Parquet file, in chunks. Raises ConflictError at once if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise ConflictError(
            f"This server cannot write Parquet files. On the server, run `{extras.install('parquet')}`.",
            code="parquet-not-installed",
        )
    return _stream(read, family_id, table)


def _stream(read: Reading, family_id: str, table: TableName) -> Iterator[bytes]:
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow import parquet  # noqa: PLC0415

    parts = {"verdicts": _verdicts, "sources": _sources, "features": _features}[table]
    schema, outlet = _schema(table), Outlet()
    with parquet.ParquetWriter(outlet, schema, compression="zstd") as writer:
        for columns in parts(read, family_id):
            arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in schema]
            writer.write_table(pa.table(arrays, schema=schema))
            yield outlet.drain()
    yield outlet.drain()


def _schema(table: TableName) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    successor = pa.struct([("id", pa.string()), ("kind", pa.string()), ("cofiring", pa.float64())])
    lists = {"list<string>": pa.list_(pa.string()), "list<successor>": pa.list_(successor)}
    fields = []
    for name, column in COLUMNS_OF[table].items():
        known = _SCHEMAS[table].model_fields.get(name)
        about = {"description": column.about or (known and known.description), "unit": column.unit}
        kind = lists.get(column.type) or pa.type_for_alias(column.type)
        fields.append(pa.field(name, kind, metadata={key: text for key, text in about.items() if text}))
    return pa.schema(fields)


def _verdicts(read: Reading, family_id: str) -> Iterator[Columns]:
    """As in `features?checkpoint=` and `trajectory`, in the order of ids."""
    for checkpoint in _judged(read, family_id):
        with read() as session:
            rows = queries.stored(session, checkpoint.id)
            rewired = queries.rewired(session, [checkpoint.id])
            parent = session.get(Checkpoint, checkpoint.parent_id) if checkpoint.parent_id else None
        columns: Columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)) if rows else {}
        numbers = columns.pop("feature", ())
        yield (
            dict.fromkeys(COLUMNS, ())
            | columns
            | {
                "checkpoint": [checkpoint.name] * len(numbers),
                "baseline": [parent and parent.name] * len(numbers),
                "id": [feature_id(number) for number in numbers],
                "rewired": [rewired.get((checkpoint.id, number)) for number in numbers],
            }
        )


def _sources(read: Reading, family_id: str) -> Iterator[Columns]:
    """As in `features/{id}/sources`: checkpoint by checkpoint, hook point by hook point, in the order of ids."""
    for checkpoint in _judged(read, family_id):
        with read() as session:
            sources = verdicts.sources(session, checkpoint.id)
            hooks = [hook for hook in checkpoint.hook_points if hook in sources]
            measured = [
                [verdicts.measurement(session, checkpoint.id, name, hook) for name in METRICS] for hook in hooks
            ]
        arrays = [[np.zeros(0, np.float32) if array is None else array for array in parts] for parts in measured]
        length = max((len(array) for parts in arrays for array in parts), default=0)
        values = np.full((len(hooks), len(METRICS), length), np.nan)
        for rows, parts in zip(values, arrays, strict=True):
            for row, array in zip(rows, parts, strict=True):
                row[: len(array)] = array
        there = np.flatnonzero(~np.isnan(values).all((0, 1)))
        ids = [feature_id(number) for number in there.tolist()]
        for hook, picked in zip(hooks, values[:, :, there], strict=True):
            yield _at_source(checkpoint, sources[hook], ids, dict(zip(METRICS, picked, strict=True)))


def _at_source(checkpoint: Checkpoint, source: Source, ids: list[str], values: dict[str, Any]) -> Columns:
    """values: metric -> [features]."""
    size = (checkpoint.quality or {}).get("size_factor")
    pairs = zip(values["projection"].tolist(), values["projection_reach"].tolist(), strict=True)
    ends = [ends_of(ratio, reach, size) for ratio, reach in pairs]
    constant = {
        "checkpoint": checkpoint.name,
        "hook_point": source.hook_point,
        "d_model": source.d_model,
        "paired_with": source.stats.get("paired_with"),
    }
    return {name: [value] * len(ids) for name, value in constant.items()} | {
        "id": ids,
        "readability": values["readability"],
        "strength": values["strength"],
        "projection_ratio": [over_size(one, size) for one in values["projection"].tolist()],
        "projection_ratio_lo": [low for low, _ in ends],
        "projection_ratio_hi": [high for _, high in ends],
        "direction_cosine": values["cosine"],
    }


def _features(read: Reading, family_id: str) -> Iterator[Columns]:
    """As in `features/{id}`, without verdicts, in the order of ids."""
    after: int | None = -1
    while after is not None:
        with read() as session:
            features = queries.following(session, family_id, after, _FEATURES_AT_ONCE)
            born = checkpoints.names(session, list({row.born_in for row in features}))
        rows = [feature_fields(row, born[row.born_in]) for row in features]
        yield {name: [row[name] for row in rows] for name in COLUMNS_OF["features"]}
        after = features[-1].number if len(features) == _FEATURES_AT_ONCE else None


def _judged(read: Reading, family_id: str) -> Sequence[Checkpoint]:
    with read() as session:
        return verdicts.judged(session, family_id)
