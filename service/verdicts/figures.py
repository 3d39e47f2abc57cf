"""The figures of a verdict, one row each. Columns, packed records, commands, pages and files derive from this table.

To add a figure, add a row here, its column to `service.models.Verdict` with a migration, and its field to
`service.features.schemas.Point`. Tests hold the three together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    # Commands read this table, and start without numpy.
    from featurewatch.service.verdicts.judge import Evidence, Judgement

Direction = Literal["asc", "desc"]
Format = Literal["ratio", "q", "number"]
View = Literal["page", "list", "course"]
"""`page`: the pages' list of features. `list`: `featurewatch features`. `course`: `featurewatch feature`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a verdict."""

    name: str
    """Column of `Verdict` and field of the API."""
    about: str
    label: str
    """On pages and in CSV files."""
    heading: str = ""
    """In the tables of commands."""
    unit: str = "1"
    """In Parquet files; `1`: a plain number."""
    whole: bool = False
    """Whether it is an integer."""
    required: bool = False
    """Whether every verdict has it."""
    ends: tuple[str, str] | None = None
    """Labels of the ends of its interval: columns `{name}_lo` and `{name}_hi`, in the API `{name}_ci`."""
    packed: Literal["<f4", "<f8", "<i8"] | None = None
    """Its type in the packed table of a checkpoint. None: lists are not chosen by it, so it is read from rows."""
    sort: Direction = "desc"
    """Which end of a sorted list comes first by default."""
    sort_title: str = ""
    """In the menu of orders, where that is not the label."""
    format: Format = "number"
    """On pages."""
    views: tuple[View, ...] = ()
    """Tables for people that show it. CSV and Parquet files have every figure."""
    measured: bool = False
    """Whether the worker measures it. Otherwise the judgement has it, as an attribute of this name, or `of` does."""
    placed: bool = False
    """Whether `service.verdicts.places` computes it, from own codes."""
    of: "Callable[[Evidence, Judgement], Any] | None" = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `Verdict`: the figure and the ends of its interval."""
        return (self.name, *(f"{self.name}_{end}" for end in ("lo", "hi") if self.ends))

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the columns."""
        return (self.label, *(self.ends or ()))

    @property
    def title(self) -> str:
        """The label as the heading of a column: `Readability`, but `q`."""
        return self.label if len(self.label) == 1 else self.label[0].upper() + self.label[1:]


FIGURES = (
    Figure(
        name="change",
        about="Size of the change in factors of two. 0: nothing significant happened.",
        label="change",
        unit="factors of 2",
        required=True,
        packed="<f4",
        sort_title="largest change",
    ),
    Figure(
        name="projection_ratio",
        about="How much of the feature's own direction is still written where it fires.",
        label="projection ratio",
        heading="projection",
        ends=("from", "to"),
        packed="<f4",
        sort="asc",
        format="ratio",
        views=("page", "list", "course"),
    ),
    Figure(
        name="strength_ratio",
        about="How strongly the source still moves where the feature fires, in any direction.",
        label="strength ratio",
        heading="strength",
        ends=("strength from", "strength to"),
        sort="asc",
        format="ratio",
        views=("list", "course"),
    ),
    Figure(
        name="orthogonal_ratio",
        about="How much is written along other directions where the feature fires.",
        label="orthogonal ratio",
        format="ratio",
    ),
    Figure(
        name="q_value",
        about="Benjamini-Hochberg q-value over the features of the comparison. Null for new features.",
        label="q",
        heading="q",
        packed="<f4",
        sort="asc",
        sort_title="smallest q-value",
        format="q",
        views=("page", "list"),
    ),
    Figure(
        name="minimum_detectable_ratio",
        about="Largest projection ratio below 1 that the data could have distinguished from 1. Null if none.",
        label="detectable ratio",
        format="ratio",
    ),
    Figure(
        name="strength",
        about="Norm of the feature's decoder row over all hook points.",
        label="strength",
        unit="scale of the source",
        views=("page",),
        measured=True,
    ),
    Figure(
        name="direction_cosine",
        about="Cosine between the feature's decoder rows here and at the baseline.",
        label="cosine",
        packed="<f4",
        sort="asc",
        format="ratio",
        measured=True,
    ),
    Figure(
        name="readability",
        about="Correlation of the source's own read-out with the code.",
        label="readability",
        heading="readability",
        format="ratio",
        views=("page", "course"),
        measured=True,
    ),
    Figure(
        name="firing_rate",
        about="Share of the probe corpus's positions on which the feature fires.",
        label="firing rate",
        unit="share of positions",
        required=True,
        packed="<f8",
        measured=True,
    ),
    Figure(
        name="firings",
        about="Positions of the probe corpus on which the feature fires.",
        label="firings",
        heading="firings",
        unit="positions",
        whole=True,
        required=True,
        packed="<i8",
        views=("page", "list", "course"),
        of=lambda evidence, _: evidence.firings,
    ),
    Figure(
        name="places_q_value",
        about="Benjamini-Hochberg q-value that the gained or the lost share is over the policy's `places_floor`.",
        label="places q",
        heading="places q",
        sort="asc",
        format="q",
        placed=True,
    ),
    Figure(
        name="firing_rate_before",
        about="Share of the positions where the feature is active at the baseline, by the own code.",
        label="firing rate before",
        unit="share of positions",
        placed=True,
    ),
    Figure(
        name="firing_rate_ratio",
        about="Positions where the feature is active by the own code, divided by those at the baseline.",
        label="firing rate ratio",
        heading="rate",
        ends=("rate from", "rate to"),
        format="ratio",
        views=("page", "list", "course"),
        placed=True,
    ),
    Figure(
        name="gained_share",
        about="Activation where the baseline has none, divided by all of the baseline's.",
        label="gained share",
        heading="gained",
        ends=("gained from", "gained to"),
        format="ratio",
        views=("list", "course"),
        placed=True,
    ),
    Figure(
        name="lost_share",
        about="The baseline's activation where the checkpoint has none, divided by all of the baseline's.",
        label="lost share",
        heading="lost",
        ends=("lost from", "lost to"),
        format="ratio",
        views=("list", "course"),
        placed=True,
    ),
    Figure(
        name="kept_amplitude",
        about="Activation divided by the baseline's, over the positions where both are active.",
        label="kept amplitude",
        ends=("kept from", "kept to"),
        format="ratio",
        placed=True,
    ),
    Figure(
        name="gained_documents",
        about="Fewest documents that hold 90% of the gained activation. Few: something sets it off.",
        label="gained documents",
        unit="documents",
        placed=True,
    ),
)

FIGURE = {figure.name: figure for figure in FIGURES}
FLOAT_COLUMNS = tuple(column for figure in FIGURES if not figure.whole for column in figure.columns)
_WORDS = ("status", "previous_status", "places")
COLUMNS = ("feature", *_WORDS, *(column for figure in FIGURES for column in figure.columns), "successors")
"""Columns of a verdict, apart from the checkpoint and the family."""


def shown_in(view: View) -> list[Figure]:
    """The figures that a table shows."""
    return [figure for figure in FIGURES if view in figure.views]
