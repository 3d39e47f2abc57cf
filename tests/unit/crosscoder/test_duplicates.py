"""Two latents that write one feature become one; those that only meet now and then stay two."""

import numpy as np
import torch

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.duplicates import merge_duplicates
from featurewatch.workers.crosscoder.model import Crosscoder, initial_crosscoder
from featurewatch.workers.crosscoder.pursuit import pursued

M, D, N = 6, 32, 3000


def _model(**options: object) -> tuple[Crosscoder, torch.Tensor, np.ndarray]:
    """Latents 0 and 3 write halves of one feature, 1 and 4 another along two directions; 2 fires on half of 0's."""
    random = np.random.default_rng(0)
    truth = (random.random((N, 4)) < 0.1) * (1 + random.random((N, 4)))
    truth[:, 2] *= truth[:, 0] > 0
    truth[random.random(N) < 0.05, 2] = 0
    basis = np.linalg.qr(random.standard_normal((D, D)))[0]
    model = initial_crosscoder(FitConfig(M, 2, sparsity="l1", **options), Layout((D,)))
    rows = np.stack([basis[0] * 0.5, basis[1], basis[2], basis[0] * 0.5, basis[3], basis[4]])
    model.decoder = torch.from_numpy(rows).float()
    encoder = np.stack([basis[0], basis[1], basis[2], basis[0], basis[3], basis[4]])
    model.encoder = torch.from_numpy(encoder).float()
    model.encoder_bias = torch.full((M,), -0.01)
    written = np.stack([basis[0], basis[1] + basis[3], basis[2], basis[4]])
    return model, torch.from_numpy(truth @ written).float(), truth


def test_groups_become_one_latent_that_writes_what_they_wrote() -> None:
    model, x, truth = _model()
    before = pursued(model, x)
    wrote = model.reconstruct(before)
    assert merge_duplicates(model, before) == 2
    code = pursued(model, x)
    columns = code.to_scipy().toarray()
    assert sorted(np.flatnonzero(columns.any(0))) == [0, 1, 2, 5]
    np.testing.assert_allclose(model.reconstruct(code), wrote, atol=0.03)
    for latent, feature in ((0, 0), (1, 1), (2, 2), (5, 3)):
        assert np.corrcoef(columns[:, latent], truth[:, feature])[0, 1] > 0.99
    assert merge_duplicates(model, code) == 0


def test_the_one_that_writes_most_goes_on_and_designated_latents_stay() -> None:
    model, x, _ = _model()
    model.decoder[3] *= 1.5
    merge_duplicates(model, model.encode(x))
    assert not model.decoder[0].any()
    assert model.decoder[3].any()
    model, x, _ = _model(designated=1)
    assert merge_duplicates(model, model.encode(x)) == 1  # 0 is designated: it is not merged, nor is what fires with it
    assert model.decoder[0].any()
    assert model.decoder[3].any()


def test_a_code_that_never_fires_has_no_duplicates() -> None:
    model, _, _ = _model()
    nothing = Code(torch.zeros(11, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), M)
    assert merge_duplicates(model, nothing) == 0
