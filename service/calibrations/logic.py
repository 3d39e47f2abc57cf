"""Requests calibrations and looks them up. Workers run them (`workers.pipelines.runs.calibrate`)."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from featurewatch.service.calibrations import queries
from featurewatch.service.calibrations.schemas import CalibrationIn, summary
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.families.schemas import FamilyOut
from featurewatch.service.kit.problems import ConflictError, NotFoundError
from featurewatch.service.models import Family, Run
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.verdicts import queries as verdicts


def create(session: Session, family: Family, body: CalibrationIn) -> tuple[Run, str]:
    """Queue a calibration. Returns its run and the name of the checkpoint.

    Raises 404 for an unknown checkpoint, 409 if it is not judged or its activations were removed.
    """
    checkpoint = checkpoints.get_judged(session, family, body.checkpoint)
    if any(source.activations is None for source in verdicts.sources(session, checkpoint.id).values()):
        raise ConflictError(
            f"The activations of {checkpoint.name} were removed. Name a checkpoint that still has them.",
            code="activations-gone",
        )
    params = body.model_copy(update={"checkpoint": checkpoint.name}).model_dump(mode="json")
    run = runs.create(session, family_id=family.id, checkpoint_id=checkpoint.id, kind=RunKind.CALIBRATE, params=params)
    return run, checkpoint.name


def get(session: Session, family: Family, run_id: str) -> tuple[Run, str, str | None]:
    """(run, family, checkpoint) of a calibration, or 404."""
    calibration = queries.one(session, family.name, run_id)
    if calibration is None:
        raise NotFoundError(f"Family {family.name} has no calibration {run_id}.", code="unknown-calibration")
    return calibration


def with_latest(session: Session, families: Sequence[Family]) -> list[FamilyOut]:
    """Families as the API returns them, each with a summary of its latest calibration."""
    latest = {key: summary(run) for key, run in queries.latest(session, [family.id for family in families]).items()}
    return [
        FamilyOut.model_validate(family).model_copy(update={"calibration": latest.get(family.id)})
        for family in families
    ]
