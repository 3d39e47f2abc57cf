"""Matching the features of two generations, by their codes on the same positions.

The similarity of two columns is the Pearson correlation of their activations over the positions,

    r_ij = (E[f_i g_j] - E[f_i] E[g_j]) / (sd f_i  sd g_j).

Only pairs that fire together can correlate positively, so the products are sparse; correlations below `LEAST` are
dropped. Ids carry over along the one-to-one assignment of pairs over the threshold that maximises the sum of r^2, the
shared variance. Features that remain may be represented by several columns together, measured by their multiple
correlation R with R^2 = r' C^-1 r.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

LEAST = 0.3
"""Minimum correlation of a candidate pair: unrelated features of one topic reach 0.2."""
PARTS = 8
"""Maximum number of columns that may represent a feature together."""
BLOCK = 1024

Kind = Literal["carried", "retired", "split", "merged", "new"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Link(NamedTuple):
    """One line of the lineage between two generations. `old` and `new` are columns.

    carried: `new` keeps the id of `old`. split: `new` is one of several columns that replace `old`. merged: `new`
    replaces `old` together with others. retired: `old` has no successor. new: `new` has no predecessor.
    """

    old: int | None
    new: int | None
    kind: Kind
    score: float
    """Correlation of the two columns; for retired and new ones with the closest column, 0 if below LEAST"""


def correlations(
    old: scipy.sparse.csr_matrix, new: scipy.sparse.csr_matrix, least: float = LEAST
) -> scipy.sparse.csr_matrix:
    """Pearson correlations of at least `least` > 0 between the columns of two codes [n, m], [n, w]: [m, w]."""
    n = old.shape[0]
    if new.shape[0] != n:
        raise ValueError(f"the codes have {n} and {new.shape[0]} positions")
    left, right = (code.astype(np.float64) for code in (old, new))
    mean_l, sd_l = _moments(left)
    mean_r, sd_r = _moments(right)
    columns = left.tocsc()
    parts = []
    for start in range(0, old.shape[1], BLOCK):
        part = (columns[:, start : start + BLOCK].T @ right).tocoo()
        covariance = part.data / n - mean_l[start + part.row] * mean_r[part.col]
        scale = sd_l[start + part.row] * sd_r[part.col]
        r = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
        keep = r >= least
        parts.append((np.minimum(r[keep], 1.0), start + part.row[keep], part.col[keep]))
    r, rows, cols = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return scipy.sparse.csr_matrix((r, (rows, cols)), shape=(old.shape[1], new.shape[1]))


def assign(similarity: scipy.sparse.csr_matrix, threshold: float) -> NDArray[np.int64]:
    """One-to-one assignment of rows to columns with the largest sum of squares, over pairs of at least `threshold`.

    Returns the row of each column, -1 if it has none.
    """
    m, w = similarity.shape
    pairs = similarity.tocoo()
    over = pairs.data >= threshold
    row, col, weight = pairs.row[over], pairs.col[over], pairs.data[over] ** 2
    # A dummy column for each row, worth next to nothing, so that every row can be assigned.
    alone = np.arange(m)
    whole = scipy.sparse.csr_matrix(
        (np.concatenate([weight, np.full(m, 1e-9)]), (np.concatenate([row, alone]), np.concatenate([col, w + alone]))),
        shape=(m, w + m),
    )
    rows, cols = min_weight_full_bipartite_matching(whole, maximize=True)
    of_column = np.full(w, -1, dtype=np.int64)
    of_column[cols[cols < w]] = rows[cols < w]
    return of_column


def match(old: scipy.sparse.csr_matrix, new: scipy.sparse.csr_matrix, threshold: float) -> list[Link]:
    """Lineage from the previous generation's code [n, m] to the new one's [n, w], on the same positions.

    Every old column is carried, split, merged or retired. Every new one is linked to an old one, or new.
    """
    similarity = correlations(old, new, min(LEAST, threshold))
    of_new = assign(similarity, threshold)
    carried = np.flatnonzero(of_new >= 0)
    links = [Link(int(of_new[j]), int(j), "carried", float(similarity[of_new[j], j])) for j in carried]
    ended = np.setdiff1d(np.arange(old.shape[1]), of_new[carried])
    free = of_new < 0
    split = dict(_split(similarity, new.tocsc(), ended, free, threshold))
    merged = _merged(similarity, old.tocsc(), np.setdiff1d(ended, list(split)), threshold)
    for column in ended.tolist():
        if column in split:
            links += [Link(column, j, "split", r) for j, r in split[column]]
        elif column in merged:
            target, r = merged[column]
            links.append(Link(column, target, "merged", r))
        else:
            links.append(Link(column, None, "retired", _best(similarity, column)))
    led_to = {link.new for link in links}
    towards = similarity.T.tocsr()
    links += [Link(None, j, "new", _best(towards, j)) for j in range(new.shape[1]) if j not in led_to]
    return links


def _split(
    similarity: scipy.sparse.csr_matrix,
    new: scipy.sparse.csc_matrix,
    ended: NDArray[np.int64],
    free: NDArray[np.bool_],
    threshold: float,
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Old columns that several unassigned new ones represent together: (old, [(new, r)])."""
    for column in ended.tolist():
        columns, r = _candidates(similarity, column)
        parts, together = _made_of(new, columns[free[columns]], r[free[columns]])
        if len(parts) > 1 and together >= threshold:
            yield column, parts


def _merged(
    similarity: scipy.sparse.csr_matrix,
    old: scipy.sparse.csc_matrix,
    ended: NDArray[np.int64],
    threshold: float,
) -> dict[int, tuple[int, float]]:
    """Old columns whose closest new column combines them with others: old -> (new, r)."""
    nearest: dict[int, set[int]] = defaultdict(set)
    for column in ended.tolist():
        columns, _ = _candidates(similarity, column)
        if len(columns):
            nearest[int(columns[0])].add(column)
    towards = similarity.T.tocsr()
    merged: dict[int, tuple[int, float]] = {}
    for target, olds in nearest.items():
        parts, together = _made_of(old, *_candidates(towards, target))
        if len(parts) > 1 and together >= threshold:
            merged |= {column: (target, r) for column, r in parts if column in olds}
    return merged


def _made_of(
    code: scipy.sparse.csc_matrix, columns: NDArray[np.int64], r: NDArray[np.float64]
) -> tuple[list[tuple[int, float]], float]:
    """The columns that make up a target, each with its correlation r, and their multiple correlation with it.

    Forward selection among the columns that correlate most with the target: each must add LEAST^2 to the explained
    share of its variance.
    """
    columns, r = columns[:PARTS], r[:PARTS]
    if not len(columns):
        return [], 0.0
    x = code[:, columns].astype(np.float64)
    mean, sd = _moments(x)
    c = ((x.T @ x).toarray() / x.shape[0] - np.outer(mean, mean)) / np.outer(sd, sd)
    c[np.diag_indices_from(c)] = 1 + 1e-9  # columns may be equal
    selected: list[int] = []
    explained = 0.0
    for part in range(len(columns)):
        tried = [*selected, part]
        share = float(r[tried] @ np.linalg.solve(c[np.ix_(tried, tried)], r[tried]))
        if share >= explained + LEAST**2:
            selected, explained = tried, share
    return [(int(columns[part]), float(r[part])) for part in selected], min(explained, 1.0) ** 0.5


def _candidates(similarity: scipy.sparse.csr_matrix, row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Columns of a row and their correlations, largest first."""
    part = slice(similarity.indptr[row], similarity.indptr[row + 1])
    order = np.argsort(-similarity.data[part], kind="stable")
    return similarity.indices[part][order].astype(np.int64), similarity.data[part][order]


def _best(similarity: scipy.sparse.csr_matrix, row: int) -> float:
    return float(max(_candidates(similarity, row)[1], default=0.0))


def _moments(code: scipy.sparse.spmatrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, exactly 0 for a constant one."""
    mean = np.asarray(code.mean(0)).ravel()
    square = np.asarray(code.multiply(code).mean(0)).ravel()
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0))
