"""Planted lineages: activations of several checkpoints whose features, and what becomes of them, are known.

The activation of position p in checkpoint c is

    x_c(p) = scale_c * ( sum_i level_i(c) a_i(p) d_i(c)  +  low-rank noise(p)  +  isotropic noise_c(p) )  +  offset_c

- `d_i(c)`: unit directions, more of them than dimensions (superposition). Each one turns by a small angle of its own
  towards a random side at every checkpoint, so that directions drift apart slowly.
- `a_i(p)`: magnitudes, the same in every checkpoint: the corpus does not change. Rates are log-uniform. Documents
  mix topics and a topic raises the rates of some features, so firings come in bursts and features correlate.
  Magnitudes are log-normal around a size of the feature's own (heavy tails).
- `level_i(c)`: 1, but for the events: a suppressed feature falls to its level at the onset and stays there, a removed
  one writes nothing from its onset on, a born one wrote nothing before it.
- `scale_c` and `offset_c` wander: a global change of scale is no suppression.

`python -m benchmarks.planted_data --seed 1 --out DIR` writes DIR/v1 ... in the format of brought-along activations
(`manifest.json`, safetensors shards, `documents.safetensors`) and DIR/truth.json.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy import sparse

HOOK_POINT = "resid_post.1"
SHARD_POSITIONS = 16_384

PRESENT, SUPPRESSED, ABSENT, EMERGED = "present", "suppressed", "absent", "emerged"
AMPLIFIED = "amplified"
UNBORN = "unborn"
"""Not a verdict: no checkpoint so far has written the feature, and nothing is expected to be said of it."""

SUPPRESSED_BELOW, AMPLIFIED_ABOVE = 0.5, 2.0
"""The bands of the service's default policy: a ratio of levels outside them is an event."""


@dataclass(frozen=True)
class Shape:
    """What a planted lineage looks like. Sizes are relative to a typical magnitude of 1."""

    n_checkpoints: int = 6
    n_positions: int = 60_000
    width: int = 256
    n_planted: int = 512
    n_suppressed: int = 30
    n_removed: int = 20
    n_born: int = 20
    lowest_rate: float = 0.002
    """Share of positions on which the rarest feature fires."""
    highest_rate: float = 0.05
    document_length: int = 100
    """Mean; lengths vary by a third or so."""
    n_topics: int = 16
    topic_contrast: float = 1.2
    """Standard deviation of the log rate of a feature over topics. 0: documents do not matter."""
    tail: float = 0.5
    """Standard deviation of the log magnitude: 0.5 puts 1% of the firings over 3.2 times the median."""
    turn_degrees: float = 4.0
    """Mean angle by which a direction turns from one checkpoint to the next."""
    scale_wander: float = 0.15
    """Standard deviation of the change of log scale from one checkpoint to the next."""
    isotropic_noise: float = 0.06
    """Standard deviation in each dimension, drawn anew in each checkpoint."""
    n_noise_directions: int = 8
    directed_noise: float = 0.3
    """Standard deviation along each direction of the low-rank noise, which all checkpoints share."""
    offset: float = 2.0
    """Norm of the mean activation."""


@dataclass(frozen=True)
class Event:
    """What becomes of one planted feature: `kind` is suppressed, removed or born; `checkpoint` counts from 1."""

    feature: int
    kind: str
    checkpoint: int
    level: float
    """From the checkpoint on: 0.1..0.4, 0 or 1."""


@dataclass(frozen=True)
class Truth:
    """The status that each planted feature should get in one checkpoint, [n_planted] strings each.

    An event counts where it happens. Against the parent a feature that was suppressed earlier and stays at its level
    is `present`; one that was absent and still is stays `absent`: there is nothing to be present. `unborn` features
    must not be reported at all.
    """

    against_parent: list[str]
    against_first: list[str]


@dataclass(frozen=True)
class Lineage:
    """A family of checkpoints 1..n_checkpoints with known features."""

    seed: int
    shape: Shape
    events: list[Event]
    codes: sparse.csr_array
    """[n_positions, n_planted] float32 true magnitudes. Also where a feature is not written: the text asks for it."""
    document: np.ndarray
    """int64 [n_positions], non-decreasing."""

    def activations(self, checkpoint: int) -> np.ndarray:
        """float32 [n_positions, width] of a checkpoint, counted from 1. Computed anew each time, always the same."""
        shape, rng = self.shape, self._rng("noise", self._index(checkpoint))
        levels = self.levels(checkpoint)
        x = self.codes @ (self.directions(checkpoint) * levels[:, None]).astype(np.float32)
        x += self._shared_noise
        x += rng.standard_normal(x.shape, dtype=np.float32) * np.float32(shape.isotropic_noise)
        x *= self._scales[checkpoint - 1]
        x += self._offsets[checkpoint - 1]
        return np.ascontiguousarray(x, dtype=np.float32)

    def directions(self, checkpoint: int) -> np.ndarray:
        """float64 [n_planted, width] unit rows: where each feature writes in a checkpoint (also where it does not)."""
        return self._directions[self._index(checkpoint)]

    def levels(self, checkpoint: int) -> np.ndarray:
        """float64 [n_planted]: how much of its full size each feature has in a checkpoint; 0 where it is not."""
        self._index(checkpoint)
        levels = np.ones(self.shape.n_planted)
        for event in self.events:
            if event.kind == "born":
                levels[event.feature] = float(checkpoint >= event.checkpoint)
            elif checkpoint >= event.checkpoint:
                levels[event.feature] = event.level
        return levels

    def truth(self, checkpoint: int) -> Truth:
        """The right statuses of a checkpoint from 2 on, against its parent (the one before) and against the first."""
        if checkpoint < 2:
            raise ValueError("the first checkpoint has no baseline")
        return Truth(
            against_parent=self._statuses(checkpoint, range(checkpoint - 1, checkpoint)),
            against_first=self._statuses(checkpoint, range(1, 2)),
        )

    def _statuses(self, checkpoint: int, baselines: range) -> list[str]:
        before, now = self.levels(baselines[0]), self.levels(checkpoint)
        born = {event.feature: event.checkpoint for event in self.events if event.kind == "born"}
        return [
            status_of(float(before[i]), float(now[i]), unborn=born.get(i, 0) > checkpoint)
            for i in range(self.shape.n_planted)
        ]

    def _index(self, checkpoint: int) -> int:
        if not 1 <= checkpoint <= self.shape.n_checkpoints:
            raise ValueError(f"checkpoint {checkpoint} is not in 1..{self.shape.n_checkpoints}")
        return checkpoint - 1

    def _rng(self, *purpose: str | int) -> np.random.Generator:
        return _rng(self.seed, *purpose)

    @cached_property
    def _directions(self) -> list[np.ndarray]:
        shape, rng = self.shape, self._rng("directions")
        now = _unit_rows(rng.standard_normal((shape.n_planted, shape.width)))
        course = [now]
        for _ in range(1, shape.n_checkpoints):
            side = rng.standard_normal(now.shape)
            side = _unit_rows(side - (side * now).sum(1, keepdims=True) * now)
            angle = np.deg2rad(rng.uniform(0, 2 * shape.turn_degrees, (shape.n_planted, 1)))
            now = np.cos(angle) * now + np.sin(angle) * side
            course.append(now)
        return course

    @cached_property
    def _shared_noise(self) -> np.ndarray:
        shape, rng = self.shape, self._rng("low-rank noise")
        basis = np.linalg.qr(rng.standard_normal((shape.width, shape.n_noise_directions)))[0].T
        factors = rng.standard_normal((shape.n_positions, shape.n_noise_directions)) * shape.directed_noise
        return (factors @ basis).astype(np.float32)

    @cached_property
    def _scales(self) -> np.ndarray:
        steps = self._rng("scales").standard_normal(self.shape.n_checkpoints) * self.shape.scale_wander
        return np.exp(np.cumsum(steps)).astype(np.float32)

    @cached_property
    def _offsets(self) -> np.ndarray:
        shape, rng = self.shape, self._rng("offsets")
        first = _unit_rows(rng.standard_normal((1, shape.width)))
        wander = rng.standard_normal((shape.n_checkpoints, shape.width)).cumsum(0) * 0.05 / np.sqrt(shape.width)
        return ((first + wander) * shape.offset).astype(np.float32)


def make_lineage(seed: int, **shape: int | float) -> Lineage:
    """Plant a lineage. Keyword arguments are the fields of `Shape`; the same seed and shape give the same lineage."""
    form = Shape(**shape)  # type: ignore[arg-type]
    n_events = form.n_suppressed + form.n_removed + form.n_born
    if n_events > form.n_planted or (n_events and form.n_checkpoints < 2):
        raise ValueError(f"{n_events} events need as many features and a second checkpoint")
    document = _documents(form, _rng(seed, "documents"))
    codes = _codes(form, document, _rng(seed, "codes"))
    return Lineage(seed=seed, shape=form, events=_events(form, _rng(seed, "events")), codes=codes, document=document)


def status_of(before: float, now: float, *, unborn: bool = False) -> str:
    """The right status of a feature from its levels at the baseline and now."""
    if unborn:
        return UNBORN
    if now == 0:
        return ABSENT
    if before == 0:
        return EMERGED
    if now < SUPPRESSED_BELOW * before:
        return SUPPRESSED
    return AMPLIFIED if now > AMPLIFIED_ABOVE * before else PRESENT


def write_checkpoint(lineage: Lineage, checkpoint: int, folder: Path) -> None:
    """Write a checkpoint as brought-along activations into `folder` (made where missing); the manifest goes last."""
    folder.mkdir(parents=True, exist_ok=True)
    x = lineage.activations(checkpoint)
    shards = []
    for number, start in enumerate(range(0, len(x), SHARD_POSITIONS)):
        shards.append(f"{HOOK_POINT}-{number:05d}.safetensors")
        # A slice that does not own its memory would be written from the start of its base.
        save_file({"activations": x[start : start + SHARD_POSITIONS].copy()}, folder / shards[-1])
    save_file({"document": lineage.document}, folder / "documents.safetensors")
    manifest = {
        "format": "featurewatch-activations/1",
        "model": f"planted-{lineage.seed}-v{checkpoint}",
        "positions": len(x),
        "hook_points": {HOOK_POINT: {"d_model": x.shape[1], "shards": shards}},
        "documents": "documents.safetensors",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def _rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """A stream of random numbers of its own for each purpose: what one draws more of moves no other."""
    return np.random.default_rng([seed, *b"/".join(str(part).encode() for part in purpose)])


def _unit_rows(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _documents(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """int64 [n_positions]: documents of gamma-distributed lengths, the last one cut."""
    mean = min(shape.document_length, shape.n_positions)
    lengths = np.maximum(rng.gamma(9.0, mean / 9.0, 2 * shape.n_positions // mean + 10), 2).astype(np.int64)
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)[: shape.n_positions]


def _codes(shape: Shape, document: np.ndarray, rng: np.random.Generator) -> sparse.csr_array:
    """True magnitudes, CSR float32 [n_positions, n_planted]."""
    n_documents = int(document[-1]) + 1
    rates = np.exp(rng.uniform(np.log(shape.lowest_rate), np.log(shape.highest_rate), shape.n_planted))
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


def _events(shape: Shape, rng: np.random.Generator) -> list[Event]:
    """Each kind spread evenly over the checkpoints from 2 on; no feature has two events."""
    kinds = ["suppressed"] * shape.n_suppressed + ["removed"] * shape.n_removed + ["born"] * shape.n_born
    features = rng.permutation(shape.n_planted)[: len(kinds)]
    events = []
    for number, (feature, kind) in enumerate(zip(features, kinds, strict=True)):
        level = {"suppressed": float(rng.uniform(0.1, 0.4)), "removed": 0.0, "born": 1.0}[kind]
        events.append(Event(int(feature), kind, 2 + number % (shape.n_checkpoints - 1), level))
    return events


def main() -> None:
    """Write a lineage to a folder."""
    parser = argparse.ArgumentParser(description="Write a planted lineage as brought-along activations.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoints", type=int, default=Shape.n_checkpoints)
    parser.add_argument("--positions", type=int, default=Shape.n_positions)
    arguments = parser.parse_args()
    lineage = make_lineage(arguments.seed, n_checkpoints=arguments.checkpoints, n_positions=arguments.positions)
    for checkpoint in range(1, arguments.checkpoints + 1):
        write_checkpoint(lineage, checkpoint, arguments.out / f"v{checkpoint}")
        print(f"wrote {arguments.out / f'v{checkpoint}'}")
    truth = {
        "seed": arguments.seed,
        "events": [asdict(event) for event in lineage.events],
        "checkpoints": {f"v{c}": asdict(lineage.truth(c)) for c in range(2, arguments.checkpoints + 1)},
    }
    (arguments.out / "truth.json").write_text(json.dumps(truth))


if __name__ == "__main__":
    main()
