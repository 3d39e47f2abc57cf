"""Events that happen only to features that are active often enough, and where such features are active afterwards.

- *broadened*: active at its old positions and at about twice as many new ones, spread evenly over all documents.
- *narrowed*: active in a third of its documents (or, in fewer than 150 documents, at a third of its positions), at full
  strength, and silent elsewhere.
- *displaced*: active at as many positions as before, none of them an old one.
- *trigger*: also active at every token of 3% of the documents, with its median magnitude.

New magnitudes are drawn from the feature's own. Strength where it is active does not change. *Weakened* and
*strengthened* change the level and nothing else.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.planted_codes import Column, Rng, column_of, stream
from benchmarks.planted_shape import EVENT_PLACES, GRADED_LEVELS, LATE_KINDS, Event, Shape

LEAST_POSITIONS, LEAST_DOCUMENTS, HIGHEST_RATE = 60, 10, 0.05
"""A feature is active often enough at this many positions in this many documents, and at most at this rate."""
GROWTH = 2.0
"""Expected new positions of a broadened feature, per old one."""
KEPT = 1 / 3
"""Expected share of the documents or positions that a narrowed feature keeps."""
TRIGGERED = 0.03
"""Share of the documents that a trigger fills."""
DOCUMENTS_TO_DROP = 150
"""A narrowed feature in fewer documents loses positions instead: the few documents would not show its new rate."""

FIGURES = ("gained_share", "lost_share", "firing_rate_ratio")
Figures = tuple[float, float, float]
"""A feature's gained_share, lost_share and firing_rate_ratio, as DESIGN and the API define them."""


def draw_late_events(
    shape: Shape, codes: sparse.csr_array, document: NDArray[np.int64], events: list[Event], seed: int
) -> list[Event]:
    """One event each for features that have none and are active often enough. Onsets are spread as in `draw_events`.

    Raises ValueError if too few features qualify.
    """
    kinds = [kind for kind in LATE_KINDS for _ in range(getattr(shape, f"n_{kind}"))]
    if not kinds:
        return []
    taken, columns = {event.feature for event in events}, codes.tocsc()
    order = stream(seed, "late events").permutation(shape.n_planted).tolist()
    eligible = [i for i in order if i not in taken and _often_enough(column_of(columns, i)[0], document)]
    if len(eligible) < len(kinds):
        raise ValueError(f"{len(kinds)} events need features that are active often enough; there are {len(eligible)}")
    later = shape.n_checkpoints - 1
    return [
        Event(feature, kind, 2 + number % later, GRADED_LEVELS.get(kind, 1.0))
        for number, (kind, feature) in enumerate(zip(kinds, eligible, strict=False))
    ]


def plant_places(
    codes: sparse.csr_array, document: NDArray[np.int64], events: list[Event], seed: int
) -> dict[int, Column]:
    """Feature -> where it is active from the onset of its event on. Other features, children too, stay as they are."""
    columns = codes.tocsc()
    return {
        e.feature: _moved(e.kind, column_of(columns, e.feature), document, stream(seed, "places", e.feature))
        for e in events
        if e.kind in EVENT_PLACES
    }


def planted_figures(before: Column, now: Column) -> Figures:
    """The figures of the planted magnitudes themselves."""
    total = before[1].sum(dtype=np.float64)
    gained = now[1][~np.isin(now[0], before[0])].sum(dtype=np.float64)
    lost = before[1][~np.isin(before[0], now[0])].sum(dtype=np.float64)
    return float(gained / total), float(lost / total), len(now[0]) / len(before[0])


def expected_figures(kind: str, before: Column, document: NDArray[np.int64]) -> Figures:
    """The figures' means over other draws of the same event: what an interval over documents is an interval for."""
    if kind == "trigger":
        silent, share = len(document) - len(before[0]), _n_triggered(document) / (document[-1] + 1)
        gained = share * silent * np.median(before[1]) / before[1].sum(dtype=np.float64)
        return float(gained), 0.0, float(1 + share * silent / len(before[0]))
    return {"broadened": (GROWTH, 0.0, 1 + GROWTH), "narrowed": (0.0, 1 - KEPT, KEPT), "displaced": (1.0, 1.0, 1.0)}[
        kind
    ]


def _often_enough(at: NDArray[np.int64], document: NDArray[np.int64]) -> bool:
    enough = len(at) >= LEAST_POSITIONS and len(np.unique(document[at])) >= LEAST_DOCUMENTS
    return enough and len(at) <= HIGHEST_RATE * len(document)


def _moved(kind: str, column: Column, document: NDArray[np.int64], rng: Rng) -> Column:
    at, values = column
    if kind == "narrowed":
        widespread = len(np.unique(document[at])) >= DOCUMENTS_TO_DROP
        stays = rng.random(document[-1] + 1)[document[at]] if widespread else rng.random(len(at))
        return at[stays < KEPT], values[stays < KEPT]
    silent = np.setdiff1d(np.arange(len(document)), at, assume_unique=True)
    if kind == "displaced":
        return np.sort(rng.choice(silent, len(at), replace=False)), rng.permutation(values)
    if kind == "trigger":
        filled = rng.choice(document[-1] + 1, _n_triggered(document), replace=False)
        new = silent[np.isin(document[silent], filled)]
        magnitudes = np.full(len(new), np.median(values), dtype=values.dtype)
    else:
        new = silent[rng.random(len(silent)) < GROWTH * len(at) / len(silent)]
        magnitudes = rng.choice(values, len(new))
    order = np.argsort(positions := np.concatenate([at, new]))
    return positions[order], np.concatenate([values, magnitudes])[order]


def _n_triggered(document: NDArray[np.int64]) -> int:
    return max(round(TRIGGERED * int(document[-1] + 1)), 1)
