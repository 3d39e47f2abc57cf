"""Contrast rows as a checkpoint's own features read them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from featurewatch.service.dictionaries.folding import MIN_SLOPE
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.workers.crosscoder.regress import weighted_median
from featurewatch.workers.verdicts.measure import shared_turn

Floats = NDArray[np.float64]
Columns = NDArray[np.int64]


@dataclass(frozen=True)
class JudgedCheckpoint:
    """A judged checkpoint: what is kept of its dictionary."""

    id: str
    family_id: str
    code: str
    hook_points: list[str]
    dictionaries: list[str]
    """in the order of the hook points"""


class ContrastReader:
    """A checkpoint's read-outs and decoders, and the contrast rows as it reads them.

    A feature is (number, hook point); columns count them hook point by hook point, [h * m]. means: the rows are means
    over tokens. A feature that fires at one of them leaves too little to be over its threshold, and the mean of what a
    linear read-out gives is what it gives of the mean, so it is left at that.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        place: JudgedCheckpoint,
        activations: str,
        hook_points: list[str],
        *,
        means: bool,
    ) -> None:
        self.hook_points, self.means = hook_points, means
        self._turns: dict[tuple[ContrastReader, frozenset[int]], list[Tensor]] = {}
        raw = load_file(artifacts.path(activations))
        kept = dict(zip(place.hook_points, place.dictionaries, strict=True))
        self.numbers: Columns = load_file(artifacts.path(place.code))["feature_numbers"].numpy()
        self.dictionaries = [load_file(artifacts.path(kept[hook])) for hook in hook_points]
        for d in self.dictionaries:  # one of before slopes were kept has none
            d.setdefault("readout_slope", torch.ones_like(d["readout_bias"]))
        self.x = [(raw[hook].float() - d["mean"]) * (len(d["mean"]) ** 0.5 / d["rms"])
                  for hook, d in zip(hook_points, self.dictionaries, strict=True)]  # fmt: skip

    @property
    def m(self) -> int:
        return len(self.numbers)

    def values(self, columns: Columns, rows: NDArray[np.bool_]) -> Floats:
        """Features at rows, read by this checkpoint alone: [r, k]. A column of -1 (no such feature) is 0."""
        found, picked = np.zeros((int(rows.sum()), len(columns))), torch.from_numpy(rows)
        for h, (x, d) in enumerate(zip(self.x, self.dictionaries, strict=True)):
            here = np.flatnonzero((columns >= 0) & (columns // self.m == h))
            if len(here):
                at = torch.from_numpy(columns[here] % self.m)
                read = x[picked] @ d["readout"][:, at] + d["readout_bias"][at]
                if not self.means:
                    read.relu_()
                read /= d["readout_slope"][at].clamp_min(MIN_SLOPE)
                found[:, here] = read.double().numpy()
        return found

    def block(self, columns: slice, rows: NDArray[np.bool_]) -> Floats:
        """Neighbouring columns."""
        return self.values(np.arange(columns.start, columns.stop), rows)

    def written(self, columns: Columns) -> list[Tensor]:
        """What is written for each feature, hook point by hook point: [k, d] each, zeros at the others."""
        parts = []
        for h, d in enumerate(self.dictionaries):
            rows = torch.zeros(len(columns), d["decoder"].shape[1])
            here = np.flatnonzero((columns >= 0) & (columns // self.m == h))
            rows[here] = d["decoder"][torch.from_numpy(columns[here] % self.m)]
            parts.append(rows)
        return parts

    def turns(self, before: "ContrastReader", without: frozenset[int]) -> list[Tensor]:
        """Orthonormal maps from another checkpoint's bases into these, by the features that both write.

        without: numbers of the features that are asked about: they are no evidence that all turned.
        Kept: a map costs a singular value decomposition, and every comparison of the two asks for it.
        """
        if (before, without) not in self._turns:
            shared, a, b = np.intersect1d(self.numbers, before.numbers, return_indices=True)
            other = ~np.isin(shared, list(without))
            here, there = torch.from_numpy(a[other]), torch.from_numpy(b[other])
            self._turns[before, without] = [
                shared_turn(c["decoder"][here], d["decoder"][there])
                for c, d in zip(self.dictionaries, before.dictionaries, strict=True)
            ]
        return self._turns[before, without]

    @cached_property
    def live(self) -> Columns:
        """Columns of the features that are read at all."""
        alive = [np.flatnonzero(d["readout"].abs().sum(0).numpy() > 0) + h * self.m
                 for h, d in enumerate(self.dictionaries)]  # fmt: skip
        return np.concatenate(alive).astype(np.int64)

    def find(self, features: list[tuple[int, str]], hooks: dict[str, str]) -> tuple[Columns, NDArray[np.bool_]]:
        """(columns [k], which of them can be read [k]) of (number, hook point) of another checkpoint.

        A number beyond all of this checkpoint's was born later: it writes nothing here, column -1, and that is known.
        One that a re-fit has retired is not.
        """
        place = {int(number): i for i, number in enumerate(self.numbers)}
        columns, known = np.full(len(features), -1), np.zeros(len(features), dtype=bool)
        for i, (number, hook) in enumerate(features):
            own = hooks.get(hook)
            if own in self.hook_points:
                h = self.hook_points.index(own)
                columns[i] = h * self.m + place[number] if number in place else -1
                known[i] = number in place or number > int(self.numbers.max())
        return columns, known

    def name(self, column: int) -> tuple[int, str]:
        """(number, hook point) of a column."""
        return int(self.numbers[column % self.m]), self.hook_points[column // self.m]


def typical_size(now: ContrastReader, before: ContrastReader) -> float:
    """What a checkpoint writes of a typical feature, over what another does: a change of all alike is none."""
    _, a, b = np.intersect1d(now.numbers, before.numbers, return_indices=True)
    size_now, size_before = (
        sum(
            (d["decoder"][torch.from_numpy(at)].square().sum(1) for d in reader.dictionaries), torch.zeros(len(at))
        ).sqrt()
        for reader, at in ((now, a), (before, b))
    )
    there = (size_now > 0) & (size_before > 0)
    if not bool(there.any()):
        return 1.0
    return weighted_median(size_now[there] / size_before[there], size_before[there])
