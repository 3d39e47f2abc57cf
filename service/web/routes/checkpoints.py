"""The report on a checkpoint, and the comparison of any two."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request
from starlette.responses import Response

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.checkpoints.lookup import ReadCheckpoint
from featurewatch.service.families.lookup import ReadFamily
from featurewatch.service.features import findings, logic
from featurewatch.service.features.queries import Filter
from featurewatch.service.features.sorting import order_of
from featurewatch.service.kit.pages import Pager, Paging
from featurewatch.service.kit.sessions import AppArtifacts, ReadSession
from featurewatch.service.kit.turns import IN_TURN
from featurewatch.service.reports.checkpoints import MEDIA_TYPES, Format, render, report
from featurewatch.service.verdicts.statuses import Status
from featurewatch.service.web import lists
from featurewatch.service.web.access import pages
from featurewatch.service.web.flow import MOST_SUCCESSORS, flow
from featurewatch.service.web.plots import Plot
from featurewatch.service.web.render import address, is_fragment, page

router = pages()

BaselineQuery = Annotated[str | None, Query(description="Default: the parent.")]


@router.get("/families/{family}/checkpoints/{name}", dependencies=[IN_TURN])
def show_report(
    request: Request,
    family: ReadFamily,
    checkpoint: ReadCheckpoint,
    session: ReadSession,
    artifacts: AppArtifacts,
    baseline: BaselineQuery = None,
    form: Annotated[Format | None, Query(alias="format")] = None,
) -> Response:
    view = checkpoints.views(session, family, [checkpoint])[0]
    if checkpoint.state != "judged":
        return page(request, "families/waiting.html", family=family.name, checkpoint=view)
    document = report(session, artifacts, family, checkpoint.name, baseline or None)
    if form is not None:
        text = document.model_dump_json() if form == "json" else render(document, form)
        return Response(text, media_type=MEDIA_TYPES[form])
    changes = Plot(
        "changes",
        "table",
        f"Largest changes ({len(document.changes)} features)",
        ["feature", "status", "projection ratio", "from", "to", "strength ratio", "q", "label", "successors"],
        [_change(row) for row in document.changes],
        links=[address("families", family.name, "features", row.id) for row in document.changes],
        drawn=False,
    )
    return page(
        request, "families/report.html", plots=[changes], report=document, checkpoint=view,
        others=[name for name in reversed(checkpoint_queries.judged(session, family.id)) if name != checkpoint.name],
    )  # fmt: skip


def _change(row: Any) -> list[Any]:
    low, high = row.projection_ratio_ci or (None, None)
    named = row.label or row.auto_label or ""
    successors = ", ".join(successor.id for successor in row.successors)
    return [row.id, row.status, row.projection_ratio, low, high, row.strength_ratio, row.q_value, named, successors]


@router.get("/families/{family}/diff", dependencies=[IN_TURN])
def show_diff(
    request: Request,
    family: ReadFamily,
    session: ReadSession,
    artifacts: AppArtifacts,
    selection: lists.FormSelection,
    paging: Paging,
    from_: Annotated[str | None, Query(alias="from")] = None,
    to: str | None = None,
    csv: str | None = None,
) -> Response:
    parents = checkpoint_queries.judged(session, family.id)
    judged = list(parents)
    if len(judged) < 2:
        return page(request, "families/diff.html", family=family.name, judged=judged, diff=None, names=("", ""))
    names = (from_ or parents[judged[-1]] or judged[-2], to or judged[-1])
    comparison = logic.comparison(session, family, names[1], names[0])
    wanted, order = selection.wanted, selection.order
    if csv == lists.NAME:
        return lists.as_file(request, comparison, selection)
    if is_fragment(request):
        features = logic.page(session, paging, comparison, wanted, order)
        return page(
            request, "features/rows.html", family=family.name, rows=features.data, next_cursor=features.next_cursor
        )
    diff = findings.diff(session, artifacts, paging, comparison, wanted, order)
    few = Pager.first_page(request, MOST_SUCCESSORS)
    replaced = logic.page(session, few, comparison, Filter((Status.REPLACED,)), order_of("change", None)).data
    query = urlencode({"checkpoint": names[1], "baseline": names[0]})
    link = f"{address('families', family.name, 'features')}?{query}&"
    plot = flow(names[0], names[1], diff.counts, replaced, link)
    return page(
        request, "families/diff.html", plots=[plot], judged=judged, diff=diff, names=names, wanted=wanted,
        family=family.name, rows=diff.data, next_cursor=diff.next_cursor,
    )  # fmt: skip
