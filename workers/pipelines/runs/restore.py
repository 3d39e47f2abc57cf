"""Artifacts that the store has lost, made again of what they were made of, before a run needs them.

A copy of text or positions counts only if it holds what was written. A dictionary is solved again on the code that
gives its features their meaning, so its last digits may differ. Lost activations are not made here: `open_kept` reads
them again where they are needed. A code is never made again: another fit would give features another meaning.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import torch
from safetensors.torch import load_file, save_file

from featurewatch.service.kit.artifacts import DamagedArtifactError, entry_of
from featurewatch.service.kit.problems import ProblemError
from featurewatch.service.models import Code, Reading, Source
from featurewatch.service.store import damage, queries
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.workers.activations import Positions, load_corpus, save_documents
from featurewatch.workers.errors import RunError, TooLongError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.runs import signature
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.basis import Basis
from featurewatch.workers.pipelines.shared.context import device_of, load_judged
from featurewatch.workers.pipelines.shared.pairing import pair
from featurewatch.workers.pipelines.stages.harvest import open_earlier
from featurewatch.workers.pipelines.stages.judge import gone_at_parent
from featurewatch.workers.pipelines.stages.measure import load_references, measure
from featurewatch.workers.pipelines.stages.refit import carried_references

log = structlog.get_logger("featurewatch.worker")


def restore(execution: Execution, lost: list[str]) -> None:
    """Make lost artifacts of the run's family again, as far as they can be.

    lost: as `damage.lost` lists them. What cannot be made again is logged: perhaps the run does without it.
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
                    raise  # it is put aside, and the next attempt makes both
                log.warning("a lost artifact cannot be made again", artifact=name, why=str(error))


def _restore(execution: Execution, name: str) -> None:
    if not execution.artifacts.exists(name):  # it may have been made for another one
        MAKERS[damage.kind_of(name)](execution, name)
        log.info("made a lost artifact again", artifact=name)


@contextmanager
def _as_written(execution: Execution, name: str) -> Iterator[Path]:
    """Where to write an artifact again; RunError `content-changed` if it does not hold what it held."""
    with execution.artifacts.create(name) as place:
        yield place
        if entry_of(place).digest != execution.artifacts.digest(name):
            raise RunError("content-changed", f"{name} would not hold what it held: its source has changed")


def _documents(execution: Execution, name: str) -> None:
    """The copy of the corpus, from the corpus."""
    with execution.read() as session:
        corpus = dict(verdicts.family(session, execution.family_id).corpus)
    roots = execution.settings.root_dirs
    documents = load_corpus(corpus["uri"], corpus["max_documents"], roots, context_length=corpus["context_length"])
    with _as_written(execution, name) as place:
        save_documents(documents, place)


def _positions(execution: Execution, name: str) -> None:
    """The family's positions, from the activations of its first checkpoint."""
    with execution.read() as session:
        text = bool((verdicts.family(session, execution.family_id).positions or {}).get("documents"))
        kept = [artifact for _, artifact in queries.activations(session, execution.family_id)]
    for artifact in dict.fromkeys(kept):
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
            log.debug("not the family's positions", activations=artifact, why=error.detail)
        else:
            return
    raise RunError("artifact-missing", "no activations are kept that were read at exactly these positions")


def _dictionary(execution: Execution, name: str) -> None:
    """A checkpoint's dictionary, solved again on its code, against its parent as it was in its own run."""
    with execution.read() as session:
        row = queries.holders(session, Source.dictionary, name)[0]
        sources = verdicts.sources(session, row.checkpoint_id)
        hooks = {hook: name for hook, source in sources.items() if source.dictionary == name}
    context, kept, artifact = load_judged(execution, row.checkpoint_id)
    for earlier in context.parent.dictionaries.values() if context.parent else ():
        _restore(execution, earlier)
    activations, parent, references = open_earlier(execution, context, kept), None, None
    code, numbers, born = files.load_code(execution.artifacts.path(artifact), device_of(execution))
    basis = Basis(code, numbers, born, artifact)
    if context.parent is not None:
        context, activations, parent = pair(context, activations, open_earlier(execution, context, context.parent))
        references = load_references(execution, context, gone_at_parent(execution, context))
        if context.fit == "refit":
            references = carried_references(execution, context, basis, references)
    measure(execution, context, basis, activations, parent, references, hooks)


def _contrast_activations(execution: Execution, name: str) -> None:
    """The rows of a signature as a checkpoint reads them."""
    with execution.read() as session:
        row = queries.holders(session, Reading.activations, name)[0]
    subject = signature.load(execution, row.checkpoint_id, [row.signature_id])
    if name not in signature.read(execution, subject).values():
        raise RunError("content-changed", f"{name} would not hold what it held: the rows are read in another way now")


def _examples(execution: Execution, name: str) -> None:
    """The places where features fire most, from the code."""
    with execution.read() as session:
        artifact = queries.holders(session, Code.examples, name)[0].artifact
    code, _, _ = files.load_code(execution.artifacts.path(artifact), torch.device("cpu"))
    with execution.artifacts.create(name) as place:
        files.save_examples(place, code)


MAKERS: dict[str, Callable[[Execution, str], None]] = {
    "documents": _documents,
    "positions": _positions,
    "dictionary": _dictionary,
    "contrast-activations": _contrast_activations,
    "examples": _examples,
}
