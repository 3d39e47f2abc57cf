"""Planted lineages: activations of several checkpoints whose features, and what becomes of them, are known.

The activation of position p in checkpoint c is

    x_c(p) = scale_c * ( [ sum_i level_i(c) a_i(c, p) d_i(c)  +  low-rank noise(p) ] T_c  +  isotropic noise_c(p) )
             + offset_c T_c  +  sink(p) T_c

- `d_i(c)`: unit directions, more of them than dimensions (superposition). Each one turns by a small angle of its own
  towards a random side at every checkpoint, so that directions drift apart slowly.
- `a_i(c, p)`: magnitudes, the same in every checkpoint unless an event changes where the feature is active
  (`planted_places`): the corpus does not change. Rates are log-uniform. Documents mix topics and a topic raises the
  rates of some features, so firings come in bursts and features correlate. Magnitudes are log-normal around a size of
  the feature's own (heavy tails). A child fires only where its parent does, before any event of either.
- `level_i(c)`: 1, but for the events: a weakened, strengthened, suppressed or amplified feature has its level from the
  onset on, what is removed or replaced writes nothing from its onset on, what is born (successors too) wrote nothing
  before it.
  A relocated feature keeps its level and is written along another direction, orthogonal to its old one.
- `T_c`: orthonormal rows: the identity, or a common rotation, or a map into another basis or a wider space.
- `scale_c` and `offset_c` wander: a global change of scale does not suppress features.
- `sink(p)`: 30 to 50 median norms along one direction at the second token of some documents.

`python -m benchmarks.planted_data --seed 1 --scenario all --out DIR` writes DIR/v1 ... in the format of precomputed
activations (`manifest.json`, safetensors shards, `documents.safetensors`) and DIR/truth.json.
"""

import argparse
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy import sparse

from benchmarks.planted_codes import (
    Column,
    column_of,
    draw_codes,
    draw_documents,
    draw_events,
    plant_children,
    plant_successors,
    stream,
    with_columns,
)
from benchmarks.planted_places import FIGURES, draw_late_events, expected_figures, plant_places, planted_figures
from benchmarks.planted_shape import (
    BIRTHS,
    EVENT_PLACES,
    RELOCATED,
    REPLACED,
    SAME,
    SCENARIOS,
    SUCCEEDED,
    Event,
    Shape,
    scenario,
)
from benchmarks.planted_truth import PLACELESS, Truth, status_of

HOOK_POINT = "resid_post.1"
WIDER_HOOK_POINT = "resid_post.2"
"""Where a checkpoint of another width is read: another model of the family. Under a name that the family has, another
width is an error."""
SHARD_POSITIONS = 16_384


@dataclass(frozen=True)
class Lineage:
    """A family of checkpoints 1..n_checkpoints with known features."""

    seed: int
    shape: Shape
    events: list[Event]
    codes: sparse.csr_array
    """[n_positions, n_planted] float32 true magnitudes in the first checkpoint, also of features it does not write."""
    document: np.ndarray
    """int64 [n_positions], non-decreasing."""
    children: list[tuple[int, int]] = field(default_factory=list)
    """(child, parent) features"""
    moved: dict[int, Column] = field(default_factory=dict)
    """Feature -> where it is active from the onset of the event that changes its places."""

    def codes_at(self, checkpoint: int) -> sparse.csr_array:
        """True magnitudes in a checkpoint, like `codes`."""
        return with_columns(self.codes, {e.feature: self.moved[e.feature] for e in self._moves(0, checkpoint)})

    def activations(self, checkpoint: int) -> np.ndarray:
        """float32 [n_positions, width] of a checkpoint, counted from 1. Recomputed on each call, with the same
        result."""
        shape, rng = self.shape, stream(self.seed, "noise", self._index(checkpoint))
        basis = self._bases[checkpoint - 1]
        levels = self.levels(checkpoint)
        x = self.codes_at(checkpoint) @ (self.directions(checkpoint) * levels[:, None]).astype(np.float32)
        x += self._shared_noise if basis is None else self._shared_noise @ basis.astype(np.float32)
        x += rng.standard_normal(x.shape, dtype=np.float32) * np.float32(shape.isotropic_noise)
        x *= self._scales[checkpoint - 1]
        x += self._seen(self._offsets[checkpoint - 1], checkpoint)
        if len(self.sinks):
            along, factors = self._sink_direction, stream(self.seed, "sink norms").uniform(30, 50, (len(self.sinks), 1))
            x[self.sinks] += factors * float(np.median(np.linalg.norm(x, axis=1))) * self._seen(along, checkpoint)
        return np.ascontiguousarray(x, dtype=np.float32)

    def width(self, checkpoint: int) -> int:
        """Dimensions of a checkpoint."""
        basis = self._bases[self._index(checkpoint)]
        return self.shape.width if basis is None else basis.shape[1]

    def hook_point(self, checkpoint: int) -> str:
        """Hook point of a checkpoint's activations."""
        return HOOK_POINT if self.width(checkpoint) == self.shape.width else WIDER_HOOK_POINT

    def directions(self, checkpoint: int) -> np.ndarray:
        """float64 [n_planted, width] unit rows: each feature's direction in a checkpoint, written or not."""
        return self._seen(self._directions[self._index(checkpoint)], checkpoint)

    def levels(self, checkpoint: int) -> np.ndarray:
        """float64 [n_planted]: each feature's level in a checkpoint, relative to full size; 0 if absent."""
        self._index(checkpoint)
        levels = np.ones(self.shape.n_planted)
        for event in self.events:
            if event.kind in BIRTHS:
                levels[event.feature] = float(checkpoint >= event.checkpoint)
            elif checkpoint >= event.checkpoint:
                levels[event.feature] = event.level
        return levels

    def ratios(self, checkpoint: int, baseline: int) -> np.ndarray:
        """True projection ratios, float64 [n_planted]; NaN if the baseline does not write the feature.

        <D_c, D_b> / <D_b, D_b> of what is written per unit of magnitude, global changes (basis, scale) taken out.
        """
        before, now = self.levels(baseline), self.levels(checkpoint)
        cosine = (self._directions[checkpoint - 1] * self._directions[baseline - 1]).sum(1)
        return np.divide(now * cosine, before, out=np.full(len(now), np.nan), where=before > 0)

    def truth(self, checkpoint: int) -> Truth:
        """The correct statuses of a checkpoint from 2 on, against its parent (the previous one) and against the
        first."""
        if checkpoint < 2:
            raise ValueError("the first checkpoint has no baseline")
        parent, first = self._statuses(checkpoint, checkpoint - 1), self._statuses(checkpoint, 1)
        figures = self.figures(checkpoint, checkpoint - 1)
        return Truth(
            against_parent=parent,
            against_first=first,
            places_against_parent=self._places(checkpoint, checkpoint - 1, parent),
            places_against_first=self._places(checkpoint, 1, first),
            **{name: [None if np.isnan(v) else v for v in values.tolist()] for name, values in figures.items()},
        )

    def figures(self, checkpoint: int, baseline: int, *, expected: bool = False) -> dict[str, np.ndarray]:
        """gained_share, lost_share and firing_rate_ratio, float64 [n_planted]; NaN if the baseline writes nothing.

        They are those of the planted magnitudes or, with `expected`, their means over other draws of the same events.
        """
        gone = self.levels(checkpoint) == 0
        table = np.stack([np.zeros(len(gone)), gone, ~gone], axis=1)
        for event in self._moves(baseline, checkpoint):
            before = column_of(self._columns, event.feature)
            table[event.feature] = (
                expected_figures(event.kind, before, self.document)
                if expected
                else planted_figures(before, self.moved[event.feature])
            )
        table[self.levels(baseline) == 0] = np.nan
        return dict(zip(FIGURES, table.T, strict=True))

    @cached_property
    def _columns(self) -> sparse.csc_array:
        return self.codes.tocsc()

    @cached_property
    def sinks(self) -> np.ndarray:
        """int64: positions of the attention sinks, the second tokens of `sink_share` of the documents."""
        second = np.flatnonzero(np.diff(self.document, prepend=-1)) + 1
        second = second[second < len(self.document)]
        return second[stream(self.seed, "sinks").random(len(second)) < self.shape.sink_share]

    def _statuses(self, checkpoint: int, baseline: int) -> list[str]:
        before, now = self.levels(baseline), self.levels(checkpoint)
        unborn = {e.feature for e in self.events if e.kind in BIRTHS and e.checkpoint > checkpoint}
        statuses = [status_of(float(before[i]), float(now[i]), unborn=i in unborn) for i in range(self.shape.n_planted)]
        for event in self.events:
            if baseline < event.checkpoint <= checkpoint:
                if event.kind in SUCCEEDED:
                    statuses[event.feature] = REPLACED
                elif event.kind == "relocated":
                    statuses[event.feature] = RELOCATED
        return statuses

    def _places(self, checkpoint: int, baseline: int, statuses: list[str]) -> list[str | None]:
        places = [None if status in PLACELESS else SAME for status in statuses]
        for event in self._moves(baseline, checkpoint):
            places[event.feature] = EVENT_PLACES[event.kind]
        return places

    def _moves(self, baseline: int, checkpoint: int) -> list[Event]:
        """The events that changed where a feature is active after the baseline, up to and including the checkpoint."""
        self._index(checkpoint)
        return [e for e in self.events if e.kind in EVENT_PLACES and baseline < e.checkpoint <= checkpoint]

    def _index(self, checkpoint: int) -> int:
        if not 1 <= checkpoint <= self.shape.n_checkpoints:
            raise ValueError(f"checkpoint {checkpoint} is not in 1..{self.shape.n_checkpoints}")
        return checkpoint - 1

    def _seen(self, vectors: np.ndarray, checkpoint: int) -> np.ndarray:
        """Vectors [.., width of the lineage] in the basis of a checkpoint."""
        basis = self._bases[checkpoint - 1]
        return vectors if basis is None else vectors @ basis

    @cached_property
    def _directions(self) -> list[np.ndarray]:
        """In the basis of the first checkpoint."""
        shape, rng = self.shape, stream(self.seed, "directions")
        now = _unit_rows(rng.standard_normal((shape.n_planted, shape.width)))
        moves = {(e.checkpoint, e.feature) for e in self.events if e.kind == "relocated"}
        course = [now]
        for checkpoint in range(2, shape.n_checkpoints + 1):
            before = now
            side = _orthogonal_to(now, rng)
            angle = np.deg2rad(rng.uniform(0, 2 * shape.turn_degrees, (shape.n_planted, 1)))
            now = np.cos(angle) * now + np.sin(angle) * side
            moved = sorted(feature for at, feature in moves if at == checkpoint)
            now[moved] = _orthogonal_to(before[moved], stream(self.seed, "relocated", checkpoint))
            course.append(now)
        return course

    @cached_property
    def _bases(self) -> list[np.ndarray | None]:
        """T_c of each checkpoint, float64 [width, width of the checkpoint]; None: the identity."""
        shape, course = self.shape, []
        basis: np.ndarray | None = None
        for checkpoint in range(1, shape.n_checkpoints + 1):
            rng = stream(self.seed, "basis", checkpoint)
            before = np.eye(shape.width) if basis is None else basis
            if checkpoint > 1 and shape.rotate_degrees:
                before = basis = before @ _rotation(before.shape[1], shape.rotate_degrees, rng)
            if checkpoint == shape.basis_replaced_at:
                before = basis = before @ _orthonormal_rows(before.shape[1], before.shape[1], rng)
            if checkpoint == shape.wider_at:
                basis = before @ _orthonormal_rows(before.shape[1], shape.wider_width, rng)
            course.append(basis)
        return course

    @cached_property
    def _shared_noise(self) -> np.ndarray:
        shape, rng = self.shape, stream(self.seed, "low-rank noise")
        basis = np.linalg.qr(rng.standard_normal((shape.width, shape.n_noise_directions)))[0].T
        factors = rng.standard_normal((shape.n_positions, shape.n_noise_directions)) * shape.directed_noise
        return (factors @ basis).astype(np.float32)

    @cached_property
    def _scales(self) -> np.ndarray:
        steps = stream(self.seed, "scales").standard_normal(self.shape.n_checkpoints) * self.shape.scale_wander
        return np.exp(np.cumsum(steps)).astype(np.float32)

    @cached_property
    def _offsets(self) -> np.ndarray:
        shape, rng = self.shape, stream(self.seed, "offsets")
        first = _unit_rows(rng.standard_normal((1, shape.width)))
        wander = rng.standard_normal((shape.n_checkpoints, shape.width)).cumsum(0) * 0.05 / np.sqrt(shape.width)
        return ((first + wander) * shape.offset).astype(np.float32)

    @cached_property
    def _sink_direction(self) -> np.ndarray:
        return _unit_rows(stream(self.seed, "sink direction").standard_normal((1, self.shape.width)))[0]


def make_lineage(seed: int, shape: Shape | None = None, **fields: int | float) -> Lineage:
    """Plant a lineage of a shape, or of the fields of one. The same seed and shape give the same lineage."""
    form = shape or Shape(**fields)  # type: ignore[arg-type]
    events = draw_events(form, seed)
    document = draw_documents(form, stream(seed, "documents"))
    exclusive = [e.feature for e in events if e.kind == "exclusive"]
    codes = draw_codes(form, document, exclusive, stream(seed, "codes"))
    codes, children = plant_children(codes, form, events, stream(seed, "children"))
    codes = plant_successors(codes, form, events, stream(seed, "successors"))
    events += draw_late_events(form, codes, document, events, seed)
    moved = plant_places(codes, document, events, seed)
    return Lineage(seed=seed, shape=form, events=events, codes=codes, document=document, children=children, moved=moved)


def write_checkpoint(lineage: Lineage, checkpoint: int, folder: Path) -> None:
    """Write a checkpoint as precomputed activations into `folder`, which is created if missing; manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    x, hook_point = lineage.activations(checkpoint), lineage.hook_point(checkpoint)
    shards = []
    for number, start in enumerate(range(0, len(x), SHARD_POSITIONS)):
        shards.append(f"{hook_point}-{number:05d}.safetensors")
        # A slice that does not own its memory would be written from the start of its base.
        save_file({"activations": x[start : start + SHARD_POSITIONS].copy()}, folder / shards[-1])
    save_file({"document": lineage.document}, folder / "documents.safetensors")
    manifest = {
        "format": "featurewatch-activations/1",
        "model": f"planted-{lineage.seed}-v{checkpoint}",
        "positions": len(x),
        "hook_points": {hook_point: {"d_model": x.shape[1], "shards": shards}},
        "documents": "documents.safetensors",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def _unit_rows(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _orthogonal_to(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random unit rows, each orthogonal to the corresponding row."""
    side = rng.standard_normal(rows.shape)
    return _unit_rows(side - (side * rows).sum(1, keepdims=True) * rows)


def _orthonormal_rows(n: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """n random orthonormal rows of a width: an isometry x -> x M."""
    q, r = np.linalg.qr(rng.standard_normal((width, n)))
    return (q * np.sign(np.diag(r))).T


def _rotation(width: int, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """A rotation of every vector by the same angle, in random planes; with an odd width one axis is fixed."""
    basis, angle = _orthonormal_rows(width, width, rng), np.deg2rad(degrees)
    turn = np.eye(width)
    for first in range(0, width - 1, 2):
        turn[first : first + 2, first : first + 2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    return basis.T @ turn @ basis


def main() -> None:
    """Write a lineage to a folder."""
    parser = argparse.ArgumentParser(description="Write a planted lineage as precomputed activations.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", choices=SCENARIOS, default="plain")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoints", type=int, default=Shape.n_checkpoints)
    parser.add_argument("--positions", type=int, default=Shape.n_positions)
    arguments = parser.parse_args()
    sizes = {"n_checkpoints": arguments.checkpoints, "n_positions": arguments.positions}
    lineage = make_lineage(arguments.seed, scenario(arguments.scenario, **sizes))
    for checkpoint in range(1, arguments.checkpoints + 1):
        write_checkpoint(lineage, checkpoint, arguments.out / f"v{checkpoint}")
        print(f"wrote {arguments.out / f'v{checkpoint}'}")
    truth = {
        "seed": arguments.seed,
        "scenario": arguments.scenario,
        "events": [asdict(event) for event in lineage.events],
        "children": lineage.children,
        "checkpoints": {f"v{c}": asdict(lineage.truth(c)) for c in range(2, arguments.checkpoints + 1)},
    }
    (arguments.out / "truth.json").write_text(json.dumps(truth))


if __name__ == "__main__":
    main()
