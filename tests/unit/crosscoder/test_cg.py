"""Conjugate gradient against Cholesky: the same decoders and errors, also where the code is ill-conditioned."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from featurewatch.workers.crosscoder.regress import Cholesky, Regression, assign_folds, cg, columns
from featurewatch.workers.crosscoder.regress.cg import ConjugateGradient, Groups, conjugate_gradient
from tests.unit.crosscoder.planted import Held, code_of, dense_code, directions, documents, held

N, M, D = 3000, 90, 12
ROWS = torch.arange(N)[torch.arange(N) % 7 != 0]
FOLDS = assign_folds(documents(N, 30), 10)[ROWS]


def _plain() -> np.ndarray:
    return dense_code(N, M, 0.05, seed=0)


def _twins() -> np.ndarray:
    """Ten latents that all but repeat others, by pairs and by threes."""
    code, rng = _plain(), np.random.default_rng(1)
    for copy, original in zip(range(10), [20, 20, 21, 22, 23, 24, 25, 26, 27, 28], strict=True):
        code[:, copy] = code[:, original] * (1 + 0.02 * rng.standard_normal(N)).clip(0.5)
    return code


def _dead() -> np.ndarray:
    code = _plain()
    code[:, 5:30] = 0.0
    return code


def _local() -> np.ndarray:
    """Latents that fire in one fold only."""
    code = _plain()
    folds = assign_folds(documents(N, 30), 10).numpy()
    for latent in range(10):
        code[folds != latent, latent] = 0.0
    return code


def _constant() -> np.ndarray:
    """Two latents that fire everywhere, nearly the same; two that exclude each other."""
    code, rng = _plain(), np.random.default_rng(2)
    code[:, 0] = 10 + rng.random(N)
    code[:, 1] = code[:, 0] + 0.01 * rng.random(N)
    code[:, 2], code[:, 3] = (np.arange(N) % 2 == 0) * 1.5, (np.arange(N) % 2 == 1) * 0.5
    return code


CODES = [_plain, _twins, _dead, _local, _constant]


def _activations(code: np.ndarray) -> Held:
    rng = np.random.default_rng(3)
    noise = 0.3 * np.repeat(rng.standard_normal((N // 30, D)), 30, 0) + 0.3 * rng.standard_normal((N, D))
    return held(code @ directions(M, D, 2) + noise + 3 * rng.standard_normal(D), [5, 7])


def _both(code: np.ndarray, ridge: float = 1e-4) -> tuple[Regression, Regression]:
    dense = Regression(code_of(code), ROWS, FOLDS, ridge, block=200)
    sparse = Regression(code_of(code), ROWS, FOLDS, ridge, block=200, dense_up_to=0)
    assert isinstance(dense.left, Cholesky)
    assert isinstance(sparse.left, ConjugateGradient)
    return dense, sparse


def _near(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Every row within `tolerance` of the size of a typical row."""
    typical = wanted.norm(dim=-1).median()
    assert float((got - wanted).norm(dim=-1).max() / typical) < tolerance


@pytest.mark.parametrize("make", CODES)
def test_equals_cholesky(make: Callable[[], np.ndarray]) -> None:
    dense, sparse = _both(make())
    read = _activations(make())
    wanted, got = dense.solve(read), sparse.solve(read)
    _near(got.decoder, wanted.decoder, 1e-4)
    torch.testing.assert_close(got.bias, wanted.bias, rtol=1e-4, atol=1e-4)
    assert sparse.left.iterations < 60
    for errors, wanted_errors in zip(sparse.influences(read, got), dense.influences(read, wanted), strict=True):
        assert float((errors - wanted_errors).norm() / wanted_errors.norm()) < 0.05
    torch.testing.assert_close(sparse.leverage, dense.leverage)


@pytest.mark.parametrize("first", [0, 1, 60])
@pytest.mark.parametrize("dense_up_to", [0, 70])
def test_extended_and_known_columns(first: int, dense_up_to: int) -> None:
    """Also where the code outgrows what Cholesky is for."""
    code = _twins()
    read, wide = _activations(code), code_of(code)
    narrow = Regression(columns(wide, 0, first), ROWS, FOLDS, dense_up_to=dense_up_to)
    extended = narrow.extended(wide)
    assert isinstance(extended.left, ConjugateGradient)
    wanted = Regression(wide, ROWS, FOLDS).solve(read)
    _near(extended.solve(read).decoder, wanted.decoder, 1e-4)
    _near(extended.solve(read, known=narrow.solve(read)).decoder, wanted.decoder, 1e-4)


def test_no_activation_no_decoder() -> None:
    sparse = _both(_plain())[1]
    solution = sparse.solve(held(np.zeros((N, D))))
    assert float(solution.decoder.abs().max()) == 0
    dead = _both(_dead())[1]
    assert float(dead.solve(_activations(_dead())).decoder[5:30].abs().max()) == 0


@pytest.mark.parametrize("make", CODES)
def test_a_group_that_holds_everything_is_the_inverse(
    make: Callable[[], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cg, "GROUP", 128)
    monkeypatch.setattr(cg, "CORRELATED", -2.0)
    monkeypatch.setattr(cg, "ENTRIES", 500)  # several stretches of latents
    code = make()
    code[:, 40] += 1e-3  # fires together with all others, so that all are joined
    left = _both(code, ridge=1e-2)[1].left
    assert isinstance(left, ConjugateGradient)
    (inverse,) = left.precondition.inverses
    assert inverse.shape == (1, 128, 128)
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((M, 3)))
    torch.testing.assert_close(left.precondition(left._left(v)), v, rtol=1e-5, atol=1e-5)


def test_groups_are_what_makes_twins_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    read = _activations(_twins())

    def iterations() -> int:
        regression = _both(_twins())[1]
        regression.solve(read)
        assert isinstance(regression.left, ConjugateGradient)
        return regression.left.iterations

    grouped = iterations()
    monkeypatch.setattr(cg, "CORRELATED", 2.0)
    assert grouped < 0.5 * iterations()


def test_groups_from_a_sample_steer_the_speed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurewatch.workers.crosscoder.regress.SAMPLE", 400)
    dense, sparse = _both(_twins())
    read = _activations(_twins())
    _near(sparse.solve(read).decoder, dense.solve(read).decoder, 1e-4)


def test_a_group_holds_at_most_so_many() -> None:
    """A hundred latents with one code: they can't all be in one group."""
    code = np.repeat(dense_code(500, 1, 0.2, seed=0), 100, 1)
    rows = code_of(code).to_scipy()
    groups = Groups(rows, torch.from_numpy((code**2).sum(0)), 1.0)
    sizes = [int((places < 100).sum(1).max()) for places in groups.places]
    assert max(sizes) <= cg.GROUP
    assert sum(int((places < 100).sum()) for places in groups.places) > 90


def _system() -> tuple[torch.Tensor, torch.Tensor]:
    half = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 30)))
    right = torch.from_numpy(np.random.default_rng(1).standard_normal((30, 4))) * torch.tensor([1.0, 1e6, 1e-6, 0.0])
    return half.T @ half, right


def test_every_column_has_its_own_steps() -> None:
    square, right = _system()
    x, _ = conjugate_gradient(lambda v: square @ v, torch.clone, right, None, 1e-10)
    wanted = torch.linalg.solve(square, right)
    torch.testing.assert_close(x / right.norm(dim=0).clamp_min(1), wanted / right.norm(dim=0).clamp_min(1))
    torch.testing.assert_close(x[:, 2], wanted[:, 2], rtol=1e-6, atol=0)
    assert float(x[:, 3].abs().max()) == 0


def test_a_near_start_takes_fewer_steps() -> None:
    square, right = _system()
    wanted = torch.linalg.solve(square, right)
    start = wanted + 1e-3 * wanted.std(0) * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
    cold = conjugate_gradient(lambda v: square @ v, torch.clone, right, None, 1e-3)[1]
    x, warm = conjugate_gradient(lambda v: square @ v, torch.clone, right, start, 1e-3)
    assert warm < cold
    assert float((x - wanted)[:, 0].norm() / wanted[:, 0].norm()) < 0.05


def test_what_does_not_converge_says_so() -> None:
    square, right = _system()
    with pytest.warns(UserWarning, match="after 3 iterations"):
        conjugate_gradient(lambda v: square @ v, torch.clone, right, None, 1e-10, most=3)
