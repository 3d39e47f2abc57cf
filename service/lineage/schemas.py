"""JSON of the lineage of features over generations."""

from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, Field

from featurewatch.service.kit.ids import feature_id

if TYPE_CHECKING:
    # The CLI uses these schemas and must start without SQLAlchemy.
    from featurewatch.service.models import Lineage

LinkKind = Literal["carried", "retired", "split", "merged", "new"]
LINK_KINDS: tuple[LinkKind, ...] = get_args(LinkKind)


class LineageLink(BaseModel):
    """What became of a feature in a re-fit. A split or merged feature has several links."""

    generation: int = Field(description="The new generation.")
    checkpoint: str = Field(description="The checkpoint whose run fitted it.")
    kind: LinkKind = Field(
        description="`carried`: the id continues. `retired`: it ends. `split`: `new` is one of several features that "
        "replace `old`. `merged`: `new` replaces `old` and others. `new`: no old feature corresponds to it."
    )
    old: str | None = Field(examples=["F42318"])
    new: str | None
    score: float = Field(
        description="Correlation of the two codes on the probe corpus. For a retired or new feature, the correlation "
        "with the most similar one."
    )


class Refit(BaseModel):
    """How many features a re-fit carried over, and what happened to the others."""

    why: str
    carried: int
    retired: int
    split: int = Field(description="Old features replaced by several new ones.")
    merged: int = Field(description="Old features replaced by one new feature together with others.")
    new: int = Field(description="New features that correspond to no old one.")


def link(row: "Lineage", checkpoint: str) -> LineageLink:
    """A link for the API."""
    return LineageLink(
        generation=row.generation,
        checkpoint=checkpoint,
        kind=row.kind,
        old=None if row.old is None else feature_id(row.old),
        new=None if row.new is None else feature_id(row.new),
        score=round(row.score, 4),
    )
