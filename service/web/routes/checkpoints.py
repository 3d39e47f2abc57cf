"""The report of a checkpoint against any baseline, and the flow between any two."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request
from starlette.responses import Response

from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.checkpoints import routes as checkpoints
from featurewatch.service.checkpoints.report import MEDIA_TYPES, Format, render, report
from featurewatch.service.families import logic as families
from featurewatch.service.features import logic
from featurewatch.service.features import routes as features
from featurewatch.service.features.queries import Filter
from featurewatch.service.features.routes import (
    MaxQQuery,
    MinChangeQuery,
    OrderQuery,
    SortQuery,
    StatusQuery,
    TagQuery,
    TextQuery,
    WatchedQuery,
)
from featurewatch.service.features.sorting import order_of
from featurewatch.service.kit.pages import Pager, Paging
from featurewatch.service.kit.sessions import AppArtifacts, ReadSession
from featurewatch.service.kit.turns import IN_TURN
from featurewatch.service.verdicts.statuses import Status
from featurewatch.service.web import lists
from featurewatch.service.web.access import pages
from featurewatch.service.web.flow import MOST_SUCCESSORS, flow
from featurewatch.service.web.plots import Plot
from featurewatch.service.web.render import address, is_fragment, page

router = pages()

BaselineQuery = Annotated[str | None, Query(description="Left out: the parent.")]


@router.get("/families/{family}/checkpoints/{name}", dependencies=[IN_TURN])
def show_report(
    request: Request,
    family: str,
    name: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    baseline: BaselineQuery = None,
    form: Annotated[Format | None, Query(alias="format")] = None,
) -> Response:
    one = checkpoints.get_checkpoint(family, name, session)
    if one.state != "judged":
        return page(request, "families/waiting.html", family=family, checkpoint=one)
    row = families.get(session, family)
    found = report(session, artifacts, row, name, baseline or None)
    if form is not None:
        text = found.model_dump_json() if form == "json" else render(found, form)
        return Response(text, media_type=MEDIA_TYPES[form])
    changes = Plot(
        "changes",
        "table",
        f"The largest changes, {len(found.changes)} features",
        ["feature", "status", "projection ratio", "from", "to", "strength ratio", "q", "label", "successors"],
        [_change(row) for row in found.changes],
        links=[address("families", family, "features", row.id) for row in found.changes],
        drawn=False,
    )
    return page(
        request, "families/report.html", plots=[changes], report=found, checkpoint=one,
        others=[other for other in reversed(checkpoint_queries.judged(session, row.id)) if other != name],
    )  # fmt: skip


def _change(row: Any) -> list[Any]:
    low, high = row.projection_ratio_ci or (None, None)
    named = row.label or row.auto_label or ""
    successors = ", ".join(successor.id for successor in row.successors)
    return [row.id, row.status, row.projection_ratio, low, high, row.strength_ratio, row.q_value, named, successors]


@router.get("/families/{family}/diff", dependencies=[IN_TURN])
def show_diff(
    request: Request,
    family: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    paging: Paging,
    from_: Annotated[str | None, Query(alias="from")] = None,
    to: str | None = None,
    status: StatusQuery = None,
    q: TextQuery = None,
    tag: TagQuery = None,
    watched: WatchedQuery = None,
    min_change: MinChangeQuery = None,
    max_q: MaxQQuery = None,
    sort: SortQuery = "change",
    order: OrderQuery = None,
    csv: str | None = None,
) -> Response:
    row = families.get(session, family)
    parents = checkpoint_queries.judged(session, row.id)
    judged = list(parents)
    if len(judged) < 2:
        return page(request, "families/diff.html", family=family, judged=judged, found=None, asked=("", ""))
    asked = (from_ or parents[judged[-1]] or judged[-2], to or judged[-1])
    wanted = Filter(tuple(status or ()), q or None, tag or None, watched, min_change, max_q)
    compared = logic.comparison(session, row, asked[1], asked[0])
    if csv == lists.NAME:
        return lists.as_file(request, compared, wanted, order_of(sort, order))
    if is_fragment(request):
        rows, cursor = features.page_of(session, paging, compared, wanted, order_of(sort, order))
        return page(request, "features/rows.html", family=family, rows=rows, next_cursor=cursor)
    found = features.diff_of(session, artifacts, paging, compared, wanted, order_of(sort, order))
    few = Pager(MOST_SUCCESSORS, None, request, Response())
    replaced, _ = features.page_of(session, few, compared, Filter((Status.REPLACED,)), order_of("change", None))
    link = f"{address('families', family, 'features')}?{urlencode({'checkpoint': asked[1], 'baseline': asked[0]})}&"
    plot = flow(asked[0], asked[1], found.counts, replaced, link)
    return page(
        request, "families/diff.html", plots=[plot], judged=judged, found=found, asked=asked, wanted=wanted,
        family=family, rows=found.data, next_cursor=found.next_cursor,
    )  # fmt: skip
