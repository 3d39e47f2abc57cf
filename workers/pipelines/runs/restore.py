"""Restores artifacts that the store has lost from their sources, before a run needs them.

A restored copy of text or positions must equal the original byte for byte. A dictionary is solved again on its code, so
its last digits may differ, as may those of rows and own codes. Lost activations are not restored here: `open_earlier`
reads them again when they are needed. A code is never made again: a new fit would change what its features mean.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog
import torch
from safetensors.torch import load_file, save_file

from featurewatch.service.kit.artifacts import DamagedArtifactError, entry_of
from featurewatch.service.kit.problems import ProblemError
from featurewatch.service.models import Checkpoint, Code, Reading, Source
from featurewatch.service.store import damage, queries
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.workers.activations.corpus import save_documents
from featurewatch.workers.activations.positions import Positions
from featurewatch.workers.errors import RunError, TooLongError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.runs import signature
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.basis import load_basis
from featurewatch.workers.pipelines.shared.context import load_judged
from featurewatch.workers.pipelines.stages.activity import Rows, read_activity, read_own_code
from featurewatch.workers.pipelines.stages.compare import open_pair
from featurewatch.workers.pipelines.stages.harvest import open_earlier, read_corpus
from featurewatch.workers.pipelines.stages.judge import judge_pair
from featurewatch.workers.pipelines.stages.measure import measure, of_tensors

log = structlog.get_logger("featurewatch.worker")


def restore(execution: Execution, lost: list[str]) -> None:
    """Make lost artifacts of the run's family again, as far as possible. `lost`: as `damage.lost` lists them.

    An artifact that cannot be restored is logged: the run may not need it.
    """
    with execution.stage("restore"):
        for name in lost:
            execution.check()
            try:
                _restore(execution, name)
            except TooLongError:
                raise
            except (RunError, ProblemError, OSError) as error:
                if isinstance(error, DamagedArtifactError) and damage.is_remade(error.name):
                    raise  # the damaged one is set aside, and the next attempt makes both again
                log.warning("cannot restore a lost artifact", artifact=name, why=str(error))


def _restore(execution: Execution, name: str) -> None:
    if not execution.artifacts.exists(name):  # an artifact that needs it may have restored it already
        MAKERS[damage.kind_of(name)](execution, name)
        log.info("restored a lost artifact", artifact=name)


@contextmanager
def _as_written(execution: Execution, name: str) -> Iterator[Path]:
    """Where to write an artifact again; RunError `content-changed` if its content differs from the original."""
    with execution.artifacts.create(name) as place:
        yield place
        if entry_of(place).digest != execution.artifacts.digest(name):
            raise RunError(
                "content-changed", f"the source of {name} has changed since it was written, so it cannot be restored"
            )


def _documents(execution: Execution, name: str) -> None:
    """The family's copy of its corpus, from the corpus."""
    with execution.read() as session:
        corpus = dict(verdicts.family(session, execution.family_id).corpus)
    documents = read_corpus(execution, corpus)
    with _as_written(execution, name) as place:
        save_documents(documents, place)


def _positions(execution: Execution, name: str) -> None:
    """The family's positions, from the activations of its first checkpoint."""
    with execution.read() as session:
        text = bool((verdicts.family(session, execution.family_id).positions or {}).get("documents"))
        stored = [artifact for _, artifact in queries.activations(session, execution.family_id)]
    for artifact in dict.fromkeys(stored):
        if not execution.artifacts.exists(f"{artifact}/manifest.json"):
            continue
        documents = execution.artifacts.path(artifact) / "documents.safetensors"
        try:
            with _as_written(execution, name) as place:
                if text:
                    Positions.load(documents).save(place)
                else:
                    save_file({"document": load_file(documents)["document"]}, place)
        except RunError as error:
            log.debug("these are not the family's positions", activations=artifact, reason=error.detail)
        else:
            return
    raise RunError("artifact-missing", "no stored activations were read at exactly these positions")


def _dictionary(execution: Execution, name: str) -> None:
    """A checkpoint's dictionary, solved again on its code against the same parent as in its own run."""
    with execution.read() as session:
        row = queries.holders(session, Source.dictionary, name)[0]
        sources = verdicts.sources(session, row.checkpoint_id)
        hooks = {hook: name for hook, source in sources.items() if source.dictionary == name}
    context, checkpoint, artifact = load_judged(execution, row.checkpoint_id)
    for earlier in context.parent.dictionaries.values() if context.parent else ():
        _restore(execution, earlier)
    basis = load_basis(execution, artifact)
    pair = open_pair(execution, context, open_earlier(execution, context, checkpoint))
    measure(execution, pair, basis, hooks)


def _contrast_activations(execution: Execution, name: str) -> None:
    """The rows of a signature as the checkpoint reads them."""
    with execution.read() as session:
        row = queries.holders(session, Reading.activations, name)[0]
    request = signature.load_request(execution, row.checkpoint_id, [row.signature_id])
    if name not in signature.read(execution, request).values():
        raise RunError("content-changed", f"{name} cannot be restored: its rows now produce a different artifact")


def _examples(execution: Execution, name: str) -> None:
    """The positions where features fire most, from the code."""
    with execution.read() as session:
        artifact = queries.holders(session, Code.examples, name)[0].artifact
    code, _, _ = files.load_code(execution.artifacts.path(artifact), torch.device("cpu"))
    with execution.artifacts.create(name) as place:
        files.save_examples(place, code)


def _rows(execution: Execution, name: str) -> None:
    """The rows that a checkpoint's own code was read with, from the same comparison with its parent as in its run."""
    with execution.read() as session:
        holders = [session.get_one(Checkpoint, row.checkpoint_id) for row in queries.holders(session, Code.rows, name)]
        origin = min(holders, key=lambda checkpoint: checkpoint.created_at).id  # descendants may share its rows
    context, checkpoint, artifact = load_judged(execution, origin)
    if context.parent and context.parent.rows and context.parent.generation == context.generation:
        _restore(execution, context.parent.rows)
    basis = load_basis(execution, artifact)
    pair = open_pair(execution, context, open_earlier(execution, context, checkpoint))
    tensors = {key: tensor.cpu().float() for key, tensor in measure(execution, pair, basis, {}).items()}
    read = partial(read_activity, execution, pair, basis)
    activity = judge_pair(execution, pair, basis, of_tensors(tensors, {}), read).activity
    if activity is None or activity.rows != name:
        raise RunError("content-changed", f"{name} cannot be restored: the checkpoint's decoder is no longer the same")


def _own_code(execution: Execution, name: str) -> None:
    """A checkpoint's own code, from its activations."""
    with execution.read() as session:
        row = queries.holders(session, Code.own_code, name)[0]
    assert row.rows is not None
    _restore(execution, row.rows)
    context, checkpoint, _ = load_judged(execution, row.checkpoint_id)
    activations = open_earlier(execution, context, checkpoint)
    rows = Rows.load(execution, row.rows, activations.device)
    with execution.artifacts.create(name) as place:
        read_own_code(rows, activations.at(list(rows.hook_points))).save(place)


MAKERS: dict[str, Callable[[Execution, str], None]] = {
    "documents": _documents,
    "positions": _positions,
    "dictionary": _dictionary,
    "rows": _rows,
    "own-code": _own_code,
    "contrast-activations": _contrast_activations,
    "examples": _examples,
}
