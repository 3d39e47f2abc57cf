"""What was gained, lost and kept between two own codes, against sums over dense matrices."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from featurewatch.service.verdicts.activity import DOCUMENTS_SHARE, LEAST_KEPT, Comparison, OwnCode, compare_activity
from tests.unit.verdicts.codes import FOLDS, LENGTH, THRESHOLD, active, own_code

pytestmark = pytest.mark.filterwarnings("error")

N = 2000
RATES = [0.3, 0.1, 0.02, 0.002, 0.0]


def _pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Half of the places stay. Strengths differ by feature, so that some activations fall under the threshold."""
    rng = np.random.default_rng(seed)
    before, fresh = active(rng, N, RATES), active(rng, N, RATES)
    now = np.where(rng.random(before.shape) < 0.5, before, fresh) * np.array([1.0, 2.2, 0.4, 1.0, 1.0])
    before[::7] *= 0.55
    return _visible(before), _visible(now)


def _visible(dense: np.ndarray) -> np.ndarray:
    dense = dense.astype(np.float32).astype(float)
    return np.where(dense >= THRESHOLD, dense, 0)


def _reference(before: OwnCode, now: OwnCode) -> dict[str, np.ndarray]:
    """The same by loops over features, folds and documents of dense matrices."""
    both = before.valid & now.valid
    b, c = (code.matrix.toarray().astype(float) * both[:, None] for code in (before, now))
    folds, documents, m = now.fold.max() + 1, now.document.max() + 1, b.shape[1]
    names = ("before", "now", "gained", "lost", "kept_before", "kept_now", "firings_before", "firings")
    sums = {name: np.zeros((folds, m)) for name in names}
    spread = {name: np.zeros(m) for name in ("documents", "largest", "trigger", "documents_before", "documents_now")}
    for i in range(m):
        f_b, f_c = b[:, i], c[:, i]
        kept = (f_b > 0) & (f_c > 0)
        amplitude = f_c[kept].sum() / f_b[kept].sum() if kept.sum() >= LEAST_KEPT else 1.0
        gained = np.where((f_b == 0) & (f_c / max(amplitude, 1) >= THRESHOLD), f_c, 0)
        lost = np.where((f_c == 0) & (f_b * min(amplitude, 1) >= THRESHOLD), f_b, 0)
        parts = (f_b, f_c, gained, lost, f_b * kept, f_c * kept, f_b > 0, f_c > 0)
        for name, part in zip(names, parts, strict=True):
            for fold in range(folds):
                sums[name][fold, i] = part[now.fold == fold].sum()
        mass, held, count = (
            np.array([part[now.document == document].sum() for document in range(documents)])
            for part in (gained, f_b, gained > 0)
        )
        spread["documents_before"][i] = (held > 0).sum()
        spread["documents_now"][i] = len(np.unique(now.document[f_c > 0]))
        ordered = np.sort(mass[mass > 0])[::-1]
        enough = np.cumsum(ordered) >= DOCUMENTS_SHARE * mass.sum() * (1 - 1e-12)
        spread["documents"][i] = np.argmax(enough) + 1 if len(ordered) else 0
        usual = np.maximum(held[held > 0].mean() if (held > 0).any() else 0, held)
        ratios = [gain / use if use else np.inf for gain, use in zip(mass, usual, strict=True) if gain]
        spread["largest"][i] = max(ratios, default=0)
        at = [count[d] for d in np.flatnonzero(mass) if not usual[d] or mass[d] / usual[d] == spread["largest"][i]]
        spread["trigger"][i] = max(at, default=0)
    return sums | spread


def _assert_equal(got: Comparison, wanted: dict[str, np.ndarray]) -> None:
    for name, value in got.sums._asdict().items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-9, err_msg=name)
    np.testing.assert_array_equal(got.gains.documents, wanted["documents"])
    np.testing.assert_allclose(got.gains.largest, wanted["largest"], rtol=1e-9)
    np.testing.assert_array_equal(got.gains.firings, wanted["trigger"])
    np.testing.assert_array_equal(got.documents_before, wanted["documents_before"])
    np.testing.assert_array_equal(got.documents, wanted["documents_now"])


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_dense_sums(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    before, now = (own_code(dense, rng.random(N) < 0.9) for dense in _pair(seed))
    _assert_equal(compare_activity(before, now), _reference(before, now))


def test_documents_of_any_order_and_length() -> None:
    rng = np.random.default_rng(0)
    document = rng.integers(0, 37, N)
    before, now = (replace(own_code(dense), document=document, fold=document % 5) for dense in _pair(9))
    got = compare_activity(before, now)
    assert got.sums.before.shape == (5, len(RATES))
    _assert_equal(got, _reference(before, now))


def test_an_own_code_against_itself() -> None:
    code = own_code(_pair(0)[0])
    got = compare_activity(code, code)
    assert not got.sums.gained.any() and not got.sums.lost.any()
    np.testing.assert_array_equal(got.sums.kept_now, got.sums.before)
    assert not got.gains.documents.any() and not got.gains.largest.any()


def test_forward_and_back() -> None:
    """What one direction gains, the other one loses."""
    before, now = map(own_code, _pair(1))
    there, back = compare_activity(before, now), compare_activity(now, before)
    np.testing.assert_allclose(there.sums.gained, back.sums.lost)
    np.testing.assert_allclose(there.sums.lost, back.sums.gained)
    np.testing.assert_allclose(there.sums.kept_before, back.sums.kept_now)


@pytest.mark.parametrize("factor", [0.4, 1.5, 3.0])
def test_a_change_of_strength_alone_gains_and_loses_nothing(factor: float) -> None:
    """Activations cross the threshold although the feature is active in the same places."""
    rng = np.random.default_rng(2)
    faint = np.where(rng.random((N, 3)) < 0.2, rng.exponential(0.6, (N, 3)), 0)
    before, now = own_code(_visible(faint)), own_code(_visible(factor * faint))
    got = compare_activity(before, now)
    crossed = got.sums.firings.sum(0) / got.sums.firings_before.sum(0)
    assert (crossed < 0.7).all() if factor < 1 else (crossed > 1.2).all()
    # The kept amplitude is the factor, up to rounding: entries within a thousandth of the threshold may count.
    assert (got.sums.gained.sum(0) <= 0.01 * got.sums.before.sum(0)).all()
    assert (got.sums.lost.sum(0) <= 0.01 * got.sums.before.sum(0)).all()


def test_gains_of_a_growing_feature_still_count() -> None:
    dense = active(np.random.default_rng(3), N, [0.1])
    now = 2 * dense
    now[dense[:, 0] == 0] = np.where(np.arange(np.count_nonzero(dense == 0)) % 5 == 0, 3.0, 0)[:, None]
    got = compare_activity(own_code(dense), own_code(now))
    assert got.sums.gained.sum() == 3.0 * np.count_nonzero(now == 3.0)


def test_positions_that_one_checkpoint_lacks_count_nowhere() -> None:
    before, now = _pair(4)
    valid = np.arange(N) >= N // 2
    part = compare_activity(own_code(before, valid), own_code(now, valid[::-1] | valid))
    only = compare_activity(own_code(before * valid[:, None]), own_code(now * valid[:, None]))
    for one, other in zip(part.sums, only.sums, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not compare_activity(own_code(before, valid), own_code(now, ~valid)).sums.now.any()


def test_a_trigger_s_document_stands_out() -> None:
    """A feature that was active nowhere has no usual document: the one with most gained positions counts."""
    dense = np.zeros((N, 2))
    dense[::LENGTH, 0] = 1
    now = dense.copy()
    now[5 * LENGTH : 6 * LENGTH] = 1
    now[[3, 4, 4 * N // 5], 1] = 1
    gains = compare_activity(own_code(dense), own_code(now)).gains
    assert gains.documents.tolist() == [1, 2]
    assert gains.largest.tolist() == [LENGTH - 1, np.inf]
    assert gains.firings.tolist() == [LENGTH - 1, LENGTH]


@pytest.mark.parametrize("shape", [(0, 3), (40, 0), (40, 3)])
def test_codes_without_anything(shape: tuple[int, int]) -> None:
    got = compare_activity(own_code(np.zeros(shape)), own_code(np.zeros(shape)))
    assert all(part.shape[1] == shape[1] and not part.any() for part in got.sums)
    assert got.gains.largest.tolist() == [0.0] * shape[1]


def test_codes_that_cannot_be_compared() -> None:
    code = own_code(_pair(0)[0])
    with pytest.raises(ValueError, match=r"shapes \(2000, 5\) and \(2000, 4\)"):
        compare_activity(code, own_code(_pair(0)[0][:, :4]))
    with pytest.raises(ValueError, match="different features"):
        compare_activity(code, replace(code, numbers=code.numbers + 1))


def test_columns_by_number() -> None:
    code = replace(own_code(_pair(0)[0]), numbers=np.array([7, 2, 30, 4, 11]))
    part = code.columns(np.array([30, 7]))
    assert part.numbers.tolist() == [30, 7]
    np.testing.assert_array_equal(part.matrix.toarray(), code.matrix.toarray()[:, [2, 0]])
    for missing in (3, 31):
        with pytest.raises(KeyError, match=f"no column for feature {missing}"):
            code.columns(np.array([7, missing]))


def test_what_is_stored_is_what_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    code = replace(own_code(_pair(5)[0], rng.random(N) < 0.9), numbers=np.array([7, 2, 30, 4, 11]), threshold=0.123)
    code.save(tmp_path / "own-code.safetensors")
    again = OwnCode.load(tmp_path / "own-code.safetensors")
    for name in ("valid", "document", "fold", "numbers"):
        np.testing.assert_array_equal(getattr(again, name), getattr(code, name))
        assert getattr(again, name).dtype == getattr(code, name).dtype
    assert again.threshold == code.threshold
    assert scipy.sparse.issparse(again.matrix) and again.matrix.nnz == code.matrix.nnz
    np.testing.assert_allclose(again.matrix.toarray(), code.matrix.toarray(), rtol=2**-11)
    # What is rounded once stays as it is.
    again.save(tmp_path / "twice.safetensors")
    assert (tmp_path / "twice.safetensors").read_bytes() == (tmp_path / "own-code.safetensors").read_bytes()
    assert again.fold.max() + 1 == FOLDS
