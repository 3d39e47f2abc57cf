"""Requests calibrations and looks them up. Workers run them (`workers.pipelines.calibrating`)."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from featurewatch.service.calibrations import queries
from featurewatch.service.calibrations.schemas import CalibrationIn, CalibrationSummary, summary
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.families import logic as families
from featurewatch.service.kit.problems import ConflictError, NotFoundError
from featurewatch.service.models import Family, Run
from featurewatch.service.runs import logic as runs
from featurewatch.service.verdicts import queries as verdicts


def create(session: Session, family_name: str, body: CalibrationIn) -> tuple[Run, str]:
    """Queue a calibration. Returns its run and the name of the checkpoint.

    Raises 404 for an unknown family or checkpoint, 409 if it is not judged or its activations were removed.
    """
    family = families.get(session, family_name)
    checkpoint = checkpoints.get_judged(session, family, body.checkpoint)
    if any(source.activations is None for source in verdicts.sources(session, checkpoint.id).values()):
        raise ConflictError(
            f"The activations of {checkpoint.name} were removed. Name a checkpoint that still has them.",
            code="activations-gone",
        )
    params = body.model_copy(update={"checkpoint": checkpoint.name}).model_dump(mode="json")
    run = runs.create(session, family_id=family.id, checkpoint_id=checkpoint.id, kind=queries.KIND, params=params)
    return run, checkpoint.name


def get(session: Session, family_name: str, run_id: str) -> tuple[Run, str, str | None]:
    """(run, family, checkpoint) of a calibration, or 404."""
    calibration = queries.one(session, families.get(session, family_name).name, run_id)
    if calibration is None:
        raise NotFoundError(f"Family {family_name} has no calibration {run_id}.", code="unknown-calibration")
    return calibration


def latest(session: Session, rows: Sequence[Family]) -> dict[str, CalibrationSummary]:
    """Family id -> summary of its latest calibration, for the families that have one."""
    return {id_: summary(run) for id_, run in queries.latest(session, [row.id for row in rows]).items()}
