"""The order in which positions are taken: passes, windows, and what comes next."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurewatch.workers.crosscoder.fit.order import RUN, Order


@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 3))
def test_rows_come_once_a_pass(n: int, batch: int, seed: int) -> None:
    """A pass is n // batch whole batches of one shuffled order; what is left over is another rest in every pass."""
    order = Order(n, batch, seed, 1000)
    size = min(batch, n)
    assert (order.windows, order.batch, order.per_pass) == (1, size, n // size)
    for number in range(2):
        rows = [order.rows(number * order.per_pass + place) for place in range(order.per_pass)]
        assert all(part.tolist() == sorted(part.tolist()) and len(part) == size for part in rows)
        seen = torch.cat(rows).tolist()
        assert len(set(seen)) == len(seen) == order.per_pass * size
        assert set(seen) <= set(range(n))
        if n % size == 0:
            assert sorted(seen) == list(range(n))


def test_rows_depend_on_seed_pass_and_step_alone() -> None:
    one, same, other = (Order(100, 10, seed, 1000) for seed in (1, 1, 2))
    wanted = one.rows(7).tolist()
    assert one.rows(17).tolist() != wanted
    assert one.rows(7).tolist() == same.rows(7).tolist() == wanted
    assert other.rows(7).tolist() != wanted


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40_000), st.integers(1, 3000), st.integers(1, 9000), st.integers(0, 3))
def test_windows(n: int, batch: int, window: int, seed: int) -> None:
    """Every step takes a whole batch from one window, a window is made of whole runs, and no position comes twice in a
    pass; whatever is asked for, also where a window would hold less than a batch."""
    order = Order(n, batch, seed, window)
    for number in range(2):
        seen = torch.zeros(n, dtype=torch.bool)
        step = number * order.per_pass
        taken = 0
        for place in range(order.windows):
            inside = torch.zeros(n, dtype=torch.bool)
            inside[order.window_rows(number, place)] = True
            for _ in range(order.steps[place]):
                rows = order.rows(step)
                assert len(rows) == order.batch
                assert bool((rows.diff() > 0).all())
                assert bool(inside[rows].all())
                assert not bool(seen[rows].any())
                seen[rows] = True
                step += 1
                taken += len(rows)
        assert step == (number + 1) * order.per_pass
        # Each window leaves out less than a batch, and what it can't be sure to get (the last run may be short).
        assert taken > n - order.windows * (order.batch + 2 * RUN)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40_000), st.integers(1, 3000), st.integers(1, 9000), st.integers(0, 3))
def test_windows_deal_out_all_positions_in_whole_runs(n: int, batch: int, window: int, seed: int) -> None:
    order = Order(n, batch, seed, window)
    parts = [order.window_rows(1, place) for place in range(order.windows)]
    assert torch.cat(parts).sort().values.tolist() == list(range(n))
    if order.windows > 1:
        # As much as is asked for, but for the run that is begun, and for what a batch takes.
        assert max(map(len, parts)) <= max(window + RUN, 2 * order.batch + 3 * RUN)
        for part in parts:
            rows = part.sort().values
            runs = rows.div(RUN, rounding_mode="floor").unique()
            wanted = (runs.unsqueeze(1) * RUN + torch.arange(RUN)).flatten()
            assert torch.equal(rows, wanted[wanted < n])


def test_windows_are_dealt_anew_in_every_pass_and_shuffled() -> None:
    order = Order(20_000, 100, 0, 5000)
    assert order.windows == 4
    first, second = (order.window_rows(number, 0) for number in (0, 1))
    assert not torch.equal(first.sort().values, second.sort().values)
    # Neighbours in the order are no neighbours in the files.
    assert float((first.diff().abs() < RUN).float().mean()) < 0.15


@settings(max_examples=30, deadline=None)
@given(st.integers(3000, 40_000), st.integers(1, 800), st.integers(800, 9000))
def test_next_window_names_the_runs_that_come_after_this_window(n: int, batch: int, window: int) -> None:
    """Asked at every step it answers once a window, early enough to read a window ahead."""
    order = Order(n, batch, 1, window)
    answers = {step: order.next_window(step) for step in range(2 * order.per_pass)}
    bounds = [sum(order.steps[:place]) for place in range(order.windows)]
    begins = [number * order.per_pass + at for number in range(2) for at in bounds]
    if order.windows == 1:
        assert set(answers.values()) == {None}
        return
    assert [step for step, runs in answers.items() if runs is not None] == begins
    for begin, after in zip(begins, [*begins[1:], 2 * order.per_pass], strict=True):
        runs = answers[begin]
        assert runs is not None
        number, place = divmod(begins.index(begin) + 1, order.windows)
        coming = order.window_rows(number, place)
        assert sorted(runs.tolist()) == sorted({int(row) // RUN * RUN for row in coming})
        assert set(order.rows(after).tolist()) <= set(coming.tolist())


def test_a_step_in_the_middle_of_a_window_asks_for_nothing() -> None:
    order = Order(10_000, 100, 0, 2500)
    assert order.next_window(1) is None
    assert order.next_window(0) is not None
