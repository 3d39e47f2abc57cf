"""Verified checkpoints: the files that a worker reads are those that were registered."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.verdicts import queries
from featurewatch.workers.activations.sources.identity import Reference, Verified, resolve, verified
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution

log = structlog.get_logger("featurewatch.worker")


@contextmanager
def verified_checkpoint(execution: Execution, checkpoint_id: str) -> Iterator[tuple[Reference, Verified]]:
    """A checkpoint whose files equal the registered ones, both on entering and on leaving.

    The first reading stores the resolved reference and all digests. RunErrors of `identity.verified`.
    """
    with execution.read() as session:
        row = queries.checkpoint(session, checkpoint_id)
        read_before, name, state = row.content_digest is not None, row.name, row.state
        known = Reference(
            uri=row.uri,
            adapter=row.adapter,
            resolved_uri=row.resolved_uri,
            resolved_adapter=row.resolved_adapter,
            contents=row.contents,
            hook_points=list(row.hook_points),
        )
    reference = resolve(known, execution.settings)
    if reference is not known:
        uri, adapter = str(reference.resolved_uri), reference.resolved_adapter
        with execution.write() as session:
            checkpoints.resolve(session, checkpoint_id, uri=uri, adapter=adapter)

    def progress(done: int, total: int) -> None:
        execution.check()
        execution.progress(done / max(total, 1), bytes=done, total_bytes=total)

    with verified(reference, execution.settings, progress) as checkpoint:
        if not read_before:
            if state == "judged":
                log.warning("no digests from when it was judged; trusting the files as they are now", checkpoint=name)
            with execution.write() as session:
                checkpoints.identify(session, checkpoint_id, checkpoint.contents)
        # Another worker may have its own copy with other timestamps, so helpers compare digests.
        yield replace(reference, contents=checkpoint.contents.to_json()), checkpoint


def known_content(execution: Execution, checkpoint_id: str) -> bool:
    """Whether the digests of a checkpoint's files are stored."""
    with execution.read() as session:
        return queries.checkpoint(session, checkpoint_id).content_digest is not None


@contextmanager
def watched(execution: Execution, checkpoint: Verified, partial: Path | None = None) -> Iterator[Callable[[], None]]:
    """A check of the run and of the files, to call while reading a verified checkpoint. It also runs on leaving.

    If the files change, the folder `partial` is removed.
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
    """SHA-256 over all files of a checkpoint: the stored digest, or else that of the files as they are now."""
    with execution.read() as session:
        digest = queries.checkpoint(session, checkpoint_id).content_digest
    if digest is None:
        with verified_checkpoint(execution, checkpoint_id) as (_, checkpoint):
            return checkpoint.digest
    return digest
