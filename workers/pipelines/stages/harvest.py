"""Stage harvest: stores a checkpoint's activations and, for a family's first checkpoint, its positions."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
from safetensors.torch import load_file, save_file
from torch import from_numpy

from featurewatch.service.checkpoints.contents import ACTIVATIONS
from featurewatch.service.families import logic as families
from featurewatch.workers.activations.corpus import Document, corpus_digest, load_corpus, save_documents
from featurewatch.workers.activations.harvest.run import harvest
from featurewatch.workers.activations.harvest.shards import HarvestSpec
from featurewatch.workers.activations.models.loading import compute_dtype
from featurewatch.workers.activations.positions import Positions
from featurewatch.workers.activations.sources.identity import Reference, Verified
from featurewatch.workers.activations.store import ActivationSet, check_finite, open_activations
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import EarlierCheckpoint, OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.identity import known_content, verified_checkpoint, watched
from featurewatch.workers.pipelines.shared.shared_harvest import HarvestLeader, HarvestTask
from featurewatch.workers.pipelines.shared.sources import BLOCK, Activations, normaliser_of, open_sources

log = structlog.get_logger("featurewatch.worker")


class Harvest(NamedTuple):
    """A harvested checkpoint."""

    folder: str
    """The artifact"""
    activations: Activations
    positions: dict[str, Any]
    """The family's"""


def harvest_activations(execution: Execution, context: OnboardingContext) -> Harvest:
    """Read the checkpoint's activations, unless they are stored already."""
    documents = None if context.uri.startswith(ACTIVATIONS) else corpus_copy(execution, context)
    name = activations_of(execution, context, documents)
    folder = execution.artifacts.path(name)
    activations = open_sources(execution, context, folder)
    log.info("activations", positions=activations.opened.n_positions, valid=int(activations.valid.sum()),
             widths=dict(zip(activations.hook_points, activations.widths, strict=True)))  # fmt: skip
    positions = context.positions or _positions(execution, context, folder, activations, documents)
    return Harvest(name, activations, positions)


def open_earlier(execution: Execution, context: OnboardingContext, checkpoint: EarlierCheckpoint) -> Activations:
    """The activations of an earlier checkpoint, normalised as in its dictionaries if it has any.

    Activations that the store has lost are read again from the checkpoint, if its files have not changed.
    """
    name = checkpoint.activations[checkpoint.hook_points[0]]
    if not execution.artifacts.exists(f"{name}/manifest.json"):
        log.warning(
            "stored activations are missing; reading the checkpoint again", checkpoint=checkpoint.name, artifact=name
        )
        if not known_content(execution, checkpoint.id):
            raise RunError(
                "content-unknown",
                f"the activations of {checkpoint.name} are missing, and it was judged by a version that stored no "
                "digests, so its files cannot be verified. Register it again under another name, as the parent to use",
            )
        hooks = [hook for hook, artifact in checkpoint.activations.items() if artifact == name]
        earlier = replace(
            context,
            checkpoint_id=checkpoint.id,
            name=checkpoint.name,
            uri=checkpoint.uri,
            adapter=checkpoint.adapter,
            hook_points=hooks,
        )
        documents = None if checkpoint.uri.startswith(ACTIVATIONS) else corpus_copy(execution, earlier)
        with verified_checkpoint(execution, checkpoint.id) as (reference, verified):
            make_activations(execution, earlier, name, reference, verified, documents)
    activations = open_sources(execution, context, execution.artifacts.path(name), checkpoint.hook_points)
    if checkpoint.dictionaries:
        activations.normalise_by(normaliser_of(execution, checkpoint, activations.device))
    return activations


def activations_of(execution: Execution, context: OnboardingContext, documents: dict[str, Any] | None) -> str:
    """Name of the artifact with the checkpoint's activations. Reads them unless they are stored."""
    with verified_checkpoint(execution, context.checkpoint_id) as (reference, checkpoint):
        name = context.artifact(
            "activations",
            suffix="",
            content=checkpoint.digest,
            hook_points=context.hook_points,
            documents=documents["artifact"] if documents else None,
            context_length=context.corpus["context_length"],
            compute=None if reference.precomputed else _compute(execution),
            positions=context.positions["digest"] if context.positions else None,
            masking=[context.policy.skip_tokens, context.policy.max_norm_ratio],
        )
        if not execution.artifacts.exists(f"{name}/manifest.json"):
            make_activations(execution, context, name, reference, checkpoint, documents)
    return name


def make_activations(
    execution: Execution,
    context: OnboardingContext,
    name: str,
    reference: Reference,
    checkpoint: Verified,
    documents: dict[str, Any] | None,
) -> None:
    """Read a verified checkpoint into an artifact, unless it changes meanwhile."""
    partial = execution.settings.data_dir / "partial" / name.replace("/", "-")
    with watched(execution, checkpoint, partial) as check:
        if reference.precomputed:
            try:
                _copy(execution, context, partial, checkpoint, check)
            except RunError:
                shutil.rmtree(partial, ignore_errors=True)  # copying starts over each time
                raise
        else:
            settings, task = execution.settings, _task(execution, context, reference, documents)
            spec = task.spec(settings, execution.artifacts, str(device_of(execution.settings)), checkpoint)
            # Without a broker there is no way to ask for help.
            sharing = HarvestLeader(execution, task) if settings.broker_url and settings.share_harvests else None
            harvest(spec, partial, on_progress=execution.progress, check=check, sharing=sharing)
    with execution.artifacts.create(name) as place:
        shutil.move(partial, place)


def corpus_copy(execution: Execution, context: OnboardingContext) -> dict[str, Any]:
    """The family's copy of its corpus, made by the first run that needs it: `{artifact, digest, count}`.

    RunErrors of `load_corpus`, and `positions-without-text` if the family's positions have no text.
    """
    if context.documents:
        return context.documents
    if context.positions:
        raise RunError(
            "positions-without-text",
            "the family's positions come from precomputed activations and have no text, so no model can be read at "
            "them; register precomputed activations of this checkpoint too",
        )
    documents = read_corpus(execution, context.corpus)
    digest = corpus_digest(documents)
    artifact = context.artifact("documents", suffix=".jsonl", content=digest)
    with execution.artifacts.create(artifact) as place:
        save_documents(documents, place)
    with execution.write() as session:
        copy = {"artifact": artifact, "digest": digest, "count": len(documents)}
        return families.keep_documents(session, context.family_id, copy)


def read_corpus(execution: Execution, corpus: dict[str, Any]) -> list[Document]:
    """The documents of a family's corpus, from its source. RunErrors of `load_corpus`."""
    roots = execution.settings.root_dirs
    return load_corpus(corpus["uri"], corpus["max_documents"], roots, context_length=corpus["context_length"])


def harvest_spec(
    execution: Execution, context: OnboardingContext, reference: Reference, checkpoint: Verified, device: str
) -> HarvestSpec:
    """How to read a verified checkpoint at the family's positions."""
    task = _task(execution, context, reference, corpus_copy(execution, context))
    return task.spec(execution.settings, execution.artifacts, device, checkpoint)


def _compute(execution: Execution) -> list[str]:
    """What a model computes with: other hardware rounds differently."""
    device = device_of(execution.settings)
    return [str(compute_dtype(str(device))), device.type]


def _task(
    execution: Execution, context: OnboardingContext, reference: Reference, documents: dict[str, Any] | None
) -> HarvestTask:
    assert documents is not None
    return HarvestTask(
        reference=asdict(reference),
        hook_points=context.hook_points,
        documents=documents["artifact"],
        context_length=context.corpus["context_length"],
        positions=context.positions,
        skip_tokens=context.policy.skip_tokens,
        max_norm_ratio=context.policy.max_norm_ratio,
        shard_positions=execution.settings.shard_positions,
    )


def _copy(
    execution: Execution, context: OnboardingContext, partial: Path, checkpoint: Verified, check: Callable[[], None]
) -> None:
    """Copy precomputed activations into the store, and check every number of the copy.

    A copy, because the next extension reads them again and CI clears its folders.
    """
    shutil.rmtree(partial, ignore_errors=True)
    for name, file in checkpoint.files.items():
        check()
        copy = partial / name.partition("/")[2]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    count = context.positions["count"] if context.positions else None
    widths = context.parent.widths if context.parent else None
    opened = open_activations(
        partial, expected_positions=count, expected_widths=widths, hook_points=context.hook_points
    )
    document = _family_documents(execution, context, opened)
    began = time.monotonic()

    def progress(fraction: float) -> None:
        check()
        rate = opened.n_positions * fraction / max(time.monotonic() - began, 1e-6)
        execution.progress(
            fraction,
            positions=int(opened.n_positions * fraction),
            total=opened.n_positions,
            positions_per_second=round(rate, 1),
        )

    check_finite(opened, progress)
    valid = opened.valid & _without_sinks(opened, context.hook_points, context.policy.max_norm_ratio)
    manifest = json.loads((partial / "manifest.json").read_text())
    manifest["hook_points"] = {hook: manifest["hook_points"][hook] for hook in context.hook_points}
    (partial / manifest["documents"]).unlink()
    manifest["documents"] = "documents.safetensors"
    manifest.pop("positions_digest", None)  # only for harvested activations
    save_file({"document": from_numpy(document.copy()), "valid": from_numpy(valid)}, partial / manifest["documents"])
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _family_documents(execution: Execution, context: OnboardingContext, opened: ActivationSet) -> np.ndarray:
    """int64 [n] documents as the family's first checkpoint numbered them, because folds depend on the numbers.

    RunError if the documents of these activations begin elsewhere: then their positions are not the family's.
    """
    if context.positions is None:
        return opened.document
    known = load_file(execution.artifacts.path(context.positions["artifact"]))["document"].numpy()
    differ = np.flatnonzero(_in_order(known) != _in_order(opened.document))
    if len(differ):
        raise RunError(
            "wrong-positions",
            f"position {differ[0]} belongs to a different document than in the first checkpoint; provide "
            "activations of the same documents in the same order",
        )
    return known


def _in_order(document: np.ndarray) -> np.ndarray:
    """Documents renumbered in the order in which they first appear."""
    _, first, index = np.unique(document, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index]


def _without_sinks(opened: ActivationSet, hook_points: list[str], ratio: float) -> np.ndarray:
    """bool [n] False where the norm at any hook point exceeds `ratio` medians (attention sinks)."""
    keep = np.ones(opened.n_positions, dtype=bool)
    for hook in hook_points:
        blocks = range(0, opened.n_positions, BLOCK)
        norms = [opened.read(hook, slice(b, b + BLOCK)).float().norm(dim=1).numpy() for b in blocks]
        joined = np.concatenate(norms)
        keep &= joined <= ratio * np.median(joined)
    return keep


def _positions(
    execution: Execution,
    context: OnboardingContext,
    folder: Path,
    activations: Activations,
    documents: dict[str, Any] | None,
) -> dict[str, Any]:
    """The family's positions, as its first checkpoint defines them, and the text they are in, if any."""
    opened = activations.opened
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = manifest.get("positions_digest") or hashlib.sha256(opened.document.tobytes()).hexdigest()
    artifact = context.artifact("positions", digest=digest)
    if not execution.artifacts.exists(artifact):
        with execution.artifacts.create(artifact) as place:
            if documents is None:
                save_file({"document": from_numpy(opened.document.copy())}, place)
            else:
                Positions.load(folder / "documents.safetensors").save(place)
    text = documents["artifact"] if documents else None
    return {"digest": digest, "count": opened.n_positions, "artifact": artifact, "documents": text}
