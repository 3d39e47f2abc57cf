"""Signatures: making and finding them, and what a worker's reading writes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation as alerts
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.config import Settings as Configuration
from featurewatch.service.features import queries as features
from featurewatch.service.kit.artifacts import ArtifactStore, content_key
from featurewatch.service.kit.ids import parse_feature_id
from featurewatch.service.kit.pages import Page, Pager
from featurewatch.service.kit.paths import PathRefusedError, resolve_under_roots
from featurewatch.service.kit.problems import ConflictError, NotFoundError, UnprocessableError
from featurewatch.service.models import Checkpoint, Family, Reading, Run, Signature
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs import queries as run_queries
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.runs.states import RunState
from featurewatch.service.signatures import contrast, queries
from featurewatch.service.signatures.schemas import (
    ReadingView,
    Settings,
    SignatureCourse,
    SignatureIn,
    SignatureView,
    features_view,
    reading_view,
)
from featurewatch.service.store.ledger import SessionLedger
from featurewatch.service.verdicts import queries as verdicts

TURN = 1.25
"""A signature turns where its strength changed by more than this factor, with the whole interval."""


def create(
    session: Session, settings: Configuration, artifacts: ArtifactStore, family: Family, body: SignatureIn
) -> tuple[Signature, list[tuple[Run, str]]]:
    """A signature, and a run for each judged checkpoint that reads it there: the baseline's first.

    Raises 404 for the baseline, 409 where the name is used, 422 for an invalid contrast set.
    """
    _check_hook_points(family, body.settings)
    rows = contrast.kept(body.rows if body.rows is not None else _rows_at(str(body.uri), settings))
    if body.settings.position == "answer" and not all(row.answer for row in rows):
        raise UnprocessableError("`position: answer` needs an answer in every row.", code="contrast-without-answers")
    baseline = checkpoints.get_judged(session, family, body.baseline)
    signature = Signature(
        family_id=family.id,
        name=body.name,
        description=body.description,
        settings=body.settings.model_dump(mode="json"),
        contrast=_keep(session, artifacts, family, contrast.lines(rows)),
        n_rows=len(rows),
        n_positive=sum(row.label for row in rows),
        baseline_id=baseline.id,
    )
    try:
        with session.begin_nested():
            queries.add(session, signature)
    except IntegrityError:
        raise ConflictError(f"{family.name} has a signature {body.name} already.", code="name-used") from None
    others = [one for one in verdicts.judged(session, family.id) if one.id != baseline.id]
    return signature, [(queue(session, one, [signature]), one.name) for one in [baseline, *others]]


def queue(session: Session, checkpoint: Checkpoint, signatures: Sequence[Signature]) -> Run:
    """A run that reads signatures in a judged checkpoint."""
    return runs.create(
        session,
        family_id=checkpoint.family_id,
        checkpoint_id=checkpoint.id,
        kind=RunKind.SIGNATURE,
        params={"signatures": [one.id for one in signatures]},
    )


def queue_all(session: Session, checkpoint_id: str) -> Run | None:
    """A run that reads every signature of the family in a checkpoint that was just judged; None: it has none."""
    checkpoint = verdicts.checkpoint(session, checkpoint_id)
    found = queries.of_family(session, checkpoint.family_id)
    return queue(session, checkpoint, found) if found else None


def get(session: Session, family: Family, name: str) -> Signature:
    """A signature by name, or 404."""
    found = queries.by_name(session, family.id, name)
    if found is None:
        raise NotFoundError(f"The family {family.name} has no signature {name}.", code="unknown-signature")
    return found


def delete(session: Session, family: Family, row: Signature) -> None:
    """Forget a signature with its readings. Queued runs read the others that they were asked for, or are cancelled."""
    for run in run_queries.unfinished(session, family.id, kind=RunKind.SIGNATURE):
        others = [one for one in run.params["signatures"] if one != row.id]
        if run.state != RunState.QUEUED or len(others) == len(run.params["signatures"]):
            continue
        if others:
            run.params = run.params | {"signatures": others}
        else:
            runs.request_cancel(session, run)
    alerts.forget_signature(session, family, row)
    queries.remove(session, row)


def page(session: Session, family: Family, paging: Pager) -> Page[SignatureView]:
    """A page of a family's signatures, by name."""
    order = f"signatures:{family.id}"
    found = queries.page(session, family.id, after=paging.after(order), limit=paging.limit)
    rows, cursor = paging.page(found, order, lambda row: (row.name,))
    return Page(data=[view(session, family, row) for row in rows], next_cursor=cursor)


def view(session: Session, family: Family, row: Signature) -> SignatureView:
    """A signature as the API shows it."""
    newest = queries.newest(session, row.id)
    baseline = verdicts.checkpoint(session, row.baseline_id)
    return SignatureView(
        id=row.id,
        family=family.name,
        name=row.name,
        description=row.description,
        baseline=baseline.name,
        settings=Settings.model_validate(row.settings),
        rows=row.n_rows,
        positive=row.n_positive,
        features=None if row.chosen is None else features_view(row.chosen, _names(session, row.family_id, row.chosen)),
        newest=_reading(session, *newest) if newest else None,
        created_at=row.created_at,
    )


def course(session: Session, row: Signature) -> SignatureCourse:
    """A signature over all checkpoints, and where it turned."""
    points = [_reading(session, *pair) for pair in queries.readings(session, row.id)]
    return SignatureCourse(
        name=row.name,
        baseline=verdicts.checkpoint(session, row.baseline_id).name,
        turns_at=_turn(points),
        points=points,
    )


def at_checkpoint(session: Session, checkpoint: Checkpoint) -> list[tuple[str, str, ReadingView]]:
    """(name, baseline, reading) of every signature that was read in a checkpoint, by name."""
    found = queries.at_checkpoint(session, checkpoint.id)
    named = _names(session, checkpoint.family_id, [one for reading, _, _ in found for one in reading.carriers])
    return [(name, baseline, reading_view(reading, checkpoint.name, named)) for reading, name, baseline in found]


def _turn(points: Sequence[ReadingView]) -> str | None:
    """The checkpoint of the largest change, by factor, of those that are surely large."""
    changes = {}
    for point in points:
        change, ci = point.figures.change, point.figures.change_ci
        if change is not None and ci is not None and (ci[0] > TURN or ci[1] < 1 / TURN):
            changes[point.checkpoint] = abs(math.log(max(change, 1e-3)))
    return max(changes, key=lambda name: changes[name]) if changes else None


@dataclass(frozen=True)
class Found:
    """What a worker found of one signature in a checkpoint."""

    signature_id: str
    status: str
    reason: str | None
    figures: dict[str, Any]
    carriers: list[dict[str, Any]]
    chosen: list[dict[str, Any]] | None
    """Of the baseline's own reading: the features that it chose"""
    activations: str


def previous(session: Session, signature_id: str, checkpoint: Checkpoint) -> Reading | None:
    """The reading of the nearest ancestor that has one."""
    found = (queries.reading(session, signature_id, one) for one in verdicts.ancestors(session, checkpoint))
    return next((reading for reading in found if reading is not None), None)


def record(session: Session, checkpoint_id: str, found: Sequence[Found]) -> dict[str, Any]:
    """Write readings, in place of earlier ones, and hold the alert rules against them. Returns the run's result."""
    checkpoint = verdicts.checkpoint(session, checkpoint_id)
    family = verdicts.family(session, checkpoint.family_id)
    there = {row.id: row for row in queries.by_ids(session, [one.signature_id for one in found])}
    rows = []
    for one in found:
        if one.signature_id not in there:
            continue  # removed while it was read
        if one.chosen is not None:
            there[one.signature_id].chosen = one.chosen
        before = previous(session, one.signature_id, checkpoint)
        row = queries.reading(session, one.signature_id, checkpoint_id) or Reading(
            signature_id=one.signature_id, checkpoint_id=checkpoint_id
        )
        row.status, row.previous_status = one.status, before.status if before else None
        row.reason, row.figures, row.carriers = one.reason, one.figures, one.carriers
        row.activations = one.activations
        queries.add(session, row)
        rows.append((row, there[one.signature_id]))
    raised = alerts.signatures_read(session, family=family, checkpoint=checkpoint, readings=rows)
    statuses = {signature.name: row.status for row, signature in rows}
    return {"family": family.name, "checkpoint": checkpoint.name, "signatures": statuses, "alerts": len(raised)}


def _reading(session: Session, row: Reading, checkpoint: Checkpoint) -> ReadingView:
    return reading_view(row, checkpoint.name, _names(session, checkpoint.family_id, row.carriers))


def _names(session: Session, family_id: str, chosen: Sequence[Any]) -> dict[int, Any]:
    return features.names(session, family_id, [parse_feature_id(one["feature"]) for one in chosen])


def _rows_at(uri: str, settings: Configuration) -> list[contrast.ContrastRow]:
    try:
        path = resolve_under_roots(uri, settings.root_dirs)
    except PathRefusedError as error:
        raise UnprocessableError(str(error), code="path-refused") from error
    return contrast.read_file(path)


def _check_hook_points(family: Family, settings: Settings) -> None:
    unknown = [hook for hook in settings.hook_points or [] if hook not in family.hook_points]
    if unknown:
        raise UnprocessableError(
            f"{family.name} is not read at {', '.join(unknown)}; it is at {', '.join(family.hook_points)}.",
            code="hook-point-not-in-family",
        )


def _keep(session: Session, artifacts: ArtifactStore, family: Family, text: str) -> str:
    name = f"{family.id}/contrast-{content_key(rows=text)}.jsonl"
    # Also where it is there: what was written in this moment is not removed as something that nothing refers to.
    # Its entry is written in the request's transaction: on SQLite nobody else can write meanwhile.
    with artifacts.create(name, ledger=SessionLedger(session)) as place:
        place.write_text(text, encoding="utf-8")
    return name
