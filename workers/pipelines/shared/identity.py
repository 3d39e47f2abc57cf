"""A run's checkpoint, verified: what its registration refers to, and what a worker finds there."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.models import Checkpoint
from featurewatch.service.verdicts import queries
from featurewatch.workers.activations.sources.identity import Reference, Verified, resolve, verified
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution

log = structlog.get_logger("featurewatch.worker")


def reference_of(checkpoint: Checkpoint) -> Reference:
    """A checkpoint as it was registered, and as it was read."""
    return Reference(
        uri=checkpoint.uri,
        adapter=checkpoint.adapter,
        resolved_uri=checkpoint.resolved_uri,
        resolved_adapter=checkpoint.resolved_adapter,
        contents=checkpoint.contents,
        hook_points=list(checkpoint.hook_points),
    )


def _resolved(execution: Execution, checkpoint_id: str, known: Reference) -> Reference:
    """What a checkpoint stands for; it is written down the first time that this is known."""
    reference = resolve(known, execution.settings)
    if reference is not known:
        with execution.write() as session:
            checkpoints.resolve(
                session, checkpoint_id, uri=str(reference.resolved_uri), adapter=reference.resolved_adapter
            )
    return reference


@contextmanager
def verified_checkpoint(execution: Execution, checkpoint_id: str) -> Iterator[tuple[Reference, Verified]]:
    """A checkpoint whose files hold what was registered, while they are open and when they are left.

    What is read the first time is written down with all digests. RunErrors of `identity.verified`.
    """
    with execution.read() as session:
        row = queries.checkpoint(session, checkpoint_id)
        known, read_before, name, state = reference_of(row), row.content_digest is not None, row.name, row.state
    reference = _resolved(execution, checkpoint_id, known)

    def progress(done: int, total: int) -> None:
        execution.check()
        execution.progress(done / max(total, 1), bytes=done, total_bytes=total)

    with verified(reference, execution.settings, progress) as checkpoint:
        if not read_before:
            if state == "judged":
                log.warning("its content was not kept when it was judged; what is read now is taken for it",
                            checkpoint=name)  # fmt: skip
            with execution.write() as session:
                checkpoints.identify(session, checkpoint_id, checkpoint.contents)
        # Another worker may have a copy of its own, with other times: to it the digests are what counts.
        yield replace(reference, contents=checkpoint.contents.to_json()), checkpoint


def known_content(execution: Execution, checkpoint_id: str) -> bool:
    """Whether it is known what a checkpoint held when it was judged."""
    with execution.read() as session:
        return queries.checkpoint(session, checkpoint_id).content_digest is not None


@contextmanager
def watched(execution: Execution, checkpoint: Verified, partial: Path | None = None) -> Iterator[Callable[[], None]]:
    """The check to call while a verified checkpoint is read: of the run, and of the files; called on leaving too.

    What was read into the folder `partial` is removed where they change.
    """

    def check() -> None:
        execution.check()
        checkpoint.recheck()

    try:
        yield check
        check()
    except RunError as error:
        if error.code == "content-changed" and partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def content_digest(execution: Execution, checkpoint_id: str) -> str:
    """SHA-256 over all files of a checkpoint: as it was read, or now where nobody has read it since that is kept."""
    with execution.read() as session:
        digest = queries.checkpoint(session, checkpoint_id).content_digest
    if digest is None:
        with verified_checkpoint(execution, checkpoint_id) as (_, checkpoint):
            return checkpoint.digest
    return digest
