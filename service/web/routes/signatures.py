"""Signatures and their trajectories."""

from typing import Any

from fastapi import Request
from starlette.responses import Response

from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.families.lookup import ReadFamily
from featurewatch.service.kit.pages import Paging
from featurewatch.service.kit.sessions import ReadSession
from featurewatch.service.signatures import logic
from featurewatch.service.signatures.describe import sentence
from featurewatch.service.signatures.schemas import SignatureTrajectory
from featurewatch.service.web.access import pages
from featurewatch.service.web.plots import Plot, parents
from featurewatch.service.web.render import address, page

router = pages()


@router.get("/families/{family}/signatures")
def list_signatures(request: Request, family: ReadFamily, session: ReadSession, paging: Paging) -> Response:
    signatures = logic.page(session, family, paging)
    return page(
        request, "features/signatures.html", family=family.name, rows=signatures.data,
        sentences={row.name: sentence(row.baseline, row.newest) for row in signatures.data if row.newest},
        next_cursor=signatures.next_cursor,
    )  # fmt: skip


@router.get("/families/{family}/signatures/{signature}")
def show_signature(request: Request, family: ReadFamily, signature: str, session: ReadSession) -> Response:
    row = logic.get(session, family, signature)
    course = logic.trajectory(session, row)
    parent_of = checkpoint_queries.judged(session, family.id)
    above = parents(
        [[point.checkpoint] for point in course.points], [parent_of[point.checkpoint] for point in course.points]
    )
    return page(
        request, "features/signature.html",
        plots=[_strength(family.name, course, above), _separation(family.name, course, above)],
        family=family.name, signature=logic.view(session, family, row), course=course,
        sentences={point.checkpoint: sentence(course.baseline, point) for point in course.points},
    )  # fmt: skip


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
        f"Strength relative to {course.baseline}",
        ["checkpoint", "status", "strength ratio", "from", "to", "change", "change from", "change to", "size ratio",
         "size from", "size to", "probe ratio"],
        rows,
        note="How strongly the signature's features write the difference between its classes, with 95% intervals.",
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
        "Class separation (AUROC)",
        [
            "checkpoint",
            "chosen features",
            "reselected features",
            "raw activations",
            "random features (95th percentile)",
        ],
        rows,
        note="0.5 is chance. If random features separate the classes as well, rely on the strength.",
        links=_links(family, course),
        options={"panels": [["", [1, 2, 3, 4]]], "parents": above},
        drawn=len(rows) > 1,
    )
