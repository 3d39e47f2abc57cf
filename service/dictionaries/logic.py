"""Dictionaries: finding the one of a source."""

from pathlib import Path

from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.dictionaries import queries
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.problems import NotFoundError, UnprocessableError
from featurewatch.service.models import Checkpoint, Source


def of_source(session: Session, checkpoint: Checkpoint, hook_point: str | None) -> Source:
    """The source whose dictionary is asked for; a checkpoint of one hook point needs no name of it.

    Raises 404 where there is none, 409 where the checkpoint is not judged, 422 where several could be meant.
    """
    found = {
        source.hook_point: source for source in queries.of_checkpoint(session, checkpoints.check_judged(checkpoint).id)
    }
    if hook_point is None and len(found) > 1:
        raise UnprocessableError(f"Name one of the hook points: {', '.join(found)}.", code="hook-point-missing")
    source = next(iter(found.values()), None) if hook_point is None else found.get(hook_point)
    if source is None:
        there = f"it has those at {', '.join(found)}" if found else "it has none"
        raise NotFoundError(f"{checkpoint.name} has no dictionary at {hook_point or 'a hook point'}; {there}.",
                            code="no-dictionary")  # fmt: skip
    return source


def file_of(artifacts: ArtifactStore, source: Source) -> Path:
    """The safetensors file of a source's dictionary; 404 where the artifact store has lost it."""
    try:
        return artifacts.path(str(source.dictionary))
    except FileNotFoundError as error:
        raise NotFoundError(f"The dictionary at {source.hook_point} is not in the artifact store.",
                            code="no-dictionary") from error  # fmt: skip
