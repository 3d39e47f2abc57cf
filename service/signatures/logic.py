"""Creates signatures and looks them up."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.config import Settings as Configuration
from featurewatch.service.features import queries as features
from featurewatch.service.kit.artifacts import ArtifactStore, content_key
from featurewatch.service.kit.pages import Page, Pager, SortKey
from featurewatch.service.kit.paths import PathRefusedError, resolve_under_roots
from featurewatch.service.kit.problems import ConflictError, NotFoundError, UnprocessableError
from featurewatch.service.models import Checkpoint, Family, Reading, Run, Signature
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.signatures import contrast, queries, schemas
from featurewatch.service.store.ledger import SessionLedger
from featurewatch.service.verdicts import queries as verdicts

TURN = 1.25
"""A signature turns where its strength changed by more than this factor over the whole confidence interval."""


def create(
    session: Session, settings: Configuration, artifacts: ArtifactStore, family: Family, body: schemas.SignatureIn
) -> tuple[Signature, list[tuple[Run, str]]]:
    """Create a signature and queue a run for each judged checkpoint, the baseline's first.

    Raises 404 for an unknown baseline, 409 if the name is used, 422 for an invalid contrast set.
    """
    _check_hook_points(family, body.settings)
    rows = contrast.stored(body.rows if body.rows is not None else _rows_at(str(body.uri), settings))
    if body.settings.position == "answer" and not all(row.answer for row in rows):
        raise UnprocessableError("`position: answer` requires an answer in every row.", code="contrast-without-answers")
    baseline = checkpoints.get_judged(session, family, body.baseline)
    signature = Signature(
        family_id=family.id,
        name=body.name,
        description=body.description,
        settings=body.settings.model_dump(mode="json"),
        contrast=_store(session, artifacts, family, contrast.lines(rows)),
        n_rows=len(rows),
        n_positive=sum(row.label for row in rows),
        baseline_id=baseline.id,
    )
    try:
        with session.begin_nested():
            session.add(signature)
    except IntegrityError:
        raise ConflictError(f"{family.name} already has a signature {body.name}.", code="name-used") from None
    others = [checkpoint for checkpoint in verdicts.judged(session, family.id) if checkpoint.id != baseline.id]
    return signature, [(queue(session, each, [signature]), each.name) for each in [baseline, *others]]


def queue(session: Session, checkpoint: Checkpoint, signatures: Sequence[Signature]) -> Run:
    """Queue a run that reads signatures in a judged checkpoint."""
    return runs.create(
        session,
        family_id=checkpoint.family_id,
        checkpoint_id=checkpoint.id,
        kind=RunKind.SIGNATURE,
        params={"signatures": [signature.id for signature in signatures]},
    )


def queue_all(session: Session, checkpoint_id: str) -> Run | None:
    """Queue a run that reads every signature of the family in a newly judged checkpoint. None if there are none."""
    checkpoint = verdicts.checkpoint(session, checkpoint_id)
    signatures = queries.of_family(session, checkpoint.family_id)
    return queue(session, checkpoint, signatures) if signatures else None


def get(session: Session, family: Family, name: str) -> Signature:
    """A signature by name, or 404."""
    signature = queries.by_name(session, family.id, name)
    if signature is None:
        raise NotFoundError(f"Family {family.name} has no signature {name}.", code="unknown-signature")
    return signature


def page(session: Session, family: Family, paging: Pager) -> Page[schemas.SignatureView]:
    """A page of a family's signatures, by name."""
    statement, order = queries.listing(family.id), f"signatures:{family.id}"
    return paging.fetch(session, statement, [SortKey(Signature.name)], order, partial(view, session, family))


def view(session: Session, family: Family, row: Signature) -> schemas.SignatureView:
    """A signature as the API shows it."""
    newest = queries.newest(session, row.id)
    baseline = verdicts.checkpoint(session, row.baseline_id)
    return schemas.SignatureView(
        id=row.id,
        family=family.name,
        name=row.name,
        description=row.description,
        baseline=baseline.name,
        settings=schemas.Settings.model_validate(row.settings),
        rows=row.n_rows,
        positive=row.n_positive,
        features=None
        if row.chosen is None
        else schemas.features_view(row.chosen, _names(session, row.family_id, row.chosen)),
        newest=_reading(session, *newest) if newest else None,
        created_at=row.created_at,
    )


def trajectory(session: Session, row: Signature) -> schemas.SignatureTrajectory:
    """A signature over all checkpoints, and where it turned."""
    points = [_reading(session, *pair) for pair in queries.readings(session, row.id)]
    return schemas.SignatureTrajectory(
        name=row.name,
        baseline=verdicts.checkpoint(session, row.baseline_id).name,
        turns_at=_turn(points),
        points=points,
    )


def at_checkpoint(session: Session, checkpoint: Checkpoint) -> list[tuple[str, str, schemas.ReadingView]]:
    """(name, baseline, reading) of every signature that was read in a checkpoint, by name."""
    rows = queries.at_checkpoint(session, checkpoint.id)
    named = _names(session, checkpoint.family_id, [carrier for reading, _, _ in rows for carrier in reading.carriers])
    return [(name, baseline, schemas.reading_view(reading, checkpoint.name, named)) for reading, name, baseline in rows]


def _turn(points: Sequence[schemas.ReadingView]) -> str | None:
    """The checkpoint with the largest significant change, by factor."""
    changes = {}
    for point in points:
        change, ci = point.figures.change, point.figures.change_ci
        if change is not None and ci is not None and (ci[0] > TURN or ci[1] < 1 / TURN):
            changes[point.checkpoint] = abs(math.log(max(change, 1e-3)))
    return max(changes, key=lambda name: changes[name]) if changes else None


def previous(session: Session, signature_id: str, checkpoint: Checkpoint) -> Reading | None:
    """The reading of the nearest ancestor that has one."""
    readings = (queries.reading(session, signature_id, id_) for id_ in verdicts.ancestors(session, checkpoint))
    return next((reading for reading in readings if reading is not None), None)


def _reading(session: Session, row: Reading, checkpoint: Checkpoint) -> schemas.ReadingView:
    return schemas.reading_view(row, checkpoint.name, _names(session, checkpoint.family_id, row.carriers))


def _names(session: Session, family_id: str, chosen: Sequence[Any]) -> dict[int, Any]:
    return features.names(session, family_id, queries.carried(chosen))


def _rows_at(uri: str, settings: Configuration) -> list[contrast.ContrastRow]:
    try:
        path = resolve_under_roots(uri, settings.root_dirs)
    except PathRefusedError as error:
        raise UnprocessableError(str(error), code="path-refused") from error
    return contrast.read_file(path)


def _check_hook_points(family: Family, settings: schemas.Settings) -> None:
    unknown = [hook for hook in settings.hook_points or [] if hook not in family.hook_points]
    if unknown:
        raise UnprocessableError(
            f"{family.name} has no hook point {', '.join(unknown)}. Available: {', '.join(family.hook_points)}.",
            code="hook-point-not-in-family",
        )


def _store(session: Session, artifacts: ArtifactStore, family: Family, text: str) -> str:
    name = f"{family.id}/contrast-{content_key(rows=text)}.jsonl"
    # Written even if it exists, so that retention does not remove it as unreferenced before this request commits.
    # Its ledger entry is part of the request's transaction, because SQLite allows only one writer.
    with artifacts.create(name, ledger=SessionLedger(session)) as path:
        path.write_text(text, encoding="utf-8")
    return name
