"""Deletes a signature."""

from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation as alerts
from featurewatch.service.models import Family, Signature
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs import queries as run_queries
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.runs.states import RunState


def delete(session: Session, family: Family, row: Signature) -> None:
    """Delete a signature and its readings, and take it out of queued runs; a run without signatures is cancelled."""
    for run in run_queries.unfinished(session, family.id, kind=RunKind.SIGNATURE):
        others = [signature_id for signature_id in run.params["signatures"] if signature_id != row.id]
        if run.state != RunState.QUEUED or len(others) == len(run.params["signatures"]):
            continue
        if others:
            run.params = run.params | {"signatures": others}
        else:
            runs.request_cancel(session, run)
    alerts.forget_signature(session, family, row)
    session.delete(row)
    session.flush()
