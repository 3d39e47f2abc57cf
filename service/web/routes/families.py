"""The list of families, and the overview of one family."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from fastapi import Request
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session
from starlette.responses import Response

from featurewatch.service.calibrations import logic as calibrations
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.checkpoints.schemas import CheckpointOut
from featurewatch.service.families import logic
from featurewatch.service.families.lookup import ReadFamily
from featurewatch.service.features import history
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.pages import Paging
from featurewatch.service.kit.sessions import ReadSession
from featurewatch.service.kit.turns import IN_TURN
from featurewatch.service.models import Family
from featurewatch.service.verdicts.statuses import CHANGED, Status
from featurewatch.service.web.access import pages
from featurewatch.service.web.lineage import draw
from featurewatch.service.web.plots import Plot, parents
from featurewatch.service.web.render import address, is_fragment, page

router = pages()

MAX_CHECKPOINTS, MAX_FEATURES = 60, 30
"""Newest checkpoints, and features, in the heat maps: more would be unreadable."""
ROWS_PER_PAGE = 20
"""Checkpoints that the table loads at a time."""
_QUALITY = ("fvu", "l0", "valid_share", "dead_share", "size_factor")


@router.get("/")
def home() -> Response:
    return RedirectResponse("/families", status_code=307)


@router.get("/families")
def list_families(request: Request, session: ReadSession, paging: Paging) -> Response:
    families, next_cursor = logic.page(session, paging)
    newest = checkpoint_queries.newest_judged(session, [family.id for family in families])
    changes = history.changes(session, [checkpoint.id for checkpoint in newest.values()])
    return page(
        request, "families/families.html", families=families, next_cursor=next_cursor, newest=newest, changes=changes
    )


@router.get("/families/{family}", dependencies=[IN_TURN])
def show_family(request: Request, family: ReadFamily, session: ReadSession, older_than: str | None = None) -> Response:
    every = checkpoints.all_views(session, family)
    if older_than is not None:
        checkpoints.get(session, family, older_than)  # 404 where it does not exist
    older = [*takewhile(lambda checkpoint: checkpoint.name != older_than, every)][::-1]
    rows, next_cursor = older[:ROWS_PER_PAGE], older[ROWS_PER_PAGE - 1].name if len(older) > ROWS_PER_PAGE else None
    shared: dict[str, Any] = {
        "family": calibrations.with_latest(session, [family])[0], "rows": rows, "next_cursor": next_cursor,
    }  # fmt: skip
    listed = [checkpoint.id for checkpoint in rows if checkpoint.state == "judged"]
    if is_fragment(request):
        return page(request, "families/checkpoint_rows.html", changes=history.changes(session, listed), **shared)
    judged = [checkpoint for checkpoint in every if checkpoint.state == "judged"][-MAX_CHECKPOINTS:]
    changes = history.changes(session, [*{checkpoint.id for checkpoint in judged} | {*listed}])
    drawing = draw(every, changes)
    plots = [
        _lineage(every, changes),
        _counts(family.name, judged, changes),
        _features(session, family, judged),
        _quality(family.name, judged),
    ]
    return page(
        request, "families/family.html", plots=plots, checkpoints=every, changes=changes, drawing=drawing, **shared
    )


def _lineage(every: Sequence[CheckpointOut], changes: dict[str, dict[str, int]]) -> Plot:
    """The data of the lineage graph."""
    changed = {key: sum(found.get(status, 0) for status in CHANGED) for key, found in changes.items()}
    rows = [
        [row.name, row.parent, row.state, changed.get(row.id), row.generation, row.created_at.isoformat()]
        for row in every
    ]
    columns = ["checkpoint", "parent", "state", "changed features", "generation", "registered"]
    return Plot("lineage", "table", "Lineage", columns, rows, drawn=bool(rows))


def _counts(family: str, judged: Sequence[CheckpointOut], changes: dict[str, dict[str, int]]) -> Plot:
    statuses = (*CHANGED, Status.INDETERMINATE)
    return Plot(
        "changes",
        "counts",
        "Changes by checkpoint",
        ["checkpoint", *statuses],
        [[checkpoint.name, *(changes[checkpoint.id].get(status, 0) for status in statuses)] for checkpoint in judged],
        note="Features that entered each status since the checkpoint's parent.",
        links=[address("families", family, "checkpoints", checkpoint.name) for checkpoint in judged],
        drawn=len(judged) > 1,
    )


def _features(session: Session, family: Family, judged: Sequence[CheckpointOut]) -> Plot:
    courses = history.most_changed(session, family.id, [checkpoint.id for checkpoint in judged], MAX_FEATURES)
    rows: list[list[Any]] = []
    for course in courses:
        feature = course.feature
        label = feature.label or feature.auto_label or ""
        rows.append([feature_id(feature.number), label, *(course.statuses.get(checkpoint.id) for checkpoint in judged)])
    return Plot(
        "features",
        "statuses",
        "Most changed features",
        ["feature", "label", *(checkpoint.name for checkpoint in judged)],
        rows,
        note="Watched features first, then by the largest change in any checkpoint. New features appear if they "
        "changed later. Empty cells have no verdict.",
        links=[address("families", family.name, "features", row[0]) for row in rows],
        drawn=bool(rows) and len(judged) > 1,
    )


def _quality(family: str, judged: Sequence[CheckpointOut]) -> Plot:
    rows = [[checkpoint.name, *((checkpoint.quality or {}).get(name) for name in _QUALITY)] for checkpoint in judged]
    return Plot(
        "quality",
        "lines",
        "Dictionary quality by checkpoint",
        ["checkpoint", "FVU", "L0", "valid share", "dead share", "size factor"],
        rows,
        note="FVU: fraction of variance unexplained. L0: mean number of active features per position. Valid share: "
        "share of positions that can be compared.",
        links=[address("families", family, "checkpoints", checkpoint.name) for checkpoint in judged],
        options={
            "panels": [["FVU", [1]], ["L0", [2]], ["valid share", [3]]],
            "parents": parents(rows, [checkpoint.parent for checkpoint in judged]),
        },
        drawn=len(judged) > 1,
    )
