"""Query parameters of feature lists: which features, in which order."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query

from featurewatch.service.features.queries import Filter
from featurewatch.service.features.sorting import Order, SortName, order_of
from featurewatch.service.verdicts.figures import Direction
from featurewatch.service.verdicts.statuses import Status

StatusQuery = Annotated[list[Status] | None, Query(description="Can be repeated.")]
TextQuery = Annotated[
    str | None,
    Query(max_length=200, description="Part of a label (also an automatic one) or of a top token, or a feature id."),
]
TagQuery = Annotated[str | None, Query(max_length=64)]
WatchedQuery = Annotated[bool | None, Query()]
SortQuery = Annotated[
    SortName,
    Query(description="Missing values sort last. `least_change`: the smallest change that the interval allows."),
]
MinChangeQuery = Annotated[
    float | None,
    Query(
        ge=0, description="Minimum `change`, in factors of two: 1 means halved or doubled. Features in the band have 0."
    ),
]
MaxQQuery = Annotated[
    float | None,
    Query(ge=0, le=1, description="Maximum `q_value`. Excludes features without one, such as new ones."),
]
OrderQuery = Annotated[Direction | None, Query(description="Default: the natural direction of the sort key.")]


@dataclass(frozen=True)
class Selection:
    """Which features a request asks for, and in which order."""

    wanted: Filter
    order: Order


async def _selection(
    status: StatusQuery = None,
    q: TextQuery = None,
    tag: TagQuery = None,
    watched: WatchedQuery = None,
    min_change: MinChangeQuery = None,
    max_q: MaxQQuery = None,
    sort: SortQuery = "change",
    order: OrderQuery = None,
) -> Selection:
    return Selection(Filter(tuple(status or ()), q, tag, watched, min_change, max_q), order_of(sort, order))


SelectionQuery = Annotated[Selection, Depends(_selection)]
