"""Records the readings of signatures and raises their alerts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation as alerts
from featurewatch.service.alerts.events import SignaturesRead
from featurewatch.service.models import Reading
from featurewatch.service.signatures import logic, queries
from featurewatch.service.verdicts import queries as verdicts


@dataclass(frozen=True)
class SignatureResult:
    """A worker's reading of one signature in a checkpoint."""

    signature_id: str
    status: str
    reason: str | None
    figures: dict[str, Any]
    carriers: list[dict[str, Any]]
    chosen: list[dict[str, Any]] | None
    """The features that the baseline's own reading chose; None for other checkpoints."""
    activations: str


def record(session: Session, checkpoint_id: str, results: Sequence[SignatureResult]) -> dict[str, Any]:
    """Write readings, replacing earlier ones, and evaluate the alert rules. Returns the run's result."""
    checkpoint = verdicts.checkpoint(session, checkpoint_id)
    family = verdicts.family(session, checkpoint.family_id)
    signatures = {row.id: row for row in queries.by_ids(session, [result.signature_id for result in results])}
    rows = []
    for result in results:
        signature_id = result.signature_id
        if signature_id not in signatures:
            continue  # deleted while it was read
        if result.chosen is not None:
            signatures[signature_id].chosen = result.chosen
        before = logic.previous(session, signature_id, checkpoint)
        row = queries.reading(session, signature_id, checkpoint_id) or Reading(
            signature_id=signature_id, checkpoint_id=checkpoint_id
        )
        row.status, row.previous_status = result.status, before.status if before else None
        row.reason, row.figures, row.carriers = result.reason, result.figures, result.carriers
        row.activations = result.activations
        session.add(row)
        rows.append((row, signatures[signature_id]))
    raised = alerts.evaluate(session, checkpoint, SignaturesRead(family_id=family.id, readings=rows))
    statuses = {signature.name: row.status for row, signature in rows}
    return {"family": family.name, "checkpoint": checkpoint.name, "signatures": statuses, "alerts": len(raised)}
