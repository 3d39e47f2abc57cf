"""Layout of the lineage graph: descendants from left to right, one lane per branch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featurewatch.service.checkpoints.schemas import CheckpointOut
from featurewatch.service.verdicts.statuses import CHANGED

STEP, LANE, MARGIN = 84, 64, 46
_LETTERS = 12


@dataclass(frozen=True)
class Node:
    """A checkpoint in the drawing. Coordinates are in pixels."""

    checkpoint: CheckpointOut
    x: int
    y: int
    short: str
    changed: int
    worst: str
    """The most severe status that a feature entered here; the checkpoint's state if no feature changed."""


@dataclass(frozen=True)
class Drawing:
    """Nodes, and the SVG paths from parents to children. Sizes are in pixels."""

    nodes: list[Node]
    paths: list[str]
    width: int
    height: int


def draw(checkpoints: Sequence[CheckpointOut], changes: Mapping[str, Mapping[str, int]]) -> Drawing:
    """checkpoints: parents before their children. changes: checkpoint id -> status -> features that entered it."""
    places: dict[str, tuple[int, int]] = {}
    ends: dict[int, int] = {}
    """Lane -> depth of its last checkpoint."""
    nodes, paths = [], []
    for checkpoint in checkpoints:
        parent = places.get(checkpoint.parent or "")
        depth = parent[0] + 1 if parent else 0
        lane = _lane(ends, parent, depth)
        ends[lane] = depth
        places[checkpoint.name] = (depth, lane)
        x, y = MARGIN + depth * STEP, MARGIN // 2 + 12 + lane * LANE
        if parent:
            paths.append(_path(MARGIN + parent[0] * STEP, MARGIN // 2 + 12 + parent[1] * LANE, x, y))
        found = changes.get(checkpoint.id, {})
        worst = next((status for status in CHANGED if found.get(status)), checkpoint.state)
        changed = sum(found.get(status, 0) for status in CHANGED)
        short = checkpoint.name if len(checkpoint.name) <= _LETTERS else checkpoint.name[: _LETTERS - 1] + "…"
        nodes.append(Node(checkpoint, x, y, short, changed, worst))
    depth = max((place[0] for place in places.values()), default=0)
    return Drawing(nodes, paths, 2 * MARGIN + depth * STEP, MARGIN // 2 + 46 + max(ends, default=0) * LANE)


def _lane(ends: Mapping[int, int], parent: tuple[int, int] | None, depth: int) -> int:
    """The parent's lane if the parent is the last in it, else the first free lane below."""
    if parent and ends[parent[1]] == parent[0]:
        return parent[1]
    lane = parent[1] + 1 if parent else 0
    while lane in ends and ends[lane] >= depth - 1:
        lane += 1
    return lane


def _path(x: int, y: int, to_x: int, to_y: int) -> str:
    return f"M{x} {y}H{to_x}" if y == to_y else f"M{x} {y}C{x + STEP // 2} {y} {to_x - STEP // 2} {to_y} {to_x} {to_y}"
