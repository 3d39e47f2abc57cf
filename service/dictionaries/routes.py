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
    summary="Get the decoder and read-out of every feature at one hook point, as safetensors",
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
        str | None, Query(max_length=100, description="May be omitted if there is only one; otherwise 422.")
    ] = None,
) -> Response:
    """For m features and d dimensions, in float32, on normalised activations x~ = (x - `mean`) sqrt(d) / `rms`:

    `decoder` [m, d] and `bias` [d] reconstruct x~ from the family's code; `readout` [d, m], `readout_bias` [m] and
    `readout_slope` [m] read the code from x~: relu(x~ `readout` + `readout_bias`) / max(`readout_slope`, 0.25).
    `reference` [m, d] is the decoder it was compared with. Columns are those of `/codes/ids?checkpoint={name}`.
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
