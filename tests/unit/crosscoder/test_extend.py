"""New features of a new checkpoint: what is born is found, and nothing else is.

The pipeline's own steps run here, on activations in memory: 40 features whose code is known, 15 that no dictionary has
found though both checkpoints write them, and noise of each checkpoint's own.
"""

import numpy as np
import pytest
import torch

from featurewatch.service.families.schemas import CrosscoderOptions
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.extend import ExtendConfig, append_columns, typical_size
from featurewatch.workers.crosscoder.regress import Regression, assign_folds
from featurewatch.workers.pipelines.shared.basis import References
from featurewatch.workers.pipelines.shared.context import OnboardingContext
from featurewatch.workers.pipelines.stages.extend import new_columns, solve_jointly
from featurewatch.workers.pipelines.stages.measure import ratio_tensors
from featurewatch.workers.verdicts.measure import Side, products
from tests.unit.crosscoder.planted import Held, code_of, dense_code, directions, documents, held, rotation

N, D, OLD, UNKNOWN, BORN = 12_000, 48, 40, 15, 3
ROWS, FOLDS = torch.arange(N), assign_folds(documents(N, 60), 20)
CODE = dense_code(N, OLD + UNKNOWN + BORN, 0.02, seed=0)
PLANTED = directions(OLD + UNKNOWN + BORN, D, seed=1)
UNBORN = np.r_[np.ones(OLD + UNKNOWN), np.zeros(BORN)]
GROWN = np.ones(OLD + UNKNOWN + BORN)


def _activations(levels: np.ndarray, seed: int, planted: np.ndarray = PLANTED) -> np.ndarray:
    noise = 0.05 * np.random.default_rng(seed).standard_normal((N, D))
    return CODE @ (planted * levels[:, None]) + noise


def _work() -> OnboardingContext:
    return OnboardingContext(
        family_id="fam", family_name="f", checkpoint_id="ckp", name="v2", uri="file:///v2", adapter=None,
        documents=None,
        hook_points=["resid_post.1"], corpus={}, crosscoder=CrosscoderOptions().model_dump(), policy=Policy(),
        positions=None, n_features=OLD, generation=1, fit="extend", why="extend", parent=None,
    )  # fmt: skip


def _extend(before: Held, now: Held, gone: list[int] | None = None, code: np.ndarray = CODE[:, :OLD]) -> Code:
    """New columns of `now` over `before`, as the stage extend finds and keeps them: [N, j]."""
    old = Regression(code_of(code), ROWS, FOLDS)
    solutions = old.solve(before), old.solve(now)
    flags = torch.zeros(old.m, dtype=torch.bool)
    flags[gone or []] = True
    rows = torch.zeros(old.m, D)
    rows[:OLD] = torch.from_numpy(PLANTED[:OLD])
    references = References(rows, flags, torch.arange(old.m))
    new = new_columns(_work(), old, (now, solutions[1]), (before, solutions[0]), references)
    if not new.m:
        return new
    size = ExtendConfig().size * typical_size(old.code, solutions[0])
    joined = solve_jointly(old, new, (before, solutions[0]), (now, solutions[1]), size)[0]
    return Code.from_scipy(joined.to_scipy()[:, old.m :])


def _found(new: Code) -> np.ndarray:
    """Correlation of every new column with every born feature's true code: [j, BORN]."""
    dense = new.to_scipy().toarray()
    return np.corrcoef(dense.T, CODE[:, -BORN:].T)[: new.m, new.m :]


def _levels(**events: float) -> np.ndarray:
    levels = GROWN.copy()
    for name, level in events.items():
        levels[int(name[1:])] = level
    return levels


def test_born_features_are_found_with_their_code() -> None:
    new = _extend(held(_activations(UNBORN, 1)), held(_activations(GROWN, 2)))
    assert new.m == BORN
    correlation = _found(new)
    assert (correlation.max(0) > 0.9).all()
    assert (correlation.max(1) > 0.9).all()


def test_beside_features_that_weaken() -> None:
    """Their share is given back to the residuals, and not taken for something new."""
    new = _extend(held(_activations(UNBORN, 1)), held(_activations(_levels(f0=0, f1=0, f2=0.3, f3=0.3), 2)))
    assert new.m == BORN
    assert (_found(new).max(0) > 0.9).all()


def test_in_another_basis() -> None:
    turn = rotation(D, 7)
    new = _extend(held(_activations(UNBORN, 1)), held(_activations(GROWN, 2) @ turn))
    assert new.m == BORN
    assert (_found(new).max(0) > 0.9).all()


def test_beside_many_that_are_hardly_written() -> None:
    """More than half of a wide dictionary holds what the parent's tokenizer adds to its tokens; the checkpoint has as
    much from its own. What is new is measured by what a feature writes, not by those."""
    faint = [dense_code(N, 60, 0.02, seed) for seed in (3, 4)]
    before, now = (
        _activations(levels, seed) + code @ (0.25 * directions(60, D, seed=seed + 8))
        for levels, seed, code in zip((UNBORN, GROWN), (1, 2), faint, strict=True)
    )
    new = _extend(held(before), held(now @ rotation(D, 7)), code=np.hstack([CODE[:, :OLD], faint[0]]))
    assert new.m == BORN
    assert (_found(new).max(0) > 0.8).all()


def test_half_of_a_successor_is_not_lost_in_its_predecessor() -> None:
    """Feature 0 goes, and two others come that each fire at half of its positions and at some of their own. The old
    decoder row absorbs part of what they write there, until its share is given back."""
    code = CODE.copy()
    where = np.flatnonzero(code[:, 0])
    for born, part in ((-1, where[::2]), (-2, where[1::2])):
        code[part, born] = code[part, 0]
    before = code @ (PLANTED * UNBORN[:, None]) + 0.05 * np.random.default_rng(1).standard_normal((N, D))
    now = code @ (PLANTED * _levels(f0=0)[:, None]) + 0.05 * np.random.default_rng(2).standard_normal((N, D))
    new = _extend(held(before), held(now)).to_scipy().toarray()
    correlation = np.corrcoef(new.T, code[:, -BORN:].T)[: new.shape[1], new.shape[1] :]
    assert (correlation.max(0) > 0.9).all()


@pytest.mark.parametrize(
    "levels",
    [
        _levels(f0=0.0, f1=0.0, f2=0.2, f3=0.35, f4=0.6, f5=0.6),
        _levels(f6=3.0, f7=2.5),
        _levels(**{f"f{i}": 0.5 for i in range(20)}),
    ],
    ids=["weakened", "strengthened", "half of all"],
)
def test_nothing_is_new_where_nothing_was_born(levels: np.ndarray) -> None:
    """Directions turn by 4 degrees on top: neither that nor the 15 features that nobody has found yet is new."""
    side = directions(len(PLANTED), D, seed=5)
    turned = np.cos(np.deg2rad(4)) * PLANTED + np.sin(np.deg2rad(4)) * side
    levels = levels * UNBORN
    assert _extend(held(_activations(UNBORN, 1)), held(_activations(levels, 2, turned))).m == 0


def test_what_was_gone_at_the_parent_and_comes_back_is_no_new_feature() -> None:
    before = held(_activations(_levels(f0=0.0) * UNBORN, 1))
    assert _extend(before, held(_activations(UNBORN, 2)), gone=[0]).m == 0


def test_rounding_to_bfloat16_brings_nothing() -> None:
    """The same weights in another precision."""
    x = _activations(GROWN, 1)
    assert _extend(held(x), Held(torch.from_numpy(x).bfloat16().float(), [D])).m == 0


def test_the_same_activations_bring_nothing() -> None:
    x = held(_activations(GROWN, 1))
    assert _extend(x, x).m == 0


def test_a_constant_parent_is_no_error() -> None:
    """A hook point that writes nothing: all that the checkpoint writes is new to it."""
    assert _extend(held(np.zeros((N, D))), held(_activations(GROWN, 2))).m >= 0


def test_a_feature_that_the_parent_holds_as_well_is_discovered_not_emerged() -> None:
    """`born_share`: what the parent writes where a new column fires, over what is written here."""
    before, now = held(_activations(UNBORN, 1)), held(_activations(GROWN, 2))
    picked = np.r_[: OLD + 2, -BORN:0]  # two that were always there and 3 that were born
    regression = Regression(append_columns(code_of(CODE[:, :OLD]), code_of(CODE[:, picked[OLD:]])), ROWS, FOLDS)
    sides = [Side(read, regression.solve(read)) for read in (now, before)]
    tensors = ratio_tensors(products(regression, *sides, [(D, D)], [None]))
    share, error = tensors["born_share"][OLD:], tensors["born_share_se"][OLD:]
    np.testing.assert_allclose(share[:2], 1.0, atol=0.1)
    np.testing.assert_allclose(share[2:], 0.0, atol=0.1)
    # The rule of the stage judge.
    assert (share + 2 * error < 0.5).tolist() == [False, False, True, True, True]
