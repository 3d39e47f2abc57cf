"""The positions of each step: a function of seed and step alone, so that a fit can resume anywhere."""

from functools import lru_cache

import torch
from torch import Tensor

RUN = 256
"""Streamed data is read in runs of this many consecutive positions."""


class Order:
    """Passes over n positions in shuffled order, `batch` at a time.

    Up to `window` positions are shuffled as a whole. Larger data is split into runs of consecutive positions, which
    every pass assigns to windows at random; then each window is shuffled. A step touches a single window, so the rest
    need not be in memory, and files are read in long stretches. An incomplete batch at the end of a pass (or window) is
    dropped.
    """

    def __init__(self, n: int, batch: int, seed: int, window: int) -> None:
        self.n, self.seed = n, seed
        self.batch = min(batch, n)
        runs = -(-n // RUN)
        # Each window must fill a batch, whichever runs it gets.
        most = max(1, runs // (-(-self.batch // RUN) + 1))
        self.windows = min(-(-n // max(window, 1)), most)
        # Bounds of the windows among a pass's shuffled runs.
        self.cuts = [runs * w // self.windows for w in range(self.windows + 1)]
        # Whole batches that every window holds, whichever runs it gets: only the last run may be short.
        self.steps = [self._least(w) // self.batch for w in range(self.windows)]
        self.per_pass = sum(self.steps)

    def _least(self, window: int) -> int:
        if self.windows == 1:
            return self.n
        return (self.cuts[window + 1] - self.cuts[window]) * RUN - (-self.n % RUN)

    def rows(self, step: int) -> Tensor:
        """Sorted int64 [batch]."""
        window, place = self._place(step)
        shuffled = _shuffled(self, step // self.per_pass, window)
        return shuffled[place * self.batch : (place + 1) * self.batch].sort().values

    def _place(self, step: int) -> tuple[int, int]:
        place = step % self.per_pass
        for window, steps in enumerate(self.steps):
            if place < steps:
                return window, place
            place -= steps
        raise AssertionError

    def next_window(self, step: int) -> Tensor | None:
        """First positions of the runs (of RUN) of the next window, for reading ahead.

        None unless this step is the first of its window, or if there is only one window.
        """
        if self.windows == 1 or self._place(step)[1]:
            return None
        after = step + self.steps[self._place(step)[0]]
        return self._runs(after // self.per_pass, self._place(after)[0]) * RUN

    def _runs(self, number: int, window: int) -> Tensor:
        order = _permutation(_seed(self.seed, number), -(-self.n // RUN))
        return order[self.cuts[window] : self.cuts[window + 1]]

    def window_rows(self, number: int, window: int) -> Tensor:
        """Positions of a window in the order of their use, int64."""
        if self.windows == 1:
            return torch.randperm(self.n, generator=torch.Generator().manual_seed(_seed(self.seed, number)))
        rows = (self._runs(number, window).unsqueeze(1) * RUN + torch.arange(RUN)).flatten()
        rows = rows[rows < self.n]
        generator = torch.Generator().manual_seed(_seed(self.seed, number) + 1 + window)
        return rows[torch.randperm(len(rows), generator=generator)]


def _seed(seed: int, number: int) -> int:
    """Seed of a pass, distinct from those of its windows and of other passes and fits."""
    return seed * 1_000_003 + number * 1009


@lru_cache(maxsize=1)
def _shuffled(order: Order, number: int, window: int) -> Tensor:
    """A window's order, cached while in use: shuffling a million positions takes as long as several steps."""
    return order.window_rows(number, window)


@lru_cache(maxsize=2)
def _permutation(seed: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
