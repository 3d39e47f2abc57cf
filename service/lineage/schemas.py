"""JSON of the lineage of features over generations."""

from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, Field

from featurewatch.service.kit.ids import feature_id

if TYPE_CHECKING:
    # The command shows features by these shapes, and starts without the database's tables.
    from featurewatch.service.models import Lineage

LinkKind = Literal["carried", "retired", "split", "merged", "new"]
LINK_KINDS: tuple[LinkKind, ...] = get_args(LinkKind)


class LineageLink(BaseModel):
    """What a re-fit made of a feature. One that is split, or merged out of several, has several links."""

    generation: int = Field(description="The new one.")
    checkpoint: str = Field(description="Whose run fitted it.")
    kind: LinkKind = Field(
        description="`carried`: the id goes on. `retired`: it does not. `split`: `new` is one of those that carry "
        "`old` together. `merged`: `new` carries `old` with others. `new`: no old feature leads to it."
    )
    old: str | None = Field(examples=["F42318"])
    new: str | None
    score: float = Field(
        description="Correlation of the two codes on the probe corpus; of a retired or new one with what comes nearest."
    )


class Refit(BaseModel):
    """How many features a re-fit carried over, and what became of the others."""

    why: str
    carried: int
    retired: int
    split: int = Field(description="Old features that several new ones carry.")
    merged: int = Field(description="Old features that went into one with others.")
    new: int = Field(description="New features that none of the old leads to.")


def link(row: "Lineage", checkpoint: str) -> LineageLink:
    """A link as the API shows it."""
    return LineageLink(
        generation=row.generation,
        checkpoint=checkpoint,
        kind=row.kind,
        old=None if row.old is None else feature_id(row.old),
        new=None if row.new is None else feature_id(row.new),
        score=round(row.score, 4),
    )
