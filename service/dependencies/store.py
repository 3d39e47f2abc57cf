"""Loads the sums behind dependencies from the artifact store."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from featurewatch.service.kit.artifacts import ArtifactStore


class PlaceProfile(NamedTuple):
    """Contributions from an earlier hook point, by fold."""

    numbers: NDArray[np.int64]
    """[E] numbers of the source features."""
    sums: NDArray[np.float64]
    """[K, E]"""
    rest: NDArray[np.float64]
    """[K, 3] bias, error, tokens without a code."""


@dataclass(frozen=True)
class Profile:
    """All contributions to one target, by fold."""

    counts: NDArray[np.float64]
    """[K] number of positions."""
    values: NDArray[np.float64]
    """[K] sums of the pre-activation."""
    places: dict[str, PlaceProfile]

    def select(self, allowed: set[int]) -> dict[tuple[str, int], NDArray[np.float64]]:
        """(hook point, feature number) -> sums [K], of the features in `allowed`."""
        return {
            (hook, int(number)): place.sums[:, column]
            for hook, place in self.places.items()
            for column, number in enumerate(place.numbers)
            if int(number) in allowed
        }


def load(artifacts: ArtifactStore, name: str) -> Profile:
    """Read the profile that a worker stored. Raises FileNotFoundError if it was removed."""
    with safe_open(str(artifacts.path(name)), framework="numpy") as file:
        keys = set(file.keys())
        hooks = [key.removeprefix("numbers.") for key in keys if key.startswith("numbers.")]
        places = {
            hook: PlaceProfile(
                file.get_tensor(f"numbers.{hook}"), file.get_tensor(f"sums.{hook}"), file.get_tensor(f"rest.{hook}")
            )
            for hook in hooks
        }
        return Profile(file.get_tensor("counts"), file.get_tensor("values"), places)
