"""Products and ratios of decoder rows: unbiased under noise, blind to a change of basis, not to an edit."""

import numpy as np
import pytest
import torch

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.preactivations import Scratch
from featurewatch.workers.crosscoder.pursuit import reselected
from featurewatch.workers.crosscoder.regress import Regression, assign_folds
from featurewatch.workers.verdicts.measure import (
    Products,
    Side,
    map_rows,
    procrustes,
    products,
    ratios,
    shared_turn,
    unexplained,
)
from tests.unit.crosscoder.planted import Held, code_of, dense_code, directions, documents, held, rotation

N, M, D, FOLDS = 4000, 30, 40, 10


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    """[N, M] code, 5% each; latents 28 and 29 fire in few documents, so that their folds are very unequal."""
    code = dense_code(N, M, 0.05, seed=0)
    code[(np.arange(N) // 40 % 25) > 1, 28:] = 0.0
    return code


def _regression(dense: np.ndarray) -> Regression:
    return Regression(code_of(dense), torch.arange(N), assign_folds(documents(N, 40), FOLDS), ridge=1e-6)


def _noise(seed: int, size: float = 0.5) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal((N, D))


def _compare(regression: Regression, now: Held, before: Held, *, mapped: bool = False) -> Products:
    c, b = (Side(read, regression.solve(read)) for read in (now, before))
    energy = regression.energy.sum(0).float()
    pairs = zip(c.solution.decoder.split(now.widths, 1), b.solution.decoder.split(before.widths, 1), strict=True)
    maps = [procrustes(x, y, energy) for x, y in pairs]
    assert all((r is not None) == mapped for r in maps)
    return products(regression, c, b, list(zip(before.widths, now.widths, strict=True)), maps)


def test_products_equal_the_formula_in_float64(dense: np.ndarray) -> None:
    """Row 0 and every replicate, from real influences, two hook points of different widths."""
    regression, widths = _regression(dense), [15, 25]
    now, before = (held(dense @ directions(M, D, 1) + _noise(seed), widths) for seed in (2, 3))
    got = _compare(regression, now, before)
    rows, errors = {}, {}
    for key, read in (("c", now), ("b", before)):
        solution = regression.solve(read)
        rows[key] = solution.decoder.double().numpy()
        errors[key] = np.stack([e.double().numpy() for e in regression.influences(read, solution)])
    room = 1 - regression.leverage.numpy()  # [K, m]
    for s, part in enumerate((slice(0, 15), slice(15, 40))):
        for pair, result in (("cc", got.now), ("bb", got.before), ("cb", got.both)):
            (x, y), (e, f) = (rows[k] for k in pair), (errors[k] for k in pair)
            own = (e[:, :, part] * f[:, :, part]).sum(2) * room
            plain = (x[:, part] * y[:, part]).sum(1)
            np.testing.assert_allclose(result[0, s], plain - own.sum(0), atol=1e-5)
            for g in range(FOLDS):
                left = ((x - e[g])[:, part] * (y - f[g])[:, part]).sum(1)
                noise = (own.sum(0) - own[g]) / room[g] ** 2
                np.testing.assert_allclose(result[g + 1, s], left - noise, atol=1e-4)


def test_fvu_is_of_each_hook_point_and_of_a_code_that_is_the_checkpoints_own(dense: np.ndarray) -> None:
    """The code was read elsewhere: another third of its entries is active here. FVU is the noise's, not theirs."""
    regression, widths = _regression(dense), [15, 25]
    here = np.where(np.random.default_rng(5).random(dense.shape) < 0.3, 0, dense)
    solution = regression.solve(held(dense @ directions(M, D, 1), widths))
    now = held(here @ directions(M, D, 1) + 0.1 * _noise(2), widths)
    side = Side(now, solution)
    got = unexplained(regression, side, widths)
    cached = code_of(dense)
    most = cached.values.max().repeat(M)
    _, left = reselected(now.x - solution.bias, cached, solution.decoder, most, Scratch())
    pairs = list(zip(left.split(widths, 1), now.x.split(widths, 1), strict=True))
    wanted = [float(e.square().sum() / x.square().sum()) for e, x in pairs]
    np.testing.assert_allclose(got, wanted, rtol=0.05)  # that one bounds each latent by itself
    residual = now.x - solution.bias - cached.decode(solution.decoder)
    assert (got < 0.3 * (residual.square().sum() / now.x.square().sum())).all()
    assert unexplained(regression, side, widths, most=500).shape == (2,)


def test_strength_of_pure_noise_averages_to_zero_and_a_real_one_to_what_is_written(dense: np.ndarray) -> None:
    """The plain squared norm of a noise row is its variance V > 0. Of 40 seeds x 28 rows x 40 dimensions the mean of
    ||row||^2 has a relative error of sqrt(2 / 44800) = 0.7%; the bias must stay under 2.5% of V (3.6 sigma), and that
    of the jackknife's own factor K / (K - 1) would be 11%."""
    regression = _regression(dense)
    levels = (np.arange(M) % 2)[:, None]
    square, plain = np.zeros((2, M))
    seeds = 40
    for seed in range(seeds):
        read = held(dense @ (directions(M, D, 1) * levels) + _noise(seed))
        side = Side(read, regression.solve(read))
        got = products(regression, side, side, [(D, D)], [None])
        square += got.now[0, 0].numpy() / seeds
        plain += side.solution.decoder.double().square().sum(1).numpy() / seeds
    variance = plain[0:28:2].mean()
    assert variance > 0.03
    assert abs(square[0:28:2].mean()) < 0.025 * variance
    assert abs(square[1:28:2].mean() - 1) < 0.025
    # Rows that hang on 2 documents in 25 are noisier (V is 12 times as large), and their folds unequal: 2 rows only.
    assert abs(square[28]) < 0.15 * plain[28]


def test_projection_ratios_are_unbiased_with_shared_noise(dense: np.ndarray) -> None:
    """Both checkpoints read the same text: most of their noise is common. A removed feature's ratio averages to 0
    over seeds, an unchanged one's to 1, a halved one's to 0.5. One ratio's sd is about 0.05 (noise row 0.2 long, in 40
    dimensions): over 15 seeds x 9 features the mean's is 0.004."""
    regression, planted = _regression(dense), directions(M, D, 1)
    levels = np.repeat([0.0, 0.5, 1.0], 10)[:, None]
    got = np.zeros(M)
    naive = np.zeros(M)
    for seed in range(15):
        common = _noise(1000 + seed)
        now = held(dense @ (planted * levels) + common + _noise(seed, 0.2))
        before = held(dense @ planted + common + _noise(500 + seed, 0.2))
        side = _compare(regression, now, before)
        got += ratios(side.now[0], side.before[0], side.both[0]).projection[0].numpy() / 15
        c, b = (regression.solve(read).decoder.double().numpy() for read in (now, before))
        naive += (c * b).sum(1) / (b * b).sum(1) / 15
    for start, level in ((0, 0.0), (10, 0.5), (20, 1.0)):
        assert got[start : min(start + 10, 28)].mean() == pytest.approx(level, abs=0.015)
    assert naive[:10].mean() > 0.02  # what the common noise would add


def test_the_same_weights_give_exactly_one(dense: np.ndarray) -> None:
    regression = _regression(dense)
    read = held(dense @ directions(M, D, 1) + _noise(0))
    got = _compare(regression, read, read)
    side = ratios(got.now.sum(1), got.before.sum(1), got.both.sum(1))
    torch.testing.assert_close(side.projection, torch.ones_like(side.projection))
    torch.testing.assert_close(side.strength_ratio, torch.ones_like(side.projection))
    assert float(side.orthogonal.max()) < 1e-2
    assert float((side.cosine - 1).abs().max()) < 1e-4


def test_a_rotation_of_the_basis_leaves_all_ratios_at_one_and_absorbs_no_edit(dense: np.ndarray) -> None:
    """Another basis, one feature halved and one removed: the map follows the basis, not the edit."""
    regression, planted, noise = _regression(dense), directions(M, 24, 1), _noise(0, 0.1)[:, :24]
    levels = np.ones((M, 1))
    levels[3], levels[4] = 0.5, 0.0
    turn = rotation(24, 5)
    before = held(dense @ planted + noise)
    now = held((dense @ (planted * levels) + noise) @ turn)
    got = _compare(regression, now, before, mapped=True)
    side = ratios(got.now[0], got.before[0], got.both[0])
    unchanged = np.delete(np.arange(M), [3, 4])
    # 28 directions pin all 24 dimensions of the map: none is left over to fit noise or the edit with.
    np.testing.assert_allclose(side.projection[0][unchanged], 1, atol=0.02)
    np.testing.assert_allclose(side.strength_ratio[0][unchanged], 1, atol=0.02)
    assert float(side.projection[0][3]) == pytest.approx(0.5, abs=0.03)
    assert float(side.projection[0][4]) == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize(("d_b", "d_c"), [(40, 64), (64, 40)])
def test_two_widths(dense: np.ndarray, d_b: int, d_c: int) -> None:
    """A wider model writes the same features in its own space; and back. 30 directions do not pin all 40 dimensions, so
    each of them is needed: the rounds may leave none out that fits."""
    regression = _regression(dense)
    narrow = directions(M, 40, 1)
    wide = narrow @ np.linalg.qr(np.random.default_rng(0).standard_normal((64, 40)))[0].T
    levels = np.ones((M, 1))
    levels[7] = 0.25
    written = {40: narrow, 64: wide}
    rng = np.random.default_rng(1)
    now = held(dense @ (written[d_c] * levels) + 0.05 * rng.standard_normal((N, d_c)))
    before = held(dense @ written[d_b] + 0.05 * rng.standard_normal((N, d_b)))
    got = _compare(regression, now, before, mapped=True)
    projection = ratios(got.now[0], got.before[0], got.both[0]).projection[0].numpy()
    assert projection[7] == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(np.delete(projection, 7), 1, atol=0.03)


def test_where_the_bases_agree_there_is_no_map() -> None:
    rows = torch.from_numpy(directions(50, 20, 0)).float()
    weight = torch.ones(50)
    assert (
        procrustes(rows, rows + 0.1 * torch.randn(50, 20, generator=torch.Generator().manual_seed(0)), weight) is None
    )
    turn = torch.from_numpy(rotation(20, 1)).float()
    got = procrustes(rows @ turn, rows, weight)
    assert got is not None
    torch.testing.assert_close(got, turn, atol=1e-5, rtol=0)
    # Rows of weight 0 never fired: whatever they hold says nothing about the basis.
    half = rows.clone()
    half[20:] = rows[20:] @ turn
    assert procrustes(half, rows, (torch.arange(50) < 20).float()) is None


def test_the_map_is_robust_against_features_that_went_elsewhere() -> None:
    """A sixth of the rows points anywhere: Procrustes over all would bend towards them, the rounds leave them out."""
    rows = torch.from_numpy(directions(200, 20, 0)).float()
    turn = torch.from_numpy(rotation(20, 1)).float()
    now = rows @ turn
    now[:33] = torch.from_numpy(directions(33, 20, 9)).float()
    got = procrustes(now, rows, torch.ones(200))
    assert got is not None
    left, _, right = torch.linalg.svd(rows.T @ now)
    assert float((got - turn).norm()) < 0.2 * float((left @ right - turn).norm())


def test_what_is_hardly_written_has_no_say_in_the_map() -> None:
    """Three features in five are one model's alone: what the other one writes of them is small, and points anywhere.
    They are too many to be left out."""
    rows = torch.from_numpy(directions(200, 20, 0)).float()
    turn = torch.from_numpy(rotation(20, 1)).float()
    now = rows @ turn
    now[:120] = 0.05 * torch.from_numpy(directions(120, 20, 9)).float()
    got = procrustes(now, rows, torch.ones(200))
    assert got is not None
    assert float(torch.nn.functional.cosine_similarity(rows[120:] @ got, now[120:]).min()) > 0.99


def test_a_change_of_scale_goes_into_all_ratios_alike(dense: np.ndarray) -> None:
    regression, noise = _regression(dense), _noise(0, 0.2)
    before, now = (held(scale * (dense @ directions(M, D, 1) + noise)) for scale in (1.0, 3.0))
    got = _compare(regression, now, before)
    side = ratios(got.now[0], got.before[0], got.both[0])
    for ratio in (side.projection[0], side.strength_ratio[0]):
        np.testing.assert_allclose(ratio, 3.0, rtol=1e-4)  # the judge divides by their median


def test_fixed_rows_are_references_without_an_error_and_disturb_no_other_feature(dense: np.ndarray) -> None:
    """Feature 0 is gone at the baseline and compared with its row from earlier. The others' errors are what they are:
    the reference must not be decoded into the baseline's residuals, where nobody writes it any more."""
    regression, planted = _regression(dense), directions(M, D, 1)
    levels = np.ones((M, 1))
    levels[0] = 0.0
    noise = _noise(0, 0.1)
    before, now = held(dense @ (planted * levels) + noise), held(dense @ planted + noise)
    c, b = (Side(read, regression.solve(read)) for read in (now, before))
    own = b.solution.decoder.clone()
    reference = torch.full((M, D), torch.nan)
    reference[0] = torch.from_numpy(5 * planted[0]).float()
    fixed = torch.arange(M) == 0
    plain = products(regression, c, b, [(D, D)], [None])
    got = products(regression, c, b, [(D, D)], [None], fixed, reference)
    assert torch.equal(b.solution.decoder, own)
    side = ratios(got.now[:, 0], got.before[:, 0], got.both[:, 0])
    assert float(side.projection[0, 0]) == pytest.approx(0.2, abs=0.01)
    np.testing.assert_allclose(got.before[:, 0, 0], 25.0, rtol=1e-5)
    for a, z in zip(got[:3], plain[:3], strict=True):
        torch.testing.assert_close(a[:, :, 1:], z[:, :, 1:])


def test_ratios_have_no_value_where_the_baseline_is_not_over_its_noise() -> None:
    now, before, both = (
        torch.tensor([[4.0, 1.0, -0.1]]),
        torch.tensor([[1.0, -0.2, 1.0]]),
        torch.tensor([[1.2, 0.5, 0.0]]),
    )
    side = ratios(now, before, both)
    assert side.projection[0].isnan().tolist() == [False, True, False]
    assert side.strength_ratio[0, 0] == 2.0
    assert float(side.orthogonal[0, 0]) == pytest.approx((4 - 1.44) ** 0.5)
    assert float(side.cosine[0, 0]) == pytest.approx(0.6)
    assert side.strength[0, 2] == side.projection[0, 2] == 0


def test_map_rows() -> None:
    rows, turn = torch.arange(10.0).reshape(2, 5), torch.tensor([[0.0, 1], [1, 0]])
    assert map_rows(rows, [3, 2], [None, turn]).tolist() == [[0, 1, 2, 4, 3], [5, 6, 7, 9, 8]]


def test_an_empty_code_is_no_error() -> None:
    code = Code(torch.zeros(N + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 3)
    regression = Regression(code, torch.arange(N), assign_folds(documents(N, 40), FOLDS))
    side = Side(held(_noise(0)), regression.solve(held(_noise(0))))
    got = products(regression, side, side, [(D, D)], [None])
    assert float(got.now.abs().max()) == 0
    assert ratios(got.now[0], got.before[0], got.both[0]).projection.isnan().all()


def test_what_all_rows_turn_in_is_a_turn_and_what_a_few_turn_in_is_none() -> None:
    """Four dimensions change places with four others: for all rows, then for a handful only."""
    generator = torch.Generator().manual_seed(0)
    rows, few = torch.randn(400, 40, generator=generator), torch.arange(400) < 6
    span = torch.linalg.qr(torch.randn(40, 8, generator=generator))[0].T
    apart = span[:4] - span[4:]
    turn = torch.eye(40) - apart.T @ apart
    noise = 0.2 * torch.randn(400, 40, generator=generator)
    torch.testing.assert_close(shared_turn(rows @ turn + noise, rows), turn, atol=0.05, rtol=0)
    some = torch.where(few.unsqueeze(1), rows @ turn, rows) + noise
    torch.testing.assert_close(shared_turn(some, rows), torch.eye(40), atol=0.05, rtol=0)
    nothing = torch.zeros(30, 40)
    torch.testing.assert_close(shared_turn(nothing, nothing), torch.eye(40))
    unused = rows.clone()
    unused[:, :3] = 0  # of what nobody writes nothing is known, and it stays
    torch.testing.assert_close(shared_turn(unused, unused), torch.eye(40))
