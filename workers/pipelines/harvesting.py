"""Stage harvest: a checkpoint's activations into the artifact store; with a family's first one its positions too."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from safetensors.torch import load_file, save_file
from torch import from_numpy

from featurewatch.service.families import logic as families
from featurewatch.workers.activations import (
    ActivationSet,
    HarvestSpec,
    Positions,
    check_finite,
    harvest,
    load_corpus,
    open_activations,
    save_documents,
)
from featurewatch.workers.activations.corpus import corpus_digest
from featurewatch.workers.activations.models import compute_dtype
from featurewatch.workers.activations.sources import ACTIVATIONS_PREFIX
from featurewatch.workers.activations.sources.identity import Reference, Verified
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.identity import known_content, verified_checkpoint, watched
from featurewatch.workers.pipelines.sharing import Shared, Task
from featurewatch.workers.pipelines.sources import BLOCK, Activations, normaliser_of, open_sources
from featurewatch.workers.pipelines.work import Kept, Work, device_of

log = structlog.get_logger("featurewatch.worker")


def harvest_activations(execution: Execution, work: Work) -> tuple[str, Activations, dict[str, Any]]:
    """Name of the artifact folder, the activations in it, and the family's positions."""
    documents = None if work.uri.startswith(ACTIVATIONS_PREFIX) else corpus_copy(execution, work)
    name = activations_of(execution, work, documents)
    folder = execution.artifacts.path(name)
    activations = open_sources(execution, work, folder)
    log.info("activations", positions=activations.opened.n_positions, valid=int(activations.valid.sum()),
             widths=dict(zip(activations.hook_points, activations.widths, strict=True)))  # fmt: skip
    return name, activations, work.positions or _positions(execution, work, folder, activations, documents)


def open_kept(execution: Execution, work: Work, kept: Kept) -> Activations:
    """The activations of an earlier checkpoint, with the normaliser that its dictionaries keep, if it has any.

    Where the store has lost them they are read again from the checkpoint, if its files are still what they were.
    """
    name = kept.activations[kept.hook_points[0]]
    if not execution.artifacts.exists(f"{name}/manifest.json"):
        log.warning("reading a checkpoint again", checkpoint=kept.name, missing=name)
        if not known_content(execution, kept.id):
            raise RunError(
                "content-unknown",
                f"the activations of {kept.name} are gone, and it was judged by a version that kept no digests, so its "
                "files cannot be told from others; register them again under another name and extend that one",
            )
        hooks = [hook for hook, artifact in kept.activations.items() if artifact == name]
        earlier = replace(
            work, checkpoint_id=kept.id, name=kept.name, uri=kept.uri, adapter=kept.adapter, hook_points=hooks
        )
        documents = None if kept.uri.startswith(ACTIVATIONS_PREFIX) else corpus_copy(execution, earlier)
        with verified_checkpoint(execution, kept.id) as (reference, checkpoint):
            make_activations(execution, earlier, name, reference, checkpoint, documents)
    activations = open_sources(execution, work, execution.artifacts.path(name), kept.hook_points)
    if kept.dictionaries:
        activations.normalise_by(normaliser_of(execution, kept, activations.device))
    return activations


def activations_of(execution: Execution, work: Work, documents: dict[str, Any] | None) -> str:
    """Name of the artifact with the checkpoint's activations, which are read unless they are there."""
    with verified_checkpoint(execution, work.checkpoint_id) as (reference, checkpoint):
        name = work.artifact(
            "activations",
            suffix="",
            content=checkpoint.digest,
            hook_points=work.hook_points,
            documents=documents["artifact"] if documents else None,
            context_length=work.corpus["context_length"],
            compute=None if reference.brought_along else _compute(execution),
            positions=work.positions["digest"] if work.positions else None,
            masking=[work.policy.skip_tokens, work.policy.max_norm_ratio],
        )
        if not execution.artifacts.exists(f"{name}/manifest.json"):
            make_activations(execution, work, name, reference, checkpoint, documents)
    return name


def make_activations(
    execution: Execution,
    work: Work,
    name: str,
    reference: Reference,
    checkpoint: Verified,
    documents: dict[str, Any] | None,
) -> None:
    """Read a verified checkpoint into an artifact. Nothing of one that changes meanwhile gets there."""
    partial = execution.settings.data_dir / "partial" / name.replace("/", "-")
    with watched(execution, checkpoint, partial) as check:
        if reference.brought_along:
            try:
                _copy(execution, work, partial, checkpoint, check)
            except RunError:
                shutil.rmtree(partial, ignore_errors=True)  # it begins anew each time
                raise
        else:
            task = _task(execution, work, reference, documents)
            _harvest(execution, task, partial, checkpoint, check)
    with execution.artifacts.create(name) as place:
        shutil.move(partial, place)


def corpus_copy(execution: Execution, work: Work) -> dict[str, Any]:
    """The family's copy of its corpus, which is made in the first run that needs it: `{artifact, digest, count}`.

    RunErrors of `load_corpus`, and `positions-without-text` where the family's positions have no text to read.
    """
    if work.documents:
        return work.documents
    if work.positions:
        raise RunError(
            "positions-without-text",
            "the family's positions came with activations and have no text, so no model can be read at them; "
            "bring activations of this checkpoint along too",
        )
    roots, corpus = execution.settings.root_dirs, work.corpus
    documents = load_corpus(corpus["uri"], corpus["max_documents"], roots, context_length=corpus["context_length"])
    digest = corpus_digest(documents)
    artifact = work.artifact("documents", suffix=".jsonl", content=digest)
    with execution.artifacts.create(artifact) as place:
        save_documents(documents, place)
    with execution.write() as session:
        copy = {"artifact": artifact, "digest": digest, "count": len(documents)}
        return families.keep_documents(session, work.family_id, copy)


def harvest_spec(
    execution: Execution, work: Work, reference: Reference, checkpoint: Verified, device: str
) -> HarvestSpec:
    """What reading a verified checkpoint takes, at the family's positions."""
    task = _task(execution, work, reference, corpus_copy(execution, work))
    return task.spec(execution.settings, execution.artifacts, device, checkpoint)


def _compute(execution: Execution) -> list[str]:
    """What a model's numbers are computed with: on other hardware they round in other places."""
    device = device_of(execution)
    return [str(compute_dtype(str(device))), device.type]


def _task(execution: Execution, work: Work, reference: Reference, documents: dict[str, Any] | None) -> Task:
    assert documents is not None
    return Task(
        reference=asdict(reference),
        hook_points=work.hook_points,
        documents=documents["artifact"],
        context_length=work.corpus["context_length"],
        positions=work.positions,
        skip_tokens=work.policy.skip_tokens,
        max_norm_ratio=work.policy.max_norm_ratio,
        shard_positions=execution.settings.shard_positions,
    )


def _harvest(execution: Execution, task: Task, partial: Path, checkpoint: Verified, check: Callable[[], None]) -> None:
    settings = execution.settings
    spec = task.spec(settings, execution.artifacts, str(device_of(execution)), checkpoint)
    # Without a broker nobody could be told to help.
    sharing = Shared(execution, task) if settings.broker_url and settings.share_harvests else None
    harvest(spec, partial, on_progress=execution.progress, check=check, sharing=sharing)


def _copy(execution: Execution, work: Work, partial: Path, checkpoint: Verified, check: Callable[[], None]) -> None:
    """Take activations that were brought along into the store, after a look at every number.

    A copy, because the next extension reads them again and CI clears its folders. The copy is what is looked at.
    """
    shutil.rmtree(partial, ignore_errors=True)
    for name, file in checkpoint.files.items():
        check()
        place = partial / name.partition("/")[2]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    count = work.positions["count"] if work.positions else None
    widths = work.parent.widths if work.parent else None
    opened = open_activations(partial, expected_positions=count, expected_widths=widths, hook_points=work.hook_points)
    document = _family_documents(execution, work, opened)
    began = time.monotonic()

    def progress(fraction: float) -> None:
        check()
        rate = opened.n_positions * fraction / max(time.monotonic() - began, 1e-6)
        execution.progress(fraction, positions=int(opened.n_positions * fraction), total=opened.n_positions,
                           positions_per_second=round(rate, 1))  # fmt: skip

    check_finite(opened, progress)
    valid = opened.valid & _without_sinks(opened, work.hook_points, work.policy.max_norm_ratio)
    manifest = json.loads((partial / "manifest.json").read_text())
    manifest["hook_points"] = {hook: manifest["hook_points"][hook] for hook in work.hook_points}
    (partial / manifest["documents"]).unlink()
    manifest["documents"] = "documents.safetensors"
    manifest.pop("positions_digest", None)  # ours to say, of what we harvested
    save_file({"document": from_numpy(document.copy()), "valid": from_numpy(valid)}, partial / manifest["documents"])
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _family_documents(execution: Execution, work: Work, opened: ActivationSet) -> np.ndarray:
    """int64 [n] the family's documents, as its first checkpoint numbered them: folds are made from the numbers.

    RunError where these activations are cut into documents elsewhere: then they are not of the same positions.
    """
    if work.positions is None:
        return opened.document
    known = load_file(execution.artifacts.path(work.positions["artifact"]))["document"].numpy()
    differ = np.flatnonzero(_in_order(known) != _in_order(opened.document))
    if len(differ):
        raise RunError(
            "wrong-positions",
            f"position {differ[0]} belongs to another document than in the family's first checkpoint; bring the "
            "activations of the same documents along, in the same order",
        )
    return known


def _in_order(document: np.ndarray) -> np.ndarray:
    """Documents numbered as they first appear, however they were numbered before."""
    _, first, index = np.unique(document, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index]


def _without_sinks(opened: ActivationSet, hook_points: list[str], ratio: float) -> np.ndarray:
    """bool [n]: False where the norm at any hook point is over `ratio` medians (attention sinks)."""
    keep = np.ones(opened.n_positions, dtype=bool)
    for hook in hook_points:
        blocks = range(0, opened.n_positions, BLOCK)
        norms = [opened.read(hook, slice(b, b + BLOCK)).float().norm(dim=1).numpy() for b in blocks]
        joined = np.concatenate(norms)
        keep &= joined <= ratio * np.median(joined)
    return keep


def _positions(
    execution: Execution, work: Work, folder: Path, activations: Activations, documents: dict[str, Any] | None
) -> dict[str, Any]:
    """The family's positions, from its first checkpoint, and its corpus, where it has text."""
    opened = activations.opened
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = manifest.get("positions_digest") or hashlib.sha256(opened.document.tobytes()).hexdigest()
    artifact = work.artifact("positions", digest=digest)
    if not execution.artifacts.exists(artifact):
        with execution.artifacts.create(artifact) as place:
            if documents is None:
                save_file({"document": from_numpy(opened.document.copy())}, place)
            else:
                Positions.load(folder / "documents.safetensors").save(place)
    text = documents["artifact"] if documents else None
    return {"digest": digest, "count": opened.n_positions, "artifact": artifact, "documents": text}
