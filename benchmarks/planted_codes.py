"""Where planted features fire and how strongly, and which events happen to them: drawn once per lineage."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.planted_shape import SUCCEEDED, Event, Shape

Rng = np.random.Generator
Column = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Positions on which a feature fires, ascending, and its magnitudes there."""


def stream(seed: int, *purpose: str | int) -> Rng:
    """A separate random generator per purpose, so that drawing more for one does not change the others."""
    return np.random.default_rng([seed, *b"/".join(str(part).encode() for part in purpose)])


def draw_documents(shape: Shape, rng: Rng) -> NDArray[np.int64]:
    """int64 [n_positions]: documents with gamma-distributed lengths; the last one is truncated."""
    mean = min(shape.document_length, shape.n_positions)
    lengths = np.maximum(rng.gamma(9.0, mean / 9.0, 2 * shape.n_positions // mean + 10), 2).astype(np.int64)
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)[: shape.n_positions]


def draw_codes(shape: Shape, document: NDArray[np.int64], exclusive: list[int], rng: Rng) -> sparse.csr_array:
    """True magnitudes, CSR float32 [n_positions, n_planted], before dependencies between features."""
    n_documents = int(document[-1]) + 1
    rates = np.exp(rng.uniform(np.log(shape.lowest_rate), np.log(shape.highest_rate), shape.n_planted))
    rates[exclusive] = shape.exclusive_rate
    sizes = np.exp(rng.normal(0, 0.25, shape.n_planted))
    topics = np.exp(rng.normal(0, shape.topic_contrast, (shape.n_topics, shape.n_planted)))
    mixture = rng.dirichlet(np.full(shape.n_topics, 0.3), n_documents)
    lift = mixture @ topics
    # Means over positions, so that a feature's rate over the corpus is the one that was drawn for it.
    lift /= np.bincount(document, minlength=n_documents) @ lift / len(document)
    chance = np.minimum(rates * lift, 0.6)
    rows, columns = [], []
    for start in range(0, len(document), 4096):
        block = document[start : start + 4096]
        fired = rng.random((len(block), shape.n_planted), dtype=np.float32) < chance[block]
        row, column = np.nonzero(fired)
        rows.append(row + start)
        columns.append(column)
    row, column = np.concatenate(rows), np.concatenate(columns)
    values = (np.exp(rng.normal(0, shape.tail, len(row))) * sizes[column]).astype(np.float32)
    return sparse.csr_array((values, (row, column)), shape=(len(document), shape.n_planted))


def draw_events(shape: Shape, seed: int) -> list[Event]:
    """Each kind spread evenly over the checkpoints from 2 on. No feature has two, but for exclusive ones, which go."""
    rng = stream(seed, "events")
    kinds = ["suppressed"] * shape.n_suppressed + ["removed"] * shape.n_removed + ["born"] * shape.n_born
    order = rng.permutation(shape.n_planted).tolist()
    later = shape.n_checkpoints - 1
    events = []
    for number, kind in enumerate(kinds):
        level = {"suppressed": float(rng.uniform(0.1, 0.4)), "removed": 0.0, "born": 1.0}[kind]
        events.append(Event(order[number], kind, 2 + number % later, level))
    free, rng = iter(order[len(kinds) :]), stream(seed, "further events")
    for kind in ("amplified", "relocated", "exclusive", *SUCCEEDED):
        for number in range(getattr(shape, f"n_{kind}")):
            events += _event(kind, 2 + number % later, shape, free, rng)
    return events


def _event(kind: str, onset: int, shape: Shape, free: Iterator[int], rng: Rng) -> list[Event]:
    """One event of a compound kind, and the events that come with it."""
    old = [next(free) for _ in range(2 if kind == "merged" else 1)]
    if kind == "amplified":
        return [Event(old[0], kind, onset, float(rng.uniform(2.5, 4)))]
    if kind == "relocated":
        return [Event(old[0], kind, onset, 1.0)]
    if kind == "exclusive":
        ends = [Event(old[0], "removed", onset + 1, 0.0)] if onset < shape.n_checkpoints else []
        return [Event(old[0], kind, onset, 1.0), *ends]
    new = tuple(next(free) for _ in range(2 if kind == "split" else 1))
    return [Event(i, kind, onset, 0.0, new) for i in old] + [Event(i, "successor", onset, 1.0) for i in new]


def plant_children(
    codes: sparse.csr_array, shape: Shape, events: list[Event], rng: Rng
) -> tuple[sparse.csr_array, list[tuple[int, int]]]:
    """Restrict `n_children` features to 20 to 60% of the positions where their parent feature fires.

    Parents are among the more frequent half. Also what has an event may be a parent or a child, but no successor and
    no exclusive feature. Returns the pairs (child, parent) too.
    """
    if not shape.n_children:
        return codes, []
    bound = {e.feature for e in events if e.kind in ("successor", "exclusive")}
    open_to_it = np.array([i for i in rng.permutation(shape.n_planted) if i not in bound])
    firings = np.bincount(codes.indices, minlength=shape.n_planted)
    often = firings[open_to_it] >= np.median(firings)
    parents = open_to_it[often][: shape.n_children]
    children = np.concatenate([open_to_it[~often], open_to_it[often][shape.n_children :]])[: shape.n_children]
    if len(children) < shape.n_children or len(parents) < shape.n_children:
        raise ValueError(f"n_planted is {shape.n_planted}: too few for {shape.n_children} children and as many parents")
    columns = codes.tocsc()
    replaced: dict[int, Column] = {}
    for child, parent in zip(children.tolist(), parents.tolist(), strict=True):
        at = np.sort(column_of(columns, parent)[0])
        at = at[rng.random(len(at)) < rng.uniform(0.2, 0.6)]
        replaced[child] = at, _magnitudes(len(at), shape, rng)
    return with_columns(codes, replaced), list(zip(children.tolist(), parents.tolist(), strict=True))


def plant_successors(codes: sparse.csr_array, shape: Shape, events: list[Event], rng: Rng) -> sparse.csr_array:
    """Make successors fire where their predecessors do.

    One that replaces or merges fires on a share of 0.6 to 0.9 of the positions of each predecessor. Two that split
    one share out 0.85 to 1 of its positions, 0.35 to 0.65 of them each. 10 to 20% of a successor's firings are
    elsewhere. Magnitudes are new draws, about as large as the predecessors'.
    """
    columns = codes.tocsc()
    replaced: dict[int, Column] = {}
    for successors in dict.fromkeys(e.successors for e in events if e.successors):
        kept = (0.6, 0.9) if len(successors) == 1 else (0.85, 1.0)
        places, values = [], []
        for event in events:
            if event.successors == successors:
                at, magnitudes = column_of(columns, event.feature)
                places.append(at[rng.random(len(at)) < rng.uniform(*kept)])
                values.append(magnitudes)
        at, size = np.unique(np.concatenate(places)), np.float32(np.median(np.concatenate(values)))
        first = rng.random(len(at)) < (1.0 if len(successors) == 1 else rng.uniform(0.35, 0.65))
        for successor, shared in zip(successors, (at[first], at[~first]), strict=False):
            share = rng.uniform(0.1, 0.2)
            others = rng.integers(0, shape.n_positions, round(len(shared) * share / (1 - share)))
            own = np.union1d(shared, others)
            replaced[successor] = own, _magnitudes(len(own), shape, rng) * size
    return with_columns(codes, replaced)


def _magnitudes(n: int, shape: Shape, rng: Rng) -> NDArray[np.float32]:
    """Log-normal magnitudes around a random size."""
    return (np.exp(rng.normal(0, shape.tail, n)) * np.exp(rng.normal(0, 0.25))).astype(np.float32)


def column_of(columns: sparse.csc_array, feature: int) -> Column:
    """Where a feature fires, and its magnitudes there."""
    part = slice(columns.indptr[feature], columns.indptr[feature + 1])
    return columns.indices[part].astype(np.int64), columns.data[part]


def with_columns(codes: sparse.csr_array, columns: dict[int, Column]) -> sparse.csr_array:
    """The codes with some columns replaced."""
    if not columns:
        return codes
    entries = codes.tocoo()
    keep = ~np.isin(entries.col, list(columns))
    rows = [entries.row[keep], *(at for at, _ in columns.values())]
    cols = [entries.col[keep], *(np.full(len(at), i) for i, (at, _) in columns.items())]
    values = np.concatenate([entries.data[keep], *(v for _, v in columns.values())])
    return sparse.csr_array((values, (np.concatenate(rows), np.concatenate(cols))), shape=codes.shape)
