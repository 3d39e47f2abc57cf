"""Finds the dictionary of a source."""

from pathlib import Path

from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.dictionaries import queries
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.problems import NotFoundError, UnprocessableError
from featurewatch.service.models import Checkpoint, Source


def of_source(session: Session, checkpoint: Checkpoint, hook_point: str | None) -> Source:
    """The source with the requested dictionary. `hook_point` may be None if there is only one.

    Raises 404 if there is no such dictionary, 409 if the checkpoint is not judged, 422 if `hook_point` is needed.
    """
    sources = {
        source.hook_point: source for source in queries.of_checkpoint(session, checkpoints.check_judged(checkpoint).id)
    }
    if hook_point is None and len(sources) > 1:
        raise UnprocessableError(f"Specify a hook point: {', '.join(sources)}.", code="hook-point-missing")
    source = next(iter(sources.values()), None) if hook_point is None else sources.get(hook_point)
    if source is None:
        where = f" at {hook_point}; it has {', '.join(sources)}" if sources else ""
        raise NotFoundError(f"{checkpoint.name} has no dictionary{where}.", code="no-dictionary")
    return source


def file_of(artifacts: ArtifactStore, source: Source) -> Path:
    """The safetensors file of a source's dictionary. Raises 404 if it is missing from the artifact store."""
    try:
        return artifacts.path(str(source.dictionary))
    except FileNotFoundError as error:
        raise NotFoundError(
            f"The dictionary at {source.hook_point} is missing from the artifact store.", code="no-dictionary"
        ) from error
