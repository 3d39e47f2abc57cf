"""Confirmation pages for deletions, which work without scripts."""

from fastapi import Request
from starlette.responses import Response

from featurewatch.service.auth.guard import ADMIN, WRITE
from featurewatch.service.checkpoints.lookup import ReadCheckpoint, WriteCheckpoint
from featurewatch.service.deletions import checkpoints, families, queries
from featurewatch.service.deletions import signatures as deletion
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.kit.sessions import ReadSession, WriteSession
from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.signatures import logic as signatures
from featurewatch.service.web.access import SentForm, pages
from featurewatch.service.web.render import address, back, page

router = pages()


@router.get("/families/{family}/delete", dependencies=[ADMIN])
def ask_family(request: Request, family: ReadFamily) -> Response:
    goes = [
        "its checkpoints, with their verdicts and reports",
        f"its {family.n_features:,} features, with their labels",
        "its signatures, calibrations, runs, logs, alerts and alert rules",
        "its artifacts: activations, dictionaries, codes and its copy of the probe corpus",
    ]
    return _ask(request, "family", family.name, goes, _trail(family))


@router.post("/families/{family}/delete", dependencies=[ADMIN])
def delete_family(family: WriteFamily, session: WriteSession) -> Response:
    families.delete(session, family)
    return back("/families")


@router.get("/families/{family}/checkpoints/{name}/delete", dependencies=[WRITE])
def ask_checkpoint(request: Request, family: ReadFamily, checkpoint: ReadCheckpoint, session: ReadSession) -> Response:
    children = [child.name for child in queries.children(session, checkpoint.id)]
    parent = session.get(Checkpoint, checkpoint.parent_id) if checkpoint.parent_id else None
    goes = [
        "its verdicts, report, signature readings and dependency graphs",
        "its runs, with their logs, and its alerts",
        "features that first appeared in it and exist in no other checkpoint",
    ]
    here = (address("families", family.name, "checkpoints", checkpoint.name), checkpoint.name)
    return _ask(
        request, "checkpoint", checkpoint.name, goes, [*_trail(family), here], children=children,
        parent=parent.name if parent else None,
    )  # fmt: skip


@router.post("/families/{family}/checkpoints/{name}/delete", dependencies=[WRITE])
def delete_checkpoint(
    family: WriteFamily, checkpoint: WriteCheckpoint, session: WriteSession, form: SentForm
) -> Response:
    checkpoints.delete(session, family, checkpoint, reparent=form.text("reparent") == "yes")
    return back(address("families", family.name))


@router.get("/families/{family}/signatures/{signature}/delete", dependencies=[WRITE])
def ask_signature(request: Request, family: ReadFamily, signature: str, session: ReadSession) -> Response:
    signatures.get(session, family, signature)
    here = (address("families", family.name, "signatures", signature), signature)
    goes = ["its readings in all checkpoints and its contrast set"]
    return _ask(request, "signature", signature, goes, [*_trail(family), here])


@router.post("/families/{family}/signatures/{signature}/delete", dependencies=[WRITE])
def delete_signature(family: WriteFamily, signature: str, session: WriteSession) -> Response:
    deletion.delete(session, family, signatures.get(session, family, signature))
    return back(address("families", family.name, "signatures"))


@router.get("/runs/{run_id}/delete", dependencies=[WRITE])
def ask_run(request: Request, run_id: str, session: ReadSession) -> Response:
    run, _, _ = runs.get(session, run_id)
    goes = ["its attempts and its log"]
    if run.kind == RunKind.CALIBRATE:
        goes.append("the calibration that it produced")
    return _ask(request, "run", run_id, goes, [("/runs", "Runs"), (address("runs", run_id), run.kind)])


@router.post("/runs/{run_id}/delete", dependencies=[WRITE])
def delete_run(run_id: str, session: WriteSession) -> Response:
    runs.delete(session, runs.get(session, run_id)[0])
    return back("/runs")


def _trail(family: Family) -> list[tuple[str, str]]:
    return [("/families", "Families"), (address("families", family.name), family.name)]


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
    """The confirmation page. goes: what is deleted along with it. children: checkpoints to hand over to `parent`."""
    return page(
        request, "access/delete.html", noun=noun, name=name, goes=goes, trail=trail, children=children or [],
        parent=parent,
    )  # fmt: skip
