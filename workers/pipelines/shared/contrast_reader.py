"""Reads the rows of a contrast set with a checkpoint's own features."""

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
    """A judged checkpoint and its stored dictionary."""

    id: str
    family_id: str
    code: str
    hook_points: list[str]
    dictionaries: list[str]
    """One for each hook point"""


class ContrastReader:
    """A checkpoint's read-outs and decoders, and the activations of a contrast set's rows.

    A feature is a (number, hook point); columns count features hook point by hook point, [h * m]. `means`: the rows are
    means over tokens. A feature that fires at a single token would not reach its threshold in a mean, so the read-out
    stays linear: it then gives the mean of what it reads at the tokens.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        checkpoint: JudgedCheckpoint,
        activations: str,
        hook_points: list[str],
        *,
        means: bool,
    ) -> None:
        self.hook_points, self.means = hook_points, means
        self._rotations: dict[tuple[ContrastReader, frozenset[int]], list[Tensor]] = {}
        raw = load_file(artifacts.path(activations))
        dictionaries = dict(zip(checkpoint.hook_points, checkpoint.dictionaries, strict=True))
        self.numbers: Columns = load_file(artifacts.path(checkpoint.code))["feature_numbers"].numpy()
        self.dictionaries = [load_file(artifacts.path(dictionaries[hook])) for hook in hook_points]
        for d in self.dictionaries:  # older dictionaries have none
            d.setdefault("readout_slope", torch.ones_like(d["readout_bias"]))
        self.x = [
            (raw[hook].float() - d["mean"]) * (len(d["mean"]) ** 0.5 / d["rms"])
            for hook, d in zip(hook_points, self.dictionaries, strict=True)
        ]

    @property
    def m(self) -> int:
        return len(self.numbers)

    def values(self, columns: Columns, rows: NDArray[np.bool_]) -> Floats:
        """[r, k] values of features at rows. A column of -1 (no such feature) gives 0."""
        values, picked = np.zeros((int(rows.sum()), len(columns))), torch.from_numpy(rows)
        for h, (x, d) in enumerate(zip(self.x, self.dictionaries, strict=True)):
            here = np.flatnonzero((columns >= 0) & (columns // self.m == h))
            if len(here):
                at = torch.from_numpy(columns[here] % self.m)
                read = x[picked] @ d["readout"][:, at] + d["readout_bias"][at]
                if not self.means:
                    read.relu_()
                read /= d["readout_slope"][at].clamp_min(MIN_SLOPE)
                values[:, here] = read.double().numpy()
        return values

    def decoder_rows(self, columns: Columns) -> list[Tensor]:
        """Decoder rows of features at each hook point, [k, d] each; zeros for features of other hook points."""
        parts = []
        for h, d in enumerate(self.dictionaries):
            rows = torch.zeros(len(columns), d["decoder"].shape[1])
            here = np.flatnonzero((columns >= 0) & (columns // self.m == h))
            rows[here] = d["decoder"][torch.from_numpy(columns[here] % self.m)]
            parts.append(rows)
        return parts

    def rotations(self, before: "ContrastReader", excluding: frozenset[int]) -> list[Tensor]:
        """Orthonormal maps from another checkpoint's bases into these, fitted to the features that both have.

        `excluding`: numbers of the features in question, whose own change must not count as a rotation of all. Cached:
        a map costs a singular value decomposition, and several comparisons need it.
        """
        if (before, excluding) not in self._rotations:
            shared, a, b = np.intersect1d(self.numbers, before.numbers, return_indices=True)
            other = ~np.isin(shared, list(excluding))
            here, there = torch.from_numpy(a[other]), torch.from_numpy(b[other])
            self._rotations[before, excluding] = [
                shared_turn(c["decoder"][here], d["decoder"][there])
                for c, d in zip(self.dictionaries, before.dictionaries, strict=True)
            ]
        return self._rotations[before, excluding]

    @cached_property
    def live(self) -> Columns:
        """Columns of the features that have a read-out."""
        parts = [
            np.flatnonzero(d["readout"].abs().sum(0).numpy() > 0) + h * self.m for h, d in enumerate(self.dictionaries)
        ]
        return np.concatenate(parts).astype(np.int64)

    def find(self, features: list[tuple[int, str]], hooks: dict[str, str]) -> tuple[Columns, NDArray[np.bool_]]:
        """(columns [k], whether each is known [k]) of another checkpoint's features, given as (number, hook point).

        `hooks`: that checkpoint's hook points -> this one's. A feature numbered after all of this checkpoint's was
        born later: it is known to write nothing here, and its column is -1. One that a re-fit has retired is not known.
        """
        index = {int(number): i for i, number in enumerate(self.numbers)}
        columns, known = np.full(len(features), -1), np.zeros(len(features), dtype=bool)
        for i, (number, hook) in enumerate(features):
            own = hooks.get(hook)
            if own in self.hook_points:
                h = self.hook_points.index(own)
                columns[i] = h * self.m + index[number] if number in index else -1
                known[i] = number in index or number > int(self.numbers.max())
        return columns, known

    def name(self, column: int) -> tuple[int, str]:
        """(number, hook point) of a column."""
        return int(self.numbers[column % self.m]), self.hook_points[column // self.m]


def typical_size(now: ContrastReader, before: ContrastReader) -> float:
    """Size of a typical feature over its size in another checkpoint: a change common to all does not count."""
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
