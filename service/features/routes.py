"""`/v1/families/{family}/features`, `/diff` and `/codes`."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.features import codes, findings, logic, schemas, tables
from featurewatch.service.features.parameters import SelectionQuery
from featurewatch.service.features.sources import FeatureSources, of_feature
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import AppArtifacts, AppDatabase, ReadSession, WriteSession
from featurewatch.service.kit.turns import IN_TURN

router = APIRouter(prefix="/v1/families/{family}", tags=["features"], dependencies=[BY_METHOD])


@router.get("/features", summary="List the features of a checkpoint with their verdicts", dependencies=[IN_TURN])
def list_features(
    family: ReadFamily,
    session: ReadSession,
    selection: SelectionQuery,
    paging: Paging,
    checkpoint: Annotated[str | None, Query(description="Default: the newest judged one.")] = None,
    baseline: Annotated[str | None, Query(description="Default: the checkpoint's parent.")] = None,
) -> Page[schemas.FeatureRow]:
    comparison = logic.comparison(session, family, checkpoint, baseline)
    return logic.page(session, paging, comparison, selection.wanted, selection.order)


@router.get(
    "/diff",
    summary="Compare any two checkpoints",
    response_model_by_alias=True,
    dependencies=[IN_TURN],
)
def diff(
    family: ReadFamily,
    session: ReadSession,
    artifacts: AppArtifacts,
    selection: SelectionQuery,
    paging: Paging,
    from_: Annotated[str, Query(alias="from", description="The baseline.")],
    to: Annotated[str, Query(description="The checkpoint that is judged.")],
) -> schemas.Diff:
    comparison = logic.comparison(session, family, to, from_)
    return findings.diff(session, artifacts, paging, comparison, selection.wanted, selection.order)


@router.get("/features/{feature}", summary="Get a feature with its newest verdict")
def get_feature(family: ReadFamily, feature: str, session: ReadSession) -> schemas.FeatureDetail:
    return logic.detail(session, family, logic.get(session, family, feature))


@router.patch("/features/{feature}", summary="Update the label and tags of a feature, or watch it")
def patch_feature(
    family: WriteFamily, feature: str, body: schemas.FeaturePatch, session: WriteSession
) -> schemas.FeatureDetail:
    row = logic.get(session, family, feature)
    logic.patch(row, body)
    return logic.detail(session, family, row)


@router.get("/features/{feature}/trajectory", summary="Get a feature over all checkpoints", dependencies=[IN_TURN])
def trajectory(family: ReadFamily, feature: str, session: ReadSession) -> schemas.Trajectory:
    return logic.trajectory(session, family, logic.get(session, family, feature))


@router.get("/features/{feature}/sources", summary="Get a feature at every hook point of every checkpoint")
def sources(family: ReadFamily, feature: str, session: ReadSession) -> FeatureSources:
    return of_feature(session, family, logic.get(session, family, feature))


@router.get("/features/{feature}/examples", summary="List the positions where a feature is most active")
def examples(
    family: ReadFamily,
    feature: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> schemas.Examples:
    row = logic.get(session, family, feature)
    checkpoint, data = codes.examples(session, artifacts, family, row, limit)
    return schemas.Examples(id=feature_id(row.number), checkpoint=checkpoint, data=data)


@router.get(
    "/codes",
    summary="Download the sparse code, positions x features, as a CSR matrix for scipy.sparse.load_npz",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "An .npz file."}},
)
def get_codes(
    family: ReadFamily,
    request: Request,
    session: ReadSession,
    artifacts: AppArtifacts,
    checkpoint: Annotated[str | None, Query(description="Default: the newest one.")] = None,
) -> Response:
    code, name = codes.code_of(session, family, checkpoint)
    tag = f'"{code.artifact.rpartition("/")[2]}"'
    headers = {"ETag": tag, "Content-Disposition": f'attachment; filename="{family.name}-{name}-code.npz"'}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": tag})
    pieces = codes.stream_npz(artifacts.path(code.artifact), code.n_positions, code.n_features)
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)


@router.get(
    "/tables/{table}",
    summary="Download all verdicts, readings at hook points, or features as Parquet",
    response_class=StreamingResponse,
    responses={200: {"content": {tables.MEDIA_TYPE: {}}, "description": "A Parquet file; columns have units."}},
)
def get_table(family: ReadFamily, table: tables.TableName, database: AppDatabase) -> Response:
    pieces = tables.stream(database.read, family.id, table)
    headers = {"Content-Disposition": f'attachment; filename="{family.name}-{table}.parquet"'}
    return StreamingResponse(pieces, media_type=tables.MEDIA_TYPE, headers=headers)


@router.get("/codes/ids", summary="List the feature ids of the code's columns, in order")
def get_code_ids(
    family: ReadFamily,
    session: ReadSession,
    artifacts: AppArtifacts,
    checkpoint: Annotated[str | None, Query(description="Default: the newest one.")] = None,
) -> schemas.CodeColumns:
    code, name = codes.code_of(session, family, checkpoint)
    numbers = codes.tensors(artifacts, code.artifact)["feature_numbers"].tolist()
    return schemas.CodeColumns(
        checkpoint=name, generation=code.generation, feature_ids=[feature_id(number) for number in numbers]
    )
