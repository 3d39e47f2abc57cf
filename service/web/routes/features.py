"""The features of a checkpoint, and the page of one feature."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.dependencies import logic as dependencies
from featurewatch.service.dependencies import queries as dependency_queries
from featurewatch.service.dependencies.schemas import Dependencies, DependenciesIn, Method
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.features import history, logic, queries
from featurewatch.service.features.schemas import FeaturePatch, Point, Trajectory
from featurewatch.service.features.sources import FeatureSources, of_feature
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.pages import Paging
from featurewatch.service.kit.sessions import AppArtifacts, ReadSession, WriteSession
from featurewatch.service.kit.turns import IN_TURN
from featurewatch.service.labels.passages import Activation, Passages
from featurewatch.service.models import Family
from featurewatch.service.web import lists
from featurewatch.service.web.access import SentForm, pages, validated
from featurewatch.service.web.plots import Plot, parents
from featurewatch.service.web.render import address, back, is_fragment, page

router = pages()

PASSAGES = 12


@router.get("/families/{family}/features", dependencies=[IN_TURN])
def list_features(
    request: Request,
    family: ReadFamily,
    session: ReadSession,
    selection: lists.FormSelection,
    paging: Paging,
    checkpoint: str | None = None,
    baseline: str | None = None,
    csv: str | None = None,
) -> Response:
    judged: list[str] = []
    if not is_fragment(request):
        judged = list(checkpoint_queries.judged(session, family.id))
        if not judged:
            return page(request, "features/features.html", family=family.name, judged=[], rows=[], next_cursor=None)
    wanted, order = selection.wanted, selection.order
    comparison = logic.comparison(session, family, checkpoint or None, baseline or None)
    if csv == lists.NAME:
        return lists.as_file(request, comparison, selection)
    features = logic.page(session, paging, comparison, wanted, order)
    shared: dict[str, Any] = {"family": family.name, "rows": features.data, "next_cursor": features.next_cursor}
    if is_fragment(request):
        return page(request, "features/rows.html", **shared)
    return page(
        request, "features/features.html", judged=judged, wanted=wanted, sort=order.name,
        counts=logic.counts(session, comparison), places=logic.place_counts(comparison),
        checkpoint=comparison.checkpoint.name,
        baseline=comparison.baseline.name if comparison.baseline else None,
        chosen_baseline=baseline or "", **shared,
    )  # fmt: skip


@router.get("/families/{family}/features/{feature}", dependencies=[IN_TURN])
def show_feature(
    request: Request,
    family: ReadFamily,
    feature: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    now: Annotated[str | None, Query(description="Show dependencies in this checkpoint.")] = None,
    before: Annotated[str | None, Query(description="Also show them in this checkpoint.")] = None,
) -> Response:
    row = logic.get(session, family, feature)
    course = logic.trajectory(session, family, row)
    detail = logic.detail(session, family, row, course.points)
    sources = of_feature(session, family, row)
    passages, why_not = _passages(session, artifacts, family, row.number)
    side_by_side = _dependencies(session, artifacts, family, row.number, course, now, before)
    return page(
        request, "features/feature.html",
        plots=[
            _trajectory(family.name, course), _firing_rate(family.name, course),
            *_at_hook_points(family.name, sources, course),
        ],
        family=family.name, feature=detail, course=course, sources=sources, passages=passages, why_not=why_not,
        predecessors=history.predecessors(session, family, row.number), dependencies=side_by_side,
        rates={point.checkpoint: _rate(point) for point in course.points}, policy=family.policy, logits=_logits(row),
        hook_points=family.hook_points,
    )  # fmt: skip


@router.post("/families/{family}/features/{feature}/watch")
def watch_feature(
    request: Request, family: WriteFamily, feature: str, session: WriteSession, form: SentForm
) -> Response:
    row = logic.get(session, family, feature)
    logic.patch(row, FeaturePatch(watched=form.text("watched") == "yes"))
    if is_fragment(request):
        detail = logic.detail(session, family, row)
        return page(request, "features/watch.html", family=family.name, feature=detail)
    return back(address("families", family.name, "features", feature_id(row.number)))


@router.post("/families/{family}/features/{feature}")
def describe_feature(family: WriteFamily, feature: str, session: WriteSession, form: SentForm) -> Response:
    tags = form.text("tags").replace(",", " ").lower().split()
    body = validated(FeaturePatch, label=form.optional("label"), tags=tags)
    row = logic.get(session, family, feature)
    logic.patch(row, body)
    return back(address("families", family.name, "features", feature_id(row.number)))


@router.post("/families/{family}/features/{feature}/dependencies")
def find_dependencies(family: WriteFamily, feature: str, session: WriteSession, form: SentForm) -> Response:
    body = validated(DependenciesIn, features=[feature])
    checkpoint = checkpoints.get(session, family, form.text("checkpoint"))
    run = dependencies.create(session, family, checkpoint, body)
    return back(address("runs", run.id))


def _passages(session: Session, artifacts: ArtifactStore, family: Family, number: int) -> tuple[list[Activation], str]:
    """The strongest passages from the newest code that contains the feature; if there are none, the reason."""
    for code, _ in queries.codes(session, family.id):
        try:
            passages = Passages(artifacts, family, code)
        except FileNotFoundError:
            continue  # removed by retention; an older code may still have its files
        column = passages.column(number)
        if column is not None:
            if passages.documents is None:
                return [], "The family has no text, because its activations were precomputed."
            return passages.activations(column, PASSAGES), "The feature is never active on the probe corpus."
    return [], f"No stored code contains {feature_id(number)}."


def _trajectory(family: str, course: Trajectory) -> Plot:
    rows: list[list[Any]] = [
        [
            point.checkpoint,
            point.baseline,
            point.status,
            point.places,
            *(cell(point) for cell in lists.FIGURE_COLUMNS.values()),
        ]
        for point in course.points
    ]
    return Plot(
        "trajectory",
        "trajectory",
        "Projection ratio by checkpoint",
        ["checkpoint", "against", "status", "places", *lists.FIGURE_COLUMNS],
        rows,
        note="How much of the feature's direction is still written, compared with the checkpoint's parent, with its "
        "interval. The band marks what counts as present.",
        links=[address("families", family, "checkpoints", row[0]) for row in rows],
        options={"parents": parents(rows, [point.baseline for point in course.points])},
        drawn=len(rows) > 1,
    )  # fmt: skip


def _rate(point: Point) -> float | None:
    """Share of the positions where the feature is active in a checkpoint, by its own code."""
    before, ratio = point.firing_rate_before, point.firing_rate_ratio
    return None if before is None or ratio is None else before * ratio


def _firing_rate(family: str, course: Trajectory) -> Plot:
    """How often the feature is active, by checkpoint."""
    rows: list[list[Any]] = []
    points = [point for point in course.points if _rate(point) is not None]
    for point in points:
        ends = point.firing_rate_ratio_ci or (None, None)
        interval = [None if end is None else 100 * end * (point.firing_rate_before or 0) for end in ends]
        rows.append([point.checkpoint, 100 * (_rate(point) or 0), *interval, point.places])
    return Plot(
        "firing-rate", "lines", "Firing rate by checkpoint",
        ["checkpoint", "firing rate in %", "from", "to", "places"], rows,
        "Share of the positions where the feature is active. The interval is that of its ratio to the parent's.",
        [address("families", family, "checkpoints", row[0]) for row in rows],
        {"panels": [["", [1]]], "intervals": True, "parents": parents(rows, [point.baseline for point in points])},
        drawn=len(rows) > 1,
    )  # fmt: skip


def _at_hook_points(family: str, sources: FeatureSources, course: Trajectory) -> list[Plot]:
    """Projection ratio, strength and readability at each hook point, by checkpoint."""
    before = {point.checkpoint: point.baseline for point in course.points}
    hooks = list(dict.fromkeys(source.hook_point for reading in sources.data for source in reading.sources))
    plots = []
    if len(hooks) > 1:
        plots.append(_written_at(family, hooks, sources, before))
    for name, title, note in (
        ("strength", "Strength by hook point", "Norm of the decoder row, in units of the source's scale."),
        ("readability", "Readability by hook point", "Correlation of the source's read-out with the code."),
    ):
        rows: list[list[Any]] = []
        for reading in sources.data:
            at = {source.hook_point: getattr(source, name) for source in reading.sources}
            rows.append([reading.checkpoint, *(at.get(hook) for hook in hooks)])
        links = [address("families", family, "checkpoints", row[0]) for row in rows]
        options = {
            "panels": [["", list(range(1, len(hooks) + 1))]],
            "parents": parents(rows, [before.get(row[0]) for row in rows]),
        }
        plots.append(
            Plot(name, "lines", title, ["checkpoint", *hooks], rows, note, links, options, drawn=len(rows) > 1)
        )
    return plots


def _written_at(family: str, hooks: list[str], sources: FeatureSources, before: dict[str, str | None]) -> Plot:
    """The projection ratio at each hook point, by checkpoint."""
    rows: list[list[Any]] = []
    for reading in sources.data:
        at = {source.hook_point: source for source in reading.sources}
        row: list[Any] = [reading.checkpoint]
        for hook in hooks:
            ends = at[hook].projection_ratio_ci if hook in at else None
            row += [at[hook].projection_ratio if hook in at else None, *(ends or (None, None))]
        rows.append(row)
    columns = [name for hook in hooks for name in (hook, f"{hook} from", f"{hook} to")]
    places = [1 + 3 * place for place in range(len(hooks))]
    return Plot(
        "written", "lines", "Projection ratio by hook point", ["checkpoint", *columns], rows,
        "Compared with the parent's paired hook point, with its interval.",
        [address("families", family, "checkpoints", row[0]) for row in rows],
        {"panels": [["", places]], "intervals": True, "parents": parents(rows, [before.get(row[0]) for row in rows])},
        drawn=len(rows) > 1,
    )  # fmt: skip


def _dependencies(
    session: Session, artifacts: ArtifactStore, family: Family, number: int, course: Trajectory,
    now: str | None, before: str | None,
) -> dict[str, Any]:  # fmt: skip
    """A feature's dependencies in the newest examined checkpoint and in its nearest examined ancestor.

    `now` and `before` name other checkpoints. Empty if no checkpoint was examined.
    """
    graphs = dependency_queries.examined(session, family.id, number)
    examined = [point.checkpoint for point in course.points if any(name == point.checkpoint for name, _ in graphs)]
    if not examined:
        return {}

    def show(checkpoint: str, baseline: str | None, method: Method | None) -> Dependencies:
        return dependencies.get(
            session, artifacts, family, number, checkpoint=checkpoint, baseline=baseline, method=method
        )

    newest = show(now if now in examined else examined[-1], None, None)
    others = [name for name in examined if (name, newest.method) in graphs and name != newest.checkpoint]
    ancestors = _ancestors(newest.checkpoint, course)
    other = before if before in others else next((name for name in ancestors if name in others), None)
    if other:
        newest = show(newest.checkpoint, other, newest.method)
    return {
        "now": newest,
        "before": show(other, None, newest.method) if other else None,
        "examined": examined,
        "others": others,
    }


def _ancestors(checkpoint: str, course: Trajectory) -> Iterator[str]:
    """Ancestors of a checkpoint in which the feature was judged, the nearest first."""
    parents = {point.checkpoint: point.baseline for point in course.points}
    while (parent := parents.get(checkpoint)) is not None:
        yield parent
        checkpoint = parent


def _logits(row: Any) -> dict[str, list[Any]]:
    return {name: row.logits.get(name, [])[:10] for name in ("promoted", "demoted")}
