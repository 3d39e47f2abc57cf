"""Which positions each step takes: a function of seed and step alone, so that a fit can stop and go on anywhere."""

from functools import lru_cache

import torch
from torch import Tensor

RUN = 256
"""Consecutive positions that data which is streamed is read in."""


class Order:
    """Passes over n positions in a shuffled order, `batch` at a time.

    Up to `window` positions are shuffled as a whole. Of more, runs of consecutive positions are dealt to windows anew
    in every pass, and each window is shuffled: a step touches one window, so the rest need not be in memory, and files
    are read in long stretches. What doesn't fill a batch at the end of a pass (of a window) is left out of that pass.
    """

    def __init__(self, n: int, batch: int, seed: int, window: int) -> None:
        self.n, self.seed = n, seed
        self.batch = min(batch, n)
        runs = -(-n // RUN)
        # Each window has to fill a batch, whichever runs it got.
        most = max(1, runs // (-(-self.batch // RUN) + 1))
        self.windows = min(-(-n // max(window, 1)), most)
        # The windows of a pass: bounds among its shuffled runs.
        self.cuts = [runs * w // self.windows for w in range(self.windows + 1)]
        # Every window holds so many whole batches, whichever runs it got: only the last run may be short.
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
        """First positions of the runs (of RUN) that come into use after the window of this step; None: it is one of
        the same, or there is only one. For reading ahead."""
        if self.windows == 1 or self._place(step)[1]:
            return None
        after = step + self.steps[self._place(step)[0]]
        return self._runs(after // self.per_pass, self._place(after)[0]) * RUN

    def _runs(self, number: int, window: int) -> Tensor:
        order = _permutation(_seed(self.seed, number), -(-self.n // RUN))
        return order[self.cuts[window] : self.cuts[window + 1]]

    def window_rows(self, number: int, window: int) -> Tensor:
        """Positions of a window in the order in which they are used, int64."""
        if self.windows == 1:
            return torch.randperm(self.n, generator=torch.Generator().manual_seed(_seed(self.seed, number)))
        rows = (self._runs(number, window).unsqueeze(1) * RUN + torch.arange(RUN)).flatten()
        rows = rows[rows < self.n]
        generator = torch.Generator().manual_seed(_seed(self.seed, number) + 1 + window)
        return rows[torch.randperm(len(rows), generator=generator)]


def _seed(seed: int, number: int) -> int:
    """Of a pass; apart from the seeds of its windows and of other passes and fits."""
    return seed * 1_000_003 + number * 1009


@lru_cache(maxsize=1)
def _shuffled(order: Order, number: int, window: int) -> Tensor:
    """A window's order. Kept while it is in use: to shuffle a million positions takes as long as some steps."""
    return order.window_rows(number, window)


@lru_cache(maxsize=2)
def _permutation(seed: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
