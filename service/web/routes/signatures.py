"""Signatures and their course over checkpoints."""

from typing import Any

from fastapi import Request
from starlette.responses import Response

from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.families import logic as families
from featurewatch.service.kit.pages import Paging
from featurewatch.service.kit.sessions import ReadSession
from featurewatch.service.signatures import routes as signatures
from featurewatch.service.signatures.describe import sentence
from featurewatch.service.signatures.schemas import SignatureTrajectory
from featurewatch.service.web.access import pages
from featurewatch.service.web.plots import Plot, parents
from featurewatch.service.web.render import address, page

router = pages()


@router.get("/families/{family}/signatures")
def list_signatures(request: Request, family: str, session: ReadSession, paging: Paging) -> Response:
    found = signatures.list_signatures(family, session, paging)
    said = {one.name: sentence(one.baseline, one.newest) for one in found.data if one.newest}
    return page(
        request, "features/signatures.html", family=family, rows=found.data, said=said, next_cursor=found.next_cursor
    )


@router.get("/families/{family}/signatures/{signature}")
def show_signature(request: Request, family: str, signature: str, session: ReadSession) -> Response:
    found = signatures.get_signature(family, signature, session)
    course = signatures.trajectory(family, signature, session)
    said = {point.checkpoint: sentence(course.baseline, point) for point in course.points}
    before = checkpoint_queries.judged(session, families.get(session, family).id)
    above = parents(
        [[point.checkpoint] for point in course.points], [before[point.checkpoint] for point in course.points]
    )
    plots = [_strength(family, course, above), _separation(family, course, above)]
    return page(
        request, "features/signature.html", plots=plots, family=family, signature=found, course=course, said=said
    )


def _links(family: str, course: SignatureTrajectory) -> list[str]:
    return [address("families", family, "checkpoints", point.checkpoint) for point in course.points]


def _strength(family: str, course: SignatureTrajectory, above: list[int | None]) -> Plot:
    rows: list[list[Any]] = []
    for point in course.points:
        figures = point.figures
        ends = [figures.strength_ratio_ci, figures.change_ci, figures.size_ratio_ci]
        strength, change, size = (end or (None, None) for end in ends)
        rows.append(
            [point.checkpoint, point.status, figures.strength_ratio, *strength, figures.change, *change,
             figures.size_ratio, *size, figures.probe_ratio]
        )  # fmt: skip
    return Plot(
        "strength",
        "trajectory",
        f"Strength over that at {course.baseline}",
        ["checkpoint", "status", "strength ratio", "from", "to", "change", "change from", "change to", "size ratio",
         "size from", "size to", "probe ratio"],
        rows,
        note="How much the signature's features write of the difference between its classes, with 95% intervals.",
        links=_links(family, course),
        options={"columns": ["strength ratio", "from", "to"], "parents": above},
        drawn=len(rows) > 1,
    )  # fmt: skip


def _separation(family: str, course: SignatureTrajectory, above: list[int | None]) -> Plot:
    rows: list[list[Any]] = [
        [point.checkpoint, point.figures.auroc, point.figures.reselected_auroc, point.figures.probe_auroc,
         point.figures.random_auroc_95]
        for point in course.points
    ]  # fmt: skip
    return Plot(
        "separation",
        "lines",
        "How well its classes are told apart (AUROC)",
        ["checkpoint", "its features", "features chosen anew", "raw activations", "random features, 95%"],
        rows,
        note="0.5 is chance. Where random features separate as well, go by the strength.",
        links=_links(family, course),
        options={"panels": [["", [1, 2, 3, 4]]], "parents": above},
        drawn=len(rows) > 1,
    )
