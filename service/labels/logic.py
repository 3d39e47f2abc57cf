"""Labels from an endpoint: asking for them, and writing what a worker was told. They are no part of any verdict."""

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
    """What a model said of a feature; `score` is (balanced accuracy, low, high), None where there is none."""

    label: str
    model: str
    score: tuple[float, float, float] | None


def create(session: Session, family: Family, body: LabelIn) -> tuple[Run, str]:
    """Queue a run that labels features; it and the name of the checkpoint.

    Raises 404 for checkpoint and features, 409 where the family has no text or no feature is left to label.
    """
    checkpoint = checkpoints.get_judged(session, family, body.checkpoint)
    if not (family.positions or {}).get("documents"):
        raise ConflictError(
            f"{family.name} has no text to show: its activations were brought along without it.", code="no-text"
        )
    if body.features is None:
        named = [feature_id(n) for n in queries.wanting(session, family.id, checkpoint.id, DEFAULT)]
    else:
        named = [feature_id(features.get(session, family, one).number) for one in dict.fromkeys(body.features)]
    if not named:
        raise ConflictError(
            f"Every feature that is watched or changed in {checkpoint.name} has a label of a model; name others.",
            code="nothing-to-label",
        )
    params = LabelIn(features=named, checkpoint=checkpoint.name).model_dump(mode="json")
    run = runs.create(session, family_id=family.id, checkpoint_id=checkpoint.id, kind=RunKind.LABEL, params=params)
    return run, checkpoint.name


def record(session: Session, *, family_id: str, number: int, run_id: str, found: ModelLabel) -> None:
    """Write a model's label in place of an earlier one; a person's label stays."""
    value, low, high = found.score or (None, None, None)
    values = {
        "model_label": found.label,
        "model_label_by": found.model,
        "model_label_score": value,
        "model_label_score_lo": low,
        "model_label_score_hi": high,
        "model_label_run": run_id,
    }
    queries.set_label(session, family_id, number, values)
