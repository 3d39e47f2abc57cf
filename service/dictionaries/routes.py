"""`/v1/families/{family}/checkpoints/{name}/dictionary`."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.checkpoints.lookup import ReadCheckpoint
from featurewatch.service.dictionaries import logic
from featurewatch.service.families.lookup import ReadFamily
from featurewatch.service.kit.sessions import AppArtifacts, ReadSession

router = APIRouter(prefix="/v1/families/{family}/checkpoints/{name}", tags=["dictionaries"], dependencies=[BY_METHOD])


@router.get(
    "/dictionary",
    summary="What a checkpoint writes and reads for each feature at one hook point, as safetensors",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "A safetensors file."}},
)
def get_dictionary(
    family: ReadFamily,
    checkpoint: ReadCheckpoint,
    request: Request,
    session: ReadSession,
    artifacts: AppArtifacts,
    hook_point: Annotated[
        str | None, Query(max_length=100, description="Left out: the only one; 422 where there are several.")
    ] = None,
) -> Response:
    """Of m features and d dimensions, float32, on activations x~ = (x - `mean`) sqrt(d) / `rms`:

    `decoder` [m, d] and `bias` [d] give x~ from the family's code; `readout` [d, m], `readout_bias` [m] and
    `readout_slope` [m] read the code from x~: relu(x~ `readout` + `readout_bias`) / max(`readout_slope`, 0.25).
    `reference` [m, d] is what the checkpoint was compared with. Columns are those of `/codes/ids?checkpoint={name}`.
    """
    source = logic.of_source(session, checkpoint, hook_point)
    tag = f'"{str(source.dictionary).rpartition("/")[2]}"'
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": tag})
    return FileResponse(
        logic.file_of(artifacts, source),
        media_type="application/octet-stream",
        filename=f"{family.name}-{checkpoint.name}-{source.hook_point}.safetensors",
        headers={"ETag": tag},
    )
