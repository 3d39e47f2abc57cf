"""Rows for tests: families, judged checkpoints, features with verdicts, codes with examples."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sqlalchemy.orm import Session

from featurewatch.service.families.schemas import Corpus, CrosscoderOptions
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.labels.automatic import auto_label
from featurewatch.service.models import Checkpoint, Code, Family, Feature, Measurement, Run, Source, Verdict
from featurewatch.service.runs import lines
from featurewatch.service.verdicts.policy import Policy


def family(session: Session, name: str = "smol", hook_points: tuple[str, ...] = ("resid_post.12",)) -> Family:
    """A family as POST /v1/families makes it."""
    row = Family(
        name=name,
        hook_points=list(hook_points),
        corpus=Corpus().model_dump(mode="json"),
        crosscoder=CrosscoderOptions().model_dump(mode="json"),
        policy=Policy().model_dump(mode="json"),
        positions=None,
    )
    session.add(row)
    session.flush()
    return row


def checkpoint(
    session: Session, of: Family, name: str, *, parent: Checkpoint | None = None, state: str = "judged", **values: Any
) -> Checkpoint:
    """A checkpoint, judged unless told otherwise."""
    defaults: dict[str, Any] = {
        "uri": f"hf://org/{name}",
        "adapter": None,
        "hook_points": of.hook_points,
        "fit": "auto",
        "details": {},
        "generation": 1,
        "quality": {"fvu": 0.21, "l0": 31.5, "valid_share": 0.998},
        "judged_at": utcnow() if state == "judged" else None,
    }
    row = Checkpoint(
        family_id=of.id, name=name, parent_id=parent.id if parent else None, state=state, **(defaults | values)
    )
    session.add(row)
    session.flush()
    return row


def feature(session: Session, of: Family, number: int, born_in: Checkpoint, **values: Any) -> Feature:
    """A feature with two top tokens."""
    defaults: dict[str, Any] = {
        "label": None,
        "top_tokens": [f" token{number}", "é"],
        "promoted_tokens": [],
        "tags": [],
        "origin": "fitted",
        "generation": 1,
        "retired_in": None,
    }
    row = Feature(family_id=of.id, number=number, born_in=born_in.id, **(defaults | values))
    row.auto_label = auto_label(row.top_tokens, row.promoted_tokens)
    session.add(row)
    session.flush()
    return row


def verdict(session: Session, at: Checkpoint, of: Feature, status: str = "present", **values: Any) -> Verdict:
    """A verdict whose numbers go with its status."""
    ratio = {"suppressed": 0.25, "absent": 0.01, "amplified": 3.0, "emerged": None}.get(status, 1.0)
    defaults: dict[str, Any] = {
        "previous_status": "present",
        "change": 0.0 if status == "present" else 1.0,
        "projection_ratio": ratio,
        "projection_ratio_lo": None if ratio is None else ratio * 0.9,
        "projection_ratio_hi": None if ratio is None else ratio * 1.1,
        "strength_ratio": ratio,
        "strength_ratio_lo": None,
        "strength_ratio_hi": None,
        "orthogonal_ratio": 0.1,
        "q_value": 0.5 if status == "present" else 1e-6,
        "strength": 1.5,
        "direction_cosine": 0.99,
        "readability": 0.8,
        "firing_rate": 0.01,
        "firings": 300,
        "minimum_detectable_ratio": 0.9,
        "successors": [],
    }
    row = Verdict(checkpoint_id=at.id, feature=of.number, family_id=of.family_id, status=status, **(defaults | values))
    session.add(row)
    session.flush()
    return row


def code(session: Session, artifacts: ArtifactStore, of: Family, at: Checkpoint, *, with_text: bool = True) -> Code:
    """A code of 4 positions x 3 features (numbers 0, 1, 5), its examples, and the family's positions and documents."""
    save(
        artifacts,
        f"{of.id}/code-1",
        {
            "indptr": np.array([0, 1, 2, 4, 4], np.int64),
            "indices": np.array([0, 1, 0, 2], np.int32),
            "values": np.array([1.5, 2.5, 0.5, 3.5], np.float32),
            "feature_numbers": np.array([0, 1, 5], np.int64),
        },
    )
    save(
        artifacts,
        f"{of.id}/examples-1",
        {
            "positions": np.array([[0, 2], [1, -1], [2, -1]], np.int64),
            "values": np.array([[1.5, 0.5], [2.5, 0], [3.5, 0]], np.float32),
        },
    )
    places = {"document": np.array([0, 0, 7, 7], np.int64)}
    if with_text:
        places |= {"start": np.array([0, 3, 0, 4], np.int64), "end": np.array([3, 7, 4, 8], np.int64)}
        with unrecorded(artifacts).create(f"{of.id}/documents-1") as path:
            Path(path).write_text('{"id": 0, "text": "The café"}\n{"id": 7, "text": "Stop now"}\n', encoding="utf-8")
    save(artifacts, f"{of.id}/positions-1", places)
    of.positions = {
        "digest": "1",
        "count": 4,
        "artifact": f"{of.id}/positions-1",
        "documents": f"{of.id}/documents-1" if with_text else None,
    }
    row = Code(
        checkpoint_id=at.id,
        family_id=of.id,
        generation=1,
        artifact=f"{of.id}/code-1",
        examples=f"{of.id}/examples-1",
        n_positions=4,
        n_features=3,
        extra={},
    )
    session.add(row)
    session.flush()
    return row


def log(session: Session, run: Run, said: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
    """Lines (level, event, fields) of a run's attempt, after those that its log has."""
    new = [lines.Line(number, utcnow(), *one) for number, one in enumerate(said, run.lines + 1)]
    lines.keep(session, run_id=run.id, attempt=run.attempt, lines=new)
    session.refresh(run)


def unrecorded(artifacts: ArtifactStore) -> ArtifactStore:
    """The same store without its ledger: what is made for rows of a transaction that is open."""
    store = copy.copy(artifacts)
    store.ledger = None
    return store


def save(artifacts: ArtifactStore, name: str, tensors: dict[str, np.ndarray]) -> None:
    """Put arrays into the artifact store as one safetensors file."""
    with unrecorded(artifacts).create(name) as path:
        save_file(tensors, path)


def source(session: Session, at: Checkpoint, hook_point: str, d_model: int) -> Source:
    """A source of a checkpoint, without artifacts."""
    row = Source(
        checkpoint_id=at.id, hook_point=hook_point, d_model=d_model, stats={}, dictionary=None, activations=None
    )
    session.add(row)
    session.flush()
    return row


def measurement(session: Session, at: Checkpoint, metric: str, values: np.ndarray) -> Measurement:
    """A stored array over all hook points."""
    values = values.astype("<f4")
    row = Measurement(
        checkpoint_id=at.id, hook_point="*", metric=metric, shape=list(values.shape), data=values.tobytes()
    )
    session.add(row)
    session.flush()
    return row
