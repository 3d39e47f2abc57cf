"""Requests and records labels from a model endpoint. Labels never influence a verdict."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.features import logic as features
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.problems import ConflictError
from featurewatch.service.labels import queries
from featurewatch.service.labels.schemas import DEFAULT, LabelIn
from featurewatch.service.models import Family, Run
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.kinds import RunKind


@dataclass(frozen=True)
class ModelLabel:
    """A label by a model. `score` is (balanced accuracy, low, high), or None."""

    label: str
    model: str
    score: tuple[float, float, float] | None


def create(session: Session, family: Family, body: LabelIn) -> tuple[Run, str]:
    """Queue a run that labels features. Returns the run and the name of the checkpoint.

    Raises 404 for an unknown checkpoint or feature, 409 if the family has no text or nothing is left to label.
    """
    checkpoint = checkpoints.get_judged(session, family, body.checkpoint)
    if not (family.positions or {}).get("documents"):
        raise ConflictError(
            f"{family.name} has no text to label features from: its activations were precomputed.",
            code="no-text",
        )
    if body.features is None:
        numbers = queries.unlabelled(session, family.id, checkpoint.id, DEFAULT)
    else:
        numbers = [features.get(session, family, name).number for name in dict.fromkeys(body.features)]
    if not numbers:
        raise ConflictError(
            f"All features that are watched or changed in {checkpoint.name} already have a model label. Name the "
            "features to label.",
            code="nothing-to-label",
        )
    ids = [feature_id(number) for number in numbers]
    params = LabelIn(features=ids, checkpoint=checkpoint.name).model_dump(mode="json")
    run = runs.create(session, family_id=family.id, checkpoint_id=checkpoint.id, kind=RunKind.LABEL, params=params)
    return run, checkpoint.name


def record(session: Session, *, family_id: str, number: int, run_id: str, label: ModelLabel) -> None:
    """Write a model's label, replacing an earlier one. A person's label stays."""
    value, low, high = label.score or (None, None, None)
    values = {
        "model_label": label.label,
        "model_label_by": label.model,
        "model_label_score": value,
        "model_label_score_lo": low,
        "model_label_score_hi": high,
        "model_label_run": run_id,
    }
    queries.set_label(session, family_id, number, values)
