"""Deletes a checkpoint in one transaction, so that nothing is ever judged against a deleted checkpoint.

The vacuum removes its artifacts later: others may refer to them, and a backup of the store may be in progress.
"""

from collections import Counter
from collections.abc import Sequence

from sqlalchemy.orm import Session

from featurewatch.service.alerts import raising
from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.deletions import queries
from featurewatch.service.kit.problems import ConflictError
from featurewatch.service.models import Alert, Checkpoint, Family, Reading, Run, Verdict
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs import queries as run_queries
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts import stored
from featurewatch.service.verdicts.compare import compare
from featurewatch.service.verdicts.figures import COLUMNS
from featurewatch.service.verdicts.past import RATIOS
from featurewatch.service.verdicts.table import VerdictRow
from featurewatch.service.webhooks import logic as webhooks


def delete(session: Session, family: Family, checkpoint: Checkpoint, *, reparent: bool = False) -> None:
    """Delete a checkpoint with its runs, verdicts, alerts, and the features that no other checkpoint has.

    With `reparent`, its children are attached to its parent and re-judged against it from stored measurements. Raises
    ConflictError if a worker has a run of the family, if there are children and `reparent` is False, or if something
    else depends on the checkpoint.
    """
    runs.require_idle(session, family.id)
    children = queries.children(session, checkpoint.id)
    parent = verdicts.checkpoint(session, checkpoint.parent_id) if checkpoint.parent_id else None
    _check(session, family, checkpoint, parent, children, reparent=reparent)
    runs.cancel_all(session, run_queries.unfinished(session, family.id, checkpoint_id=checkpoint.id))
    data = {
        "family": family.name,
        "checkpoint": checkpoint.name,
        "parent": parent.name if parent else None,
        "children": [child.name for child in children],
    }
    judged = [child for child in children if child.state == "judged"]
    if parent is not None:
        for child, rows in [(child, _rows(session, family, child, parent)) for child in judged]:
            _replace_verdicts(session, family, child, rows)
    for child in children:
        child.parent_id = checkpoint.parent_id
        child.deleted_parents = [*child.deleted_parents, {"id": checkpoint.id, "name": checkpoint.name}]
    session.flush()
    heir = judged[0] if judged else None
    _move_alerts(session, checkpoint, heir)
    _move_features(session, checkpoint, heir)
    run_queries.remove(session, Run.checkpoint_id == checkpoint.id)
    queries.drop(session, Reading, checkpoint.id)
    session.flush()
    session.delete(checkpoint)
    session.flush()
    _update_previous_readings(session, family, {child.id for child in children})
    webhooks.emit(session, type="checkpoint.deleted", family_id=family.id, data=data, key=checkpoint.id)


def _check(
    session: Session,
    family: Family,
    checkpoint: Checkpoint,
    parent: Checkpoint | None,
    children: Sequence[Checkpoint],
    *,
    reparent: bool,
) -> None:
    names = [child.name for child in children]
    if names and not reparent:
        raise ConflictError(
            f"{checkpoint.name} has children: {', '.join(names)}. Delete them first, or attach them to the parent of "
            f"{checkpoint.name} with `reparent=true`.",
            code="checkpoint-has-children",
            title="Checkpoint has children",
            children=names,
        )
    judged = any(child.state == "judged" for child in children)
    generation = queries.fitted_generation(session, checkpoint.id) if judged else None
    if signatures := queries.signatures_from(session, checkpoint.id):
        reason = f"it is the baseline of {', '.join(signatures)}. Delete these signatures first"
    elif names and parent is None:
        reason = (
            f"it is the first of its lineage, so {', '.join(names)} cannot be attached to its parent. Delete them "
            f"first, or delete the family {family.name}"
        )
    elif generation is not None:
        reason = f"its run fitted generation {generation}, which {', '.join(names)} use. Delete them first"
    else:
        return
    raise ConflictError(
        f"{checkpoint.name} cannot be deleted: {reason}.", code="checkpoint-in-use", title="Checkpoint in use"
    )


def _rows(session: Session, family: Family, child: Checkpoint, baseline: Checkpoint) -> list[VerdictRow]:
    """A child's verdicts against its new parent, as a request for that comparison would return them."""
    depth = len(verdicts.ancestors(session, child)) - 1
    return compare(session, family, child, baseline, comparison=max(1, depth)).rows()


def _replace_verdicts(session: Session, family: Family, child: Checkpoint, rows: Sequence[VerdictRow]) -> None:
    """Replace a child's verdicts, and drop measurements against the deleted parent."""
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    columns |= {"checkpoint_id": [child.id] * len(rows), "family_id": [family.id] * len(rows)}
    queries.drop(session, Verdict, child.id)
    verdicts.add_verdicts(session, columns)
    queries.drop_measurements(session, child.id, RATIOS, excluding=verdicts.ALL_HOOKS)
    queries.unpair(session, child.id)
    counts = {
        "statuses": dict(Counter(row.status for row in rows)),
        "places": dict(Counter(row.places for row in rows if row.places is not None)),
    }
    quality = {name: value for name, value in (child.quality or {}).items() if name != "size_factor"}
    child.quality = quality | counts
    verdicts.revise(session, child)
    stored.pack(session, child.id)
    for below in queries.children(session, child.id):
        if below.state == "judged":
            queries.update_previous_statuses(session, below.id, child.id)
            verdicts.revise(session, below)
            stored.pack(session, below.id)


def _move_alerts(session: Session, checkpoint: Checkpoint, heir: Checkpoint | None) -> None:
    """Move unresolved alerts to the first child, or resolve them if there is none. Delete resolved ones."""
    for alert in queries.unresolved_alerts(session, checkpoint.id):
        key = alert.key.replace(checkpoint.id, heir.id) if heir else ""
        if heir is None or queries.has_unresolved(session, key):
            raising.resolve(session, alert)
        else:
            alert.checkpoint_id, alert.key = heir.id, key
    session.flush()
    queries.drop(session, Alert, checkpoint.id)


def _move_features(session: Session, checkpoint: Checkpoint, heir: Checkpoint | None) -> None:
    """Attribute the features that a checkpoint introduced to others that have them, and remove the rest.

    A discovered feature's verdicts in ancestors were measured by the run that discovered it, and are removed with it.
    """
    family_id = checkpoint.family_id
    if heir is not None:
        queries.attribute(session, family_id, checkpoint.id, heir.id)
    else:
        by_owner: dict[str, list[int]] = {}
        for number, owner in queries.judged_elsewhere(session, checkpoint, origins=["fitted", "emerged"]).items():
            by_owner.setdefault(owner, []).append(number)
        for owner, numbers in by_owner.items():
            queries.attribute(session, family_id, checkpoint.id, owner, numbers)
        queries.unretire(session, family_id, checkpoint.id)
    others = [] if heir else queries.with_verdicts_of(session, checkpoint)
    verdicts.clear(session, checkpoint.id)
    if heir is None:
        queries.drop_features(session, checkpoint)
    for other in others:
        verdicts.revise(session, other)
        stored.pack(session, other.id)


def _update_previous_readings(session: Session, family: Family, reparented: set[str]) -> None:
    """Set `previous_status` of readings in and below reparented checkpoints, from the nearest ancestor with one."""
    parents = checkpoint_queries.lineage(session, family.id)
    readings = {(row.signature_id, row.checkpoint_id): row for row in queries.readings(session, family.id)}
    for (signature_id, checkpoint_id), row in readings.items():
        above: str | None = checkpoint_id
        passed = False
        while above is not None and (above == checkpoint_id or (signature_id, above) not in readings):
            passed |= above in reparented
            above = parents.get(above)
        if passed:
            row.previous_status = readings[signature_id, above].status if above is not None else None
    session.flush()
