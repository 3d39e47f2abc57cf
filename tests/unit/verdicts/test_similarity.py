"""Pairs of sources: similarity that is blind to basis, width and scale, and one-to-one assignments of it."""

import numpy as np
import pytest
import torch

from featurewatch.workers.verdicts.measure import procrustes
from featurewatch.workers.verdicts.similarity import one_to_one, procrustes_similarity, same_kind


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(0)


def test_the_same_in_another_basis_and_wider_is_all_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    x = _centred(torch.randn(500, 12, generator=generator))
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0][:12]
    assert procrustes_similarity(x, 3.0 * x @ basis) == pytest.approx(1.0, abs=1e-5)
    other = _centred(torch.randn(500, 20, generator=generator))
    assert procrustes_similarity(x, other) < 0.3
    half = x[:, :6] @ basis[:6] + 0.5 * other
    assert procrustes_similarity(x, other) < procrustes_similarity(x, half) < 0.9
    assert procrustes_similarity(x, torch.zeros(500, 3)) == 0.0


def test_pairs_make_the_largest_sum() -> None:
    similarity = np.array([[0.9, 0.8], [0.85, 0.1], [0.2, 0.3]])
    everything = np.ones((3, 2), dtype=bool)
    assert one_to_one(similarity, everything) == [(0, 1), (1, 0)], "not the best one first"
    assert one_to_one(similarity.T, everything.T) == [(0, 1), (1, 0)]
    mine, theirs = ["resid_post.3", "mlp_out.1", "mlp_out.2"], ["mlp_out.9", "resid_post.9"]
    assert one_to_one(similarity, same_kind(mine, theirs)) == [(0, 1), (1, 0)]
    assert one_to_one(similarity, same_kind(mine, ["attn_out.1", "attn_out.2"])) == []
    assert one_to_one(similarity, same_kind(mine, ["attn_out.1", "mlp_out.2"])) == [(2, 1)]


def test_a_row_that_alone_reaches_a_dimension_is_mapped() -> None:
    """Fewer rows than dimensions: each pins one. One that fits worse than the others, since what it writes has come
    near to what another writes, must not be mapped anywhere."""
    generator = torch.Generator().manual_seed(1)
    before = torch.linalg.qr(torch.randn(30, 30, generator=generator))[0][:20]
    turn = torch.linalg.qr(torch.randn(40, 40, generator=generator))[0][:30]
    now = before @ turn
    now[:4] = 0.6 * now[:4] + 0.8 * now[4:8]
    rotation = procrustes(now, before, torch.ones(20))
    assert rotation is not None
    mapped = before @ rotation
    cosine = torch.nn.functional.cosine_similarity(now, mapped, dim=1)
    assert float(cosine[:4].min()) > 0.5
    assert float(cosine[8:].min()) > 0.95
