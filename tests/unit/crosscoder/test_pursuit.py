"""Activations read again: removes what the encoder let leak into a latent."""

import numpy as np
import pytest
import torch

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.model import initial_crosscoder
from featurewatch.workers.crosscoder.preactivations import Scratch
from featurewatch.workers.crosscoder.pursuit import pursued, read_anew, reselected, without_zeros
from tests.unit.crosscoder.planted import code_of, dense_code


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    return dense_code(500, 40, 0.1, seed=0)


def _directions(m: int, d: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(1).standard_normal((m, d))), dim=1)


def test_it_finds_the_least_squares_on_the_active_latents(dense: np.ndarray) -> None:
    decoder = _directions(40, 24).float()
    random = np.random.default_rng(2)
    off = dense * np.exp(0.3 * random.standard_normal(dense.shape))
    truth = torch.from_numpy(dense).float() @ decoder
    residual = truth - torch.from_numpy(off).float() @ decoder
    code, left = read_anew(residual, code_of(off), decoder, steps=200)
    np.testing.assert_allclose(code.to_scipy().toarray(), dense, atol=2e-3)
    assert left.abs().max() < 2e-3
    # A step leaves less, never more, and what is left is what the code says.
    code, left = read_anew(residual, code_of(off), decoder)
    assert (left.square().sum(1) <= residual.square().sum(1) + 1e-6).all()
    assert left.square().sum() < 0.5 * residual.square().sum()
    torch.testing.assert_close(left, truth - code.decode(decoder), atol=1e-5, rtol=0)


def test_activations_stay_positive_and_a_perfect_code_stays(dense: np.ndarray) -> None:
    decoder = _directions(40, 24).float()
    code, _ = read_anew(-torch.from_numpy(dense).float() @ decoder * 3, code_of(dense), decoder, steps=5)
    assert code.values.min() >= 0
    assert len(without_zeros(code).values) == int((code.values > 0).sum()) < len(code.values)
    assert (without_zeros(code).to_scipy() != code.to_scipy()).nnz == 0
    same, left = read_anew(torch.zeros(500, 24), code_of(dense), decoder, steps=3)
    assert torch.equal(same.values, code_of(dense).values)
    assert not left.any()


def test_active_latents_are_chosen_anew_and_as_many_of_them(dense: np.ndarray) -> None:
    """The code comes from a source in which a fifth of the firings were others: what fires here is found."""
    decoder = _directions(40, 24).float()
    random = np.random.default_rng(3)
    moved = random.random(dense.shape) < 0.2
    before = np.where(moved, dense[:, random.permutation(40)], dense)
    most = torch.full((40,), float(dense.max()))
    start = code_of(before)
    x = torch.from_numpy(dense).float() @ decoder
    code, left = reselected(x, start, decoder, most, Scratch())
    assert len(code.values) <= len(start.values)
    assert all(row.diff().gt(0).all() for row in code.latents.tensor_split(code.indptr[1:-1]))  # ascending in a row
    torch.testing.assert_close(left, x - code.decode(decoder), atol=1e-5, rtol=0)
    kept, found = (before > 0) == (dense > 0), (code.to_scipy().toarray() > 0) == (dense > 0)
    assert found.mean() > 0.5 + 0.5 * kept.mean()
    _, without = read_anew(x - start.decode(decoder), start, decoder, steps=12)
    assert left.square().sum() < 0.25 * without.square().sum()


def test_a_latent_that_a_source_does_not_write_is_given_nothing_out_of_reach(dense: np.ndarray) -> None:
    """A row of noise is a direction like any other, if its latent may be as large as it takes."""
    decoder = _directions(40, 24).float()
    decoder[0] *= 1e-3
    x = torch.from_numpy(dense).float() @ decoder + 2 * decoder[0] / decoder[0].norm()
    most = torch.full((40,), float(dense.max()))
    code, _ = reselected(x, code_of(dense), decoder, most, Scratch())
    assert (code.values <= most[code.latents] + 1e-6).all()
    free, _ = reselected(x, code_of(dense), decoder, torch.full((40,), torch.inf), Scratch())
    assert free.values[free.latents == 0].max() > 100


def test_an_empty_code_stays_empty() -> None:
    nothing = code_of(np.zeros((5, 40)))
    code, left = reselected(torch.ones(5, 24), nothing, _directions(40, 24).float(), torch.ones(40), Scratch())
    assert not len(code.values)
    assert torch.equal(left, torch.ones(5, 24))


def test_a_leaking_encoder_is_corrected_also_where_a_source_is_missing() -> None:
    """Latents 0 and 1 overlap: an encoder that is the decoder transposed reads each in the other."""
    model = initial_crosscoder(FitConfig(2, 2, sparsity="l1"), Layout((2, 2), (0, 1)))
    rows = torch.tensor([[1.0, 0.0, 0.6, 0.8], [0.8, 0.6, 1.0, 0.0]])
    model.decoder, model.encoder = rows.clone(), rows / 2
    truth = torch.tensor([[2.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    x = truth @ rows
    x[0, 2:] = torch.nan
    leaking = model.encode(torch.tensor([[2.8, 0.6, 2.2, 1.6]])).to_scipy().toarray()
    assert (leaking > truth[0].numpy() + 0.6).all()
    code = pursued(model, x)
    found = code.to_scipy().toarray()
    assert abs(found - truth.numpy()).max() < 0.3
    np.testing.assert_array_equal(found[2], [0, 0])
