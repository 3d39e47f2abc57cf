"""The sparse matrix and what is done to it, against dense float64 matrices."""

import numpy as np
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.extend import append_columns, repeats
from featurewatch.workers.crosscoder.regress import columns, dense_rows, gram, select, take_rows, transposed_product
from tests.unit.crosscoder.planted import code_of

# Halves are exact in float32 and in float64, so sums of their products are compared without a tolerance.
_values = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 2.5])


_few = st.integers(0, 7)
_some = st.integers(1, 6)


def _matrices(rows: st.SearchStrategy[int] = _few, m: st.SearchStrategy[int] = _some) -> st.SearchStrategy[np.ndarray]:
    return st.tuples(rows, m).flatmap(lambda shape: arrays(np.float64, shape, elements=_values))


def _dense(code: Code) -> np.ndarray:
    """What a code says, entry by entry; also that it is well formed."""
    indptr, latents = code.indptr.tolist(), code.latents.tolist()
    assert indptr[0] == 0
    assert indptr[-1] == len(latents) == len(code.values)
    dense = np.zeros((len(indptr) - 1, code.m))
    for row in range(len(indptr) - 1):
        there = latents[indptr[row] : indptr[row + 1]]
        assert there == sorted(set(there))
        for entry in range(indptr[row], indptr[row + 1]):
            dense[row, latents[entry]] = float(code.values[entry])
    return dense


@given(_matrices())
def test_scipy_there_and_back(matrix: np.ndarray) -> None:
    code = code_of(matrix)
    assert (code.n, code.m) == matrix.shape
    np.testing.assert_array_equal(_dense(code), matrix)
    np.testing.assert_array_equal(code.to_scipy().toarray(), matrix)
    np.testing.assert_array_equal(dense_rows(code), matrix)


def test_from_scipy_sorts_and_drops_zeros() -> None:
    untidy = scipy.sparse.csr_matrix(
        (np.array([3.0, 1.0, 0.0]), np.array([2, 0, 1]), np.array([0, 2, 3])), shape=(2, 3)
    )
    code = Code.from_scipy(untidy)
    assert code.latents.tolist() == [0, 2]
    assert code.values.tolist() == [1.0, 3.0]
    assert code.indptr.tolist() == [0, 2, 2]
    assert (code.indptr.dtype, code.latents.dtype, code.values.dtype) == (torch.int64, torch.int64, torch.float32)


@given(_matrices(), st.data())
def test_rows_and_take_rows(matrix: np.ndarray, data: st.DataObject) -> None:
    code, n = code_of(matrix), len(matrix)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    np.testing.assert_array_equal(_dense(code.rows(start, stop)), matrix[start:stop])
    picked = data.draw(st.lists(st.integers(0, n - 1), max_size=9) if n else st.just([]))
    taken = take_rows(code, torch.tensor(picked, dtype=torch.int64))
    np.testing.assert_array_equal(_dense(taken), matrix[picked])


@given(_matrices(), st.data())
def test_select_and_columns(matrix: np.ndarray, data: st.DataObject) -> None:
    code, m = code_of(matrix), matrix.shape[1]
    keep = data.draw(arrays(np.bool_, m))
    np.testing.assert_array_equal(_dense(select(code, torch.from_numpy(keep))), matrix[:, keep])
    start = data.draw(st.integers(0, m))
    stop = data.draw(st.integers(start, m))
    np.testing.assert_array_equal(_dense(columns(code, start, stop)), matrix[:, start:stop])


@given(st.lists(_matrices(m=st.just(4)), min_size=1, max_size=4))
def test_concatenate_rows(parts: list[np.ndarray]) -> None:
    joined = concatenate_rows([code_of(part) for part in parts])
    np.testing.assert_array_equal(_dense(joined), np.concatenate(parts))


@given(_matrices(rows=st.just(5)), _matrices(rows=st.just(5)))
def test_append_columns(old: np.ndarray, new: np.ndarray) -> None:
    np.testing.assert_array_equal(_dense(append_columns(code_of(old), code_of(new))), np.hstack([old, new]))


@settings(max_examples=50)
@given(_matrices(rows=st.integers(1, 7)), st.integers(0, 2**32 - 1))
def test_products(matrix: np.ndarray, seed: int) -> None:
    code, rng = code_of(matrix), np.random.default_rng(seed)
    decoder = rng.integers(-4, 5, (matrix.shape[1], 3)).astype(np.float64)
    x = rng.integers(-4, 5, (len(matrix), 3)).astype(np.float64)
    np.testing.assert_array_equal(code.decode(torch.from_numpy(decoder).float()), matrix @ decoder)
    np.testing.assert_array_equal(transposed_product(code, torch.from_numpy(x).float()), matrix.T @ x)
    np.testing.assert_array_equal(gram(code), matrix.T @ matrix)


def test_gram_keeps_float64_where_sums_are_long() -> None:
    """A latent that always fires: in float32 the sum of its squares would stop growing at 2^24 ulps of a term."""
    n = 40_000
    dense = np.full((n, 2), 1.1, dtype=np.float32)
    exact = n * float(np.float32(1.1)) ** 2
    np.testing.assert_allclose(gram(code_of(dense)), np.full((2, 2), exact), rtol=1e-12)


def test_repeats_names_columns_with_the_code_of_an_old_one() -> None:
    rng = np.random.default_rng(0)
    old = np.where(rng.random((200, 3)) < 0.2, 1.0, 0.0)
    other = np.where(rng.random(200) < 0.2, 1.0, 0.0)
    # Twice the activations of old latent 1 (cosine 1), and one that fires by itself (cosine about the rate, 0.2).
    assert repeats(code_of(old), code_of(np.stack([2 * old[:, 1], other], 1))).tolist() == [True, False]
