"""Own codes: where features are active in one checkpoint, read from its activations alone.

A checkpoint's activations x [D], normalised by its own moments, are decomposed over unit rows u_i that are the same for
every checkpoint of a generation (mapped where bases differ):

    1. select   the latents with x . u_i >= max(theta, RATIO max_j x . u_j)
    2. refine   their activations by gradient pursuit, residual r = x - sum_i a_i u_i
    3. select   the latents with a_i + r . u_i >= theta (a step of iterative hard thresholding)
    4. refine   as before, drop what is under theta, and refine what remains

theta is a property of the generation (`noise_threshold`). Nothing depends on another checkpoint's code, on other
positions, or on how many latents are active, so the same weights get the same code, and a feature that grows does not
push another out. The dense work is the two products of steps 1 and 3. Pursuit and thresholding: Blumensath and Davies
2008, 2009.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.kernels import active_entries, entries_over
from featurewatch.workers.crosscoder.preactivations import BLOCK_BYTES, LEAST_BLOCK
from featurewatch.workers.crosscoder.pursuit import read_anew

RATIO = 0.4
"""Step 1 leaves out latents whose pre-activation is below this share of the position's largest: most of them only
overlap with it, and step 3 finds the others."""
FIRST_STEPS, STEPS, LAST_STEPS = 3, 4, 2
"""Steps of gradient pursuit in step 2, and before and after the drop in step 4."""
DEVIATIONS = 4.0
"""The threshold in standard deviations of the residual: of 2,048 latents, noise alone activates one at 15 positions."""
BLOCK_ROWS = 2048


def noise_threshold(residuals: Iterable[Tensor]) -> float:
    """theta for activations along unit rows, from the residuals [b, D] of the code that a generation was fitted with.

    DEVIATIONS times the standard deviation of the residual along a direction.
    """
    energy, count = 0.0, 0
    for residual in residuals:
        energy += float(residual.double().square().sum())
        count += residual.numel()
    if not count:
        raise ValueError("a threshold cannot be set without positions")
    return DEVIATIONS * (energy / count) ** 0.5


class OwnCoder:
    """Reads own codes.

    rows: [m, D] unit rows, or zeros for latents that are not read. bias: [D] subtracted from the activations.
    threshold: minimum activation along a unit row.
    """

    def __init__(self, rows: Tensor, bias: Tensor, threshold: float) -> None:
        if not 0 < threshold < float("inf"):
            raise ValueError("the threshold must be positive and finite")
        self.rows, self.bias, self.threshold = rows.contiguous(), bias, threshold
        m = len(rows)
        self._floor = torch.full((m,), threshold, device=rows.device)
        size = min(BLOCK_ROWS, max(LEAST_BLOCK, BLOCK_BYTES // (4 * max(m, 1))))
        self._scores = rows.new_empty(size, m)
        self._mask = torch.empty(size, m, dtype=torch.bool, device=rows.device)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Code:
        """The code of normalised activations [n, D]: activations along unit rows, each at least the threshold."""
        return concatenate_rows([self._read(part) for part in x.split(len(self._scores))])

    def _read(self, part: Tensor) -> Code:
        x = _padded(part - self.bias)
        n = len(x)
        scores, mask = self._scores[:n], self._mask[:n]
        torch.mm(x, self.rows.T, out=scores)
        floor = scores.amax(1, keepdim=True).mul_(RATIO).clamp_(min=self.threshold)
        places = active_entries(torch.ge(scores, floor, out=mask))
        code, residual = self._from_zero(x, self._code(scores, places))
        code, residual = read_anew(residual, code, self.rows, FIRST_STEPS - 1)
        torch.mm(residual, self.rows.T, out=scores)
        scores.view(-1).index_add_(0, places, code.values)
        code, residual = self._from_zero(x, self._code(scores, entries_over(scores, self._floor, mask)))
        code, _ = read_anew(residual, code, self.rows, STEPS - 1)
        code = _over(code, self.threshold)
        code, _ = read_anew(x - code.decode(self.rows), code, self.rows, LAST_STEPS)
        return _over(code, self.threshold).rows(0, len(part))

    def _code(self, scores: Tensor, places: Tensor) -> Code:
        bounds = torch.arange(len(scores) + 1, device=places.device) * self._scores.shape[1]
        values = scores.view(-1).index_select(0, places)
        return Code(torch.searchsorted(places, bounds), places % scores.shape[1], values, scores.shape[1])

    def _from_zero(self, x: Tensor, code: Code) -> tuple[Code, Tensor]:
        """A first step of pursuit: the scores as activations, scaled by the best length at each position."""
        written = code.decode(self.rows)
        length = (x * written).sum(1).div_(written.square().sum(1).clamp_min_(1e-30)).clamp_(0, 1)
        values = code.values * length.repeat_interleave(code.indptr.diff())
        return code._replace(values=values), torch.addcmul(x, written, length.unsqueeze(1), value=-1)


def _padded(x: Tensor) -> Tensor:
    """At least `LEAST_BLOCK` rows: libraries round the products of a few rows in another way."""
    return torch.cat([x, x.new_zeros(LEAST_BLOCK - len(x), x.shape[1])]) if len(x) < LEAST_BLOCK else x


def _over(code: Code, threshold: float) -> Code:
    """The code without entries under a threshold."""
    keep = code.values >= threshold
    before = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
    return Code(before[code.indptr], code.latents[keep], code.values[keep], code.m)
