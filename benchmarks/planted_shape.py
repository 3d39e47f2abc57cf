"""The shape of a planted lineage: sizes, kinds of events, named scenarios."""

from dataclasses import dataclass
from typing import Any

PRESENT, SUPPRESSED, ABSENT, EMERGED = "present", "suppressed", "absent", "emerged"
AMPLIFIED, RELOCATED, REPLACED = "amplified", "relocated", "replaced"
WEAKENED, STRENGTHENED = "weakened", "strengthened"
UNBORN = "unborn"
"""Not a verdict: no checkpoint has written the feature yet, so no status is expected."""

SUPPRESSED_BELOW, AMPLIFIED_ABOVE = 0.5, 2.0
"""The outer band: a ratio of levels outside it is `suppressed` or `amplified`."""
WEAKENED_BELOW, STRENGTHENED_ABOVE = 0.8, 1.25
"""The inner band: a ratio of levels outside it, but inside the outer one, is `weakened` or `strengthened`."""
UNGRADED = {WEAKENED: PRESENT, STRENGTHENED: PRESENT}
"""The statuses that replace the graded ones where only the outer band is judged."""

SAME, BROADENED, NARROWED, DISPLACED = "same", "broadened", "narrowed", "displaced"
PLACES = (SAME, BROADENED, NARROWED, DISPLACED)
CHANGED_PLACES = (BROADENED, NARROWED, DISPLACED)

EVENT_STATUS = {
    "suppressed": SUPPRESSED,
    "removed": ABSENT,
    "born": EMERGED,
    "amplified": AMPLIFIED,
    "relocated": RELOCATED,
    "replaced": REPLACED,
    "split": REPLACED,
    "merged": REPLACED,
    "successor": EMERGED,
    "exclusive": EMERGED,
    "weakened": WEAKENED,
    "strengthened": STRENGTHENED,
}
"""The correct status, at the onset, of a feature whose strength an event changes."""
EVENT_PLACES = {"broadened": BROADENED, "narrowed": NARROWED, "displaced": DISPLACED, "trigger": BROADENED}
"""The correct places, at the onset, of a feature that an event makes active elsewhere. It stays `present`."""
LEAVING = ("narrowed", "displaced")
"""Kinds of events after which a feature is not written at all of its old positions."""
GRADED_LEVELS = {"weakened": 0.65, "strengthened": 1.5}
SUCCEEDED = ("replaced", "split", "merged")
BIRTHS = ("born", "successor", "exclusive")
LATE_KINDS = (*EVENT_PLACES, *GRADED_LEVELS)
"""Kinds that happen only to features that are active often enough, chosen after the codes were drawn."""


@dataclass(frozen=True)
class Shape:
    """The shape of a planted lineage. Sizes are relative to a typical magnitude of 1; checkpoints count from 1."""

    n_checkpoints: int = 6
    n_positions: int = 60_000
    width: int = 256
    n_planted: int = 512

    n_suppressed: int = 30
    n_removed: int = 20
    n_born: int = 20
    n_amplified: int = 0
    n_relocated: int = 0
    n_replaced: int = 0
    """Each takes two of the planted features: the predecessor and its successor."""
    n_split: int = 0
    """Each takes three: one predecessor, two successors."""
    n_merged: int = 0
    """Each takes three: two predecessors, one successor."""
    n_exclusive: int = 0
    """Features written by a single checkpoint; each fires on `exclusive_rate` of the positions."""
    exclusive_rate: float = 0.005
    n_weakened: int = 0
    n_strengthened: int = 0
    n_broadened: int = 0
    n_narrowed: int = 0
    n_displaced: int = 0
    n_trigger: int = 0
    n_children: int = 0
    """Features that fire only on 20 to 60% of another one's positions."""

    lowest_rate: float = 0.002
    """Share of positions on which the rarest feature fires."""
    highest_rate: float = 0.05
    document_length: int = 100
    """Mean; lengths vary by about a third."""
    n_topics: int = 16
    topic_contrast: float = 1.2
    """Standard deviation of a feature's log rate over topics; 0 for rates independent of documents."""
    tail: float = 0.5
    """Standard deviation of the log magnitude: 0.5 puts 1% of the firings over 3.2 times the median."""

    turn_degrees: float = 4.0
    """Mean angle by which each direction turns, independently, from one checkpoint to the next."""
    rotate_degrees: float = 0.0
    """Angle by which every vector of the space turns from one checkpoint to the next, all in one rotation."""
    basis_replaced_at: int = 0
    """Checkpoint from which activations are in a random orthogonal basis; 0 for never."""
    wider_at: int = 0
    """Checkpoint from which activations have `wider_width` dimensions; 0 for never."""
    wider_width: int = 0
    scale_wander: float = 0.15
    """Standard deviation of the change of log scale from one checkpoint to the next."""

    isotropic_noise: float = 0.06
    """Standard deviation per dimension, independent in each checkpoint."""
    n_noise_directions: int = 8
    directed_noise: float = 0.3
    """Standard deviation along each direction of the low-rank noise, which all checkpoints share."""
    offset: float = 2.0
    """Norm of the mean activation."""
    sink_share: float = 0.0
    """Share of the documents whose second token is an attention sink: 30 to 50 median norms along one direction."""

    def __post_init__(self) -> None:
        needed = sum(self.event_features().values())
        if needed > self.n_planted or (needed and self.n_checkpoints < 2):
            raise ValueError(f"the events need {needed} features (n_planted is {self.n_planted}) and two checkpoints")
        if self.wider_at and self.wider_width < self.width:
            raise ValueError(f"wider_width is {self.wider_width}; it must be at least the width, {self.width}")

    def event_features(self) -> dict[str, int]:
        """Planted features that each kind of event takes, successors included."""
        return {
            "suppressed": self.n_suppressed,
            "removed": self.n_removed,
            "born": self.n_born,
            "amplified": self.n_amplified,
            "relocated": self.n_relocated,
            "exclusive": self.n_exclusive,
            "replaced": 2 * self.n_replaced,
            "split": 3 * self.n_split,
            "merged": 3 * self.n_merged,
            **{kind: getattr(self, f"n_{kind}") for kind in LATE_KINDS},
        }


@dataclass(frozen=True)
class Event:
    """An event of one planted feature; `kind` is a key of EVENT_STATUS or EVENT_PLACES, `checkpoint` the onset.

    An `exclusive` feature has two events: it is born, and removed in the next checkpoint.
    """

    feature: int
    kind: str
    checkpoint: int
    level: float
    """From the checkpoint on: 0 (removed, replaced, split, merged), 0.1..0.4, 0.65, 1, 1.5 or 2.5..4."""
    successors: tuple[int, ...] = ()
    """Its planted successors: one, two (split), or one shared with another feature (merged)."""


_KINDS = {
    "n_suppressed": 30, "n_removed": 20, "n_born": 15, "n_amplified": 20, "n_relocated": 20, "n_replaced": 15,
    "n_split": 5, "n_merged": 5, "n_exclusive": 4,
}  # fmt: skip
_LATE = {
    "n_broadened": 15, "n_narrowed": 15, "n_displaced": 15, "n_trigger": 10, "n_weakened": 15, "n_strengthened": 15,
}  # fmt: skip
_MIXED: dict[str, Any] = _KINDS | {"rotate_degrees": 5.0, "sink_share": 0.3, "n_children": 24}

SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kinds": _KINDS,
    "rotating": _KINDS | {"rotate_degrees": 10.0},
    "replaced-basis": _KINDS | {"basis_replaced_at": 4},
    "widths": _KINDS | {"wider_at": 4, "wider_width": 384},
    "sinks": _KINDS | {"sink_share": 0.3},
    "hierarchy": _KINDS | {"n_children": 48},
    "rare": _KINDS | {"lowest_rate": 0.0005},
    "incomplete": _KINDS | {"n_planted": 1536, "highest_rate": 0.01},
    "strengths": _MIXED,
    "places": dict.fromkeys(("n_suppressed", "n_removed", "n_born"), 0) | _LATE,
    "all": _MIXED | _LATE,
}
"""Fields of `Shape` by name of the scenario. `plain` has the three simplest kinds of events, `places` the late kinds
alone, and `all` every kind; the others have every kind but the late ones. `incomplete` plants more features than the
benchmark's dictionary has latents. `strengths` is `all` without the late kinds. The headline figure is taken on
`all`."""

SMALL = {"n_planted": 128, "n_positions": 12_000, "width": 64, "lowest_rate": 0.005, "n_topics": 8}
"""A small lineage with the scenario's proportion of events."""


def scenario(name: str, *, small: bool = False, **fields: int | float) -> Shape:
    """The shape of a named scenario, with `fields` replaced. `small`: a quarter of the width and of all planted."""
    if name not in SCENARIOS:
        raise ValueError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    chosen = SCENARIOS[name]
    if small:
        full = Shape(**chosen)
        quarter = {key: -(-getattr(full, key) // 4) for key in vars(full) if key.startswith("n_") and key in _COUNTS}
        chosen = chosen | SMALL | quarter | {"wider_width": full.wider_width // 4}
        chosen |= {"lowest_rate": 0.5 * SMALL["lowest_rate"]} if name == "rare" else {}
        chosen |= {"n_planted": full.n_planted // 4}
    return Shape(**(chosen | fields))


_COUNTS = (*_KINDS, *_LATE, "n_children")
