"""`/docs`: the API browser."""

from fastapi import APIRouter, Response

from featurewatch.service.web.render import POLICY, bare

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def show() -> Response:
    """Swagger UI. Public like `/openapi.json`, and sets no cookie."""
    return bare("api.html", {"Content-Security-Policy": POLICY})
