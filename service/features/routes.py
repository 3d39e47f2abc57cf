"""`/v1/families/{family}/features`, `/diff` and `/codes`."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.families import logic as families
from featurewatch.service.features import codes, findings, logic, tables
from featurewatch.service.features.queries import Filter
from featurewatch.service.features.schemas import (
    CodeColumns,
    Diff,
    Examples,
    FeatureDetail,
    FeaturePatch,
    FeatureRow,
    Point,
    Trajectory,
)
from featurewatch.service.features.sorting import Order, SortName, order_of
from featurewatch.service.features.sources import FeatureSources, of_feature
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.pages import Page, Pager, Paging
from featurewatch.service.kit.sessions import AppArtifacts, AppDatabase, ReadSession, WriteSession
from featurewatch.service.kit.turns import IN_TURN
from featurewatch.service.models import Feature
from featurewatch.service.verdicts.figures import Direction
from featurewatch.service.verdicts.statuses import Status

router = APIRouter(prefix="/v1/families/{family}", tags=["features"], dependencies=[BY_METHOD])

StatusQuery = Annotated[list[Status] | None, Query(description="May be given several times.")]
TextQuery = Annotated[
    str | None, Query(max_length=200, description="Part of a label, automatic ones too, or of a top token; or an id.")
]
TagQuery = Annotated[str | None, Query(max_length=64)]
WatchedQuery = Annotated[bool | None, Query()]
SortQuery = Annotated[
    SortName,
    Query(description="Missing values go last. `least_change`: by the smallest change that the interval allows."),
]
MinChangeQuery = Annotated[
    float | None,
    Query(ge=0, description="Least `change`: factors of two, so 1 is halved or doubled. What is in the band has 0."),
]
MaxQQuery = Annotated[
    float | None,
    Query(ge=0, le=1, description="Largest `q_value`. Features that have none (new ones) are left out."),
]
OrderQuery = Annotated[Direction | None, Query(description="Left out: what is natural for the sort key.")]


@router.get("/features", summary="Features with their verdict in a checkpoint", dependencies=[IN_TURN])
def list_features(
    family: str,
    session: ReadSession,
    paging: Paging,
    checkpoint: Annotated[str | None, Query(description="Left out: the newest judged one.")] = None,
    baseline: Annotated[str | None, Query(description="Left out: the checkpoint's parent.")] = None,
    status: StatusQuery = None,
    q: TextQuery = None,
    tag: TagQuery = None,
    watched: WatchedQuery = None,
    min_change: MinChangeQuery = None,
    max_q: MaxQQuery = None,
    sort: SortQuery = "change",
    order: OrderQuery = None,
) -> Page[FeatureRow]:
    asked = logic.comparison(session, families.get(session, family), checkpoint, baseline)
    wanted = Filter(tuple(status or ()), q, tag, watched, min_change, max_q)
    data, cursor = page_of(session, paging, asked, wanted, order_of(sort, order))
    return Page(data=data, next_cursor=cursor)


@router.get(
    "/diff",
    summary="Any two checkpoints, in words and feature by feature",
    response_model_by_alias=True,
    dependencies=[IN_TURN],
)
def diff(
    family: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    paging: Paging,
    from_: Annotated[str, Query(alias="from", description="The baseline.")],
    to: Annotated[str, Query(description="The checkpoint that is judged.")],
    status: StatusQuery = None,
    q: TextQuery = None,
    tag: TagQuery = None,
    watched: WatchedQuery = None,
    min_change: MinChangeQuery = None,
    max_q: MaxQQuery = None,
    sort: SortQuery = "change",
    order: OrderQuery = None,
) -> Diff:
    asked = logic.comparison(session, families.get(session, family), to, from_)
    wanted = Filter(tuple(status or ()), q, tag, watched, min_change, max_q)
    return diff_of(session, artifacts, paging, asked, wanted, order_of(sort, order))


def diff_of(
    session: Session,
    artifacts: ArtifactStore,
    paging: Pager,
    asked: logic.Comparison,
    wanted: Filter,
    order: Order,
) -> Diff:
    """A comparison in words, with a page of its features."""
    assert asked.baseline is not None
    rows, cursor = _page(session, paging, asked, wanted, order)
    found = logic.counts(session, asked)
    counts = {name: found.get(name, 0) for name in Status}
    told = findings.summary(session, artifacts, asked, found, wanted, also=rows)
    names = {"from": asked.baseline.name, "to": asked.checkpoint.name}
    data = [asked.shown[number] for number in rows]
    return Diff(**dict(told), **names, counts=counts, data=data, next_cursor=cursor)


def page_of(
    session: Session, paging: Pager, asked: logic.Comparison, wanted: Filter, order: Order
) -> tuple[list[FeatureRow], str | None]:
    """A page of a comparison's features, and the cursor of the next one."""
    numbers, cursor = _page(session, paging, asked, wanted, order)
    shown = logic.shown(session, asked, numbers)
    return [shown[number] for number in numbers], cursor


def _page(
    session: Session, paging: Pager, asked: logic.Comparison, wanted: Filter, order: Order
) -> tuple[list[int], str | None]:
    """The numbers of a page's features."""
    name = f"{asked.checkpoint.id}:{asked.baseline and asked.baseline.id}:{wanted}:{order}"
    found = logic.rows(session, asked, wanted=wanted, order=order, after=paging.after(name), limit=paging.limit)
    kept, cursor = paging.page(found, name, order.values)
    return [row.feature for row in kept], cursor


@router.get("/features/{feature}", summary="One feature, with its newest verdict")
def get_feature(family: str, feature: str, session: ReadSession) -> FeatureDetail:
    found = families.get(session, family)
    return logic.detail(session, found, logic.get(session, found, feature))


@router.patch("/features/{feature}", summary="Label, tag or watch a feature")
def patch_feature(family: str, feature: str, body: FeaturePatch, session: WriteSession) -> FeatureDetail:
    found = families.get(session, family)
    row = logic.get(session, found, feature)
    logic.patch(row, body)
    return logic.detail(session, found, row)


@router.get("/features/{feature}/trajectory", summary="One feature over all checkpoints", dependencies=[IN_TURN])
def trajectory(family: str, feature: str, session: ReadSession) -> Trajectory:
    found = families.get(session, family)
    row = logic.get(session, found, feature)
    return trajectory_of(row, logic.trajectory(session, found, row))


def trajectory_of(row: Feature, points: list[Point]) -> Trajectory:
    """A feature over all checkpoints."""
    return Trajectory(id=feature_id(row.number), label=row.label, auto_label=row.auto_label, points=points)


@router.get("/features/{feature}/sources", summary="One feature at every hook point of every checkpoint")
def sources(family: str, feature: str, session: ReadSession) -> FeatureSources:
    found = families.get(session, family)
    return of_feature(session, found, logic.get(session, found, feature))


@router.get("/features/{feature}/examples", summary="Where a feature fires most strongly")
def examples(
    family: str,
    feature: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Examples:
    found = families.get(session, family)
    row = logic.get(session, found, feature)
    checkpoint, data = codes.examples(session, artifacts, found, row, limit)
    return Examples(id=feature_id(row.number), checkpoint=checkpoint, data=data)


@router.get(
    "/codes",
    summary="The sparse code, positions x features, as scipy's save_npz writes CSR",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "An .npz file."}},
)
def get_codes(
    family: str,
    request: Request,
    session: ReadSession,
    artifacts: AppArtifacts,
    checkpoint: Annotated[str | None, Query(description="Left out: the newest one.")] = None,
) -> Response:
    code, name = codes.code_of(session, families.get(session, family), checkpoint)
    tag = f'"{code.artifact.rpartition("/")[2]}"'
    headers = {"ETag": tag, "Content-Disposition": f'attachment; filename="{family}-{name}-code.npz"'}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": tag})
    pieces = codes.stream_npz(artifacts.path(code.artifact), code.n_positions, code.n_features)
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)


@router.get(
    "/tables/{table}",
    summary="All verdicts, readings at hook points, or features, as Parquet",
    response_class=StreamingResponse,
    responses={200: {"content": {tables.MEDIA_TYPE: {}}, "description": "A Parquet file; columns have units."}},
)
def get_table(family: str, table: tables.TableName, session: ReadSession, database: AppDatabase) -> Response:
    pieces = tables.stream(database.read, families.get(session, family).id, table)
    headers = {"Content-Disposition": f'attachment; filename="{family}-{table}.parquet"'}
    return StreamingResponse(pieces, media_type=tables.MEDIA_TYPE, headers=headers)


@router.get("/codes/ids", summary="Feature ids of the code's columns, in order")
def get_code_ids(
    family: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    checkpoint: Annotated[str | None, Query(description="Left out: the newest one.")] = None,
) -> CodeColumns:
    code, name = codes.code_of(session, families.get(session, family), checkpoint)
    numbers = codes.feature_numbers(artifacts, code).tolist()
    return CodeColumns(
        checkpoint=name, generation=code.generation, feature_ids=[feature_id(number) for number in numbers]
    )
