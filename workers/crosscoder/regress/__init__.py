"""Ridge regression on the code: decoders with standard errors, and read-outs."""

from featurewatch.workers.crosscoder.regress.ridge import (
    CHOLESKY_UP_TO,
    LEAST_ROOM,
    Block,
    Cholesky,
    Reader,
    Regression,
    Solution,
    assign_folds,
    columns,
    dense_rows,
    gram,
    select,
    spread_rows,
    take_rows,
    transposed_product,
    weighted_median,
)

__all__ = [
    "CHOLESKY_UP_TO",
    "LEAST_ROOM",
    "Block",
    "Cholesky",
    "Reader",
    "Regression",
    "Solution",
    "assign_folds",
    "columns",
    "dense_rows",
    "gram",
    "select",
    "spread_rows",
    "take_rows",
    "transposed_product",
    "weighted_median",
]
