"""`/docs`: the API in the browser."""

from fastapi import APIRouter, Response

from featurewatch.service.web.render import POLICY, bare

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def show() -> Response:
    """Every operation, to read and to try. Open to all as `/openapi.json` is, and without a cookie."""
    return bare("api.html", {"Content-Security-Policy": POLICY})
