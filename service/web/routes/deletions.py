"""What is asked before something is deleted: a page of its own, so that it is asked without scripts too."""

from fastapi import Request
from starlette.responses import Response

from featurewatch.service.auth.guard import ADMIN, WRITE
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints import routes as checkpoint_routes
from featurewatch.service.deletions import queries
from featurewatch.service.families import logic as families
from featurewatch.service.families import routes as family_routes
from featurewatch.service.kit.sessions import ReadSession, WriteSession
from featurewatch.service.runs import routes as runs
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.signatures import routes as signatures
from featurewatch.service.web.access import SentForm, pages
from featurewatch.service.web.render import address, back, page

router = pages()


@router.get("/families/{family}/delete", dependencies=[ADMIN])
def ask_family(request: Request, family: str, session: ReadSession) -> Response:
    row = family_routes.get_family(family, session)
    goes = [
        "its checkpoints with their verdicts and reports",
        f"its {row.n_features:,} features with their labels",
        "its signatures, calibrations, runs, logs, alerts and alert rules",
        "its artifacts: activations, dictionaries, codes, and the copy of the probe corpus",
    ]
    return _ask(request, "family", family, goes, [("/families", "Families"), (address("families", family), family)])


@router.post("/families/{family}/delete", dependencies=[ADMIN])
def delete_family(family: str, session: WriteSession, form: SentForm) -> Response:
    family_routes.delete_family(family, session)
    return back("/families")


@router.get("/families/{family}/checkpoints/{name}/delete", dependencies=[WRITE])
def ask_checkpoint(request: Request, family: str, name: str, session: ReadSession) -> Response:
    found = families.get(session, family)
    checkpoint = checkpoints.get(session, found, name)
    children = [child.name for child in queries.children(session, checkpoint.id)]
    parent = checkpoint_routes.get_checkpoint(family, name, session).parent
    goes = [
        "its verdicts, report, readings of signatures and dependency graphs",
        "its runs with their logs, and its alerts",
        "features that it introduced and no other checkpoint has",
    ]
    trail = [("/families", "Families"), (address("families", family), family)]
    here = (address("families", family, "checkpoints", name), name)
    return _ask(request, "checkpoint", name, goes, [*trail, here], children=children, parent=parent)


@router.post("/families/{family}/checkpoints/{name}/delete", dependencies=[WRITE])
def delete_checkpoint(family: str, name: str, session: WriteSession, form: SentForm) -> Response:
    checkpoint_routes.delete_checkpoint(family, name, session, reparent=form.one("reparent") == "yes")
    return back(address("families", family))


@router.get("/families/{family}/signatures/{signature}/delete", dependencies=[WRITE])
def ask_signature(request: Request, family: str, signature: str, session: ReadSession) -> Response:
    signatures.get_signature(family, signature, session)
    trail = [("/families", "Families"), (address("families", family), family)]
    here = (address("families", family, "signatures", signature), signature)
    return _ask(
        request, "signature", signature, ["its readings in all checkpoints, and its contrast set"], [*trail, here]
    )


@router.post("/families/{family}/signatures/{signature}/delete", dependencies=[WRITE])
def delete_signature(family: str, signature: str, session: WriteSession, form: SentForm) -> Response:
    signatures.delete_signature(family, signature, session)
    return back(address("families", family, "signatures"))


@router.get("/runs/{run_id}/delete", dependencies=[WRITE])
def ask_run(request: Request, run_id: str, session: ReadSession) -> Response:
    run = runs.get_run(run_id, session)
    goes = ["its attempts and its log"] + (["the calibration that it made"] if run.kind == RunKind.CALIBRATE else [])
    return _ask(request, "run", run_id, goes, [("/runs", "Runs"), (address("runs", run_id), run.kind)])


@router.post("/runs/{run_id}/delete", dependencies=[WRITE])
def delete_run(run_id: str, session: WriteSession, form: SentForm) -> Response:
    runs.delete_run(run_id, session)
    return back("/runs")


def _ask(
    request: Request,
    noun: str,
    name: str,
    goes: list[str],
    trail: list[tuple[str, str]],
    *,
    children: list[str] | None = None,
    parent: str | None = None,
) -> Response:
    """goes: what is deleted along. children: checkpoints that come from it, which `parent` can have."""
    return page(
        request, "access/delete.html", noun=noun, name=name, goes=goes, trail=trail, children=children or [],
        parent=parent,
    )  # fmt: skip
