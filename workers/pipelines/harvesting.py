"""Stage harvest: a checkpoint's activations into the artifact store; with a family's first one its positions too."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from safetensors.torch import load_file, save_file
from torch import from_numpy

from service.kit.artifacts import content_key
from workers.activations import (
    ActivationSet,
    Positions,
    check_finite,
    harvest,
    load_corpus,
    locate_activations,
    open_activations,
    save_documents,
)
from workers.activations.sources import ACTIVATIONS_PREFIX
from workers.errors import RunError
from workers.execution import Execution
from workers.pipelines.sharing import Shared, Task
from workers.pipelines.sources import BLOCK, Activations, open_sources
from workers.pipelines.work import Work, device_of

log = structlog.get_logger("featurewatch.worker")


def harvest_activations(execution: Execution, work: Work) -> tuple[str, Activations, dict[str, Any]]:
    """Name of the artifact folder, the activations in it, and the family's positions."""
    name = work.artifact(
        "activations",
        suffix="",
        digest=work.digest,
        uri=work.uri,
        hook_points=work.hook_points,
        corpus=work.corpus,
        positions=work.positions["digest"] if work.positions else None,
        masking=[work.policy.skip_tokens, work.policy.max_norm_ratio],
    )
    kept = execution.artifacts.exists(f"{name}/manifest.json")
    if not kept:
        partial = execution.settings.data_dir / "partial" / name.replace("/", "-")
        if work.uri.startswith(ACTIVATIONS_PREFIX):
            _copy(execution, work, partial)
        else:
            _harvest(execution, work, partial)
        execution.check()
        with execution.artifacts.create(name) as place:
            shutil.move(partial, place)
    folder = execution.artifacts.path(name)
    activations = open_sources(execution, work, folder)
    log.info("activations", positions=activations.opened.n_positions, valid=int(activations.valid.sum()),
             widths=dict(zip(activations.hook_points, activations.widths, strict=True)), from_before=kept)  # fmt: skip
    return name, activations, work.positions or _positions(execution, work, folder, activations)


def harvest_task(execution: Execution, work: Work) -> Task:
    """What reading the checkpoint's model takes. RunError where the family's positions have no text to read."""
    if work.positions and work.positions["documents"] is None:
        raise RunError(
            "positions-without-text",
            "the family's positions came with activations and have no text, so no model can be read at them; "
            "bring activations of this checkpoint along too",
        )
    return Task(
        uri=work.uri,
        adapter=work.adapter,
        hook_points=work.hook_points,
        corpus=work.corpus,
        positions=work.positions,
        skip_tokens=work.policy.skip_tokens,
        max_norm_ratio=work.policy.max_norm_ratio,
        shard_positions=execution.settings.shard_positions,
    )


def _harvest(execution: Execution, work: Work, partial: Path) -> None:
    settings, task = execution.settings, harvest_task(execution, work)
    spec = task.spec(settings, execution.artifacts, str(device_of(execution)))
    # Without a broker nobody could be told to help.
    sharing = Shared(execution, task) if settings.broker_url and settings.share_harvests else None
    harvest(spec, partial, on_progress=execution.progress, check=execution.check, sharing=sharing)


def _corpus(execution: Execution, work: Work) -> Any:
    return load_corpus(
        work.corpus["uri"],
        work.corpus["max_documents"],
        execution.settings.root_dirs,
        context_length=work.corpus["context_length"],
    )


def _copy(execution: Execution, work: Work, partial: Path) -> None:
    """Take activations that were brought along into the store, after a look at every number.

    A copy, because the next extension reads them again and CI clears its folders.
    """
    folder = locate_activations(work.uri, execution.settings.root_dirs, execution.settings.data_dir / "cache")
    count = work.positions["count"] if work.positions else None
    widths = work.parent.widths if work.parent else None
    opened = open_activations(folder, expected_positions=count, expected_widths=widths, hook_points=work.hook_points)
    document = _family_documents(execution, work, opened)
    began = time.monotonic()

    def progress(fraction: float) -> None:
        execution.check()
        rate = opened.n_positions * fraction / max(time.monotonic() - began, 1e-6)
        execution.progress(fraction, positions=int(opened.n_positions * fraction), total=opened.n_positions,
                           positions_per_second=round(rate, 1))  # fmt: skip

    check_finite(opened, progress)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["hook_points"] = {hook: manifest["hook_points"][hook] for hook in work.hook_points}
    for entry in manifest["hook_points"].values():
        for shard in entry["shards"]:
            execution.check()
            (partial / shard).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / shard, partial / shard)
    manifest["documents"] = "documents.safetensors"
    manifest.pop("positions_digest", None)  # ours to say, of what we harvested
    valid = opened.valid & _without_sinks(opened, work.hook_points, work.policy.max_norm_ratio)
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


def _positions(execution: Execution, work: Work, folder: Path, activations: Activations) -> dict[str, Any]:
    """The family's positions, from its first checkpoint: artifacts of them and, where it has text, of its documents."""
    opened = activations.opened
    brought = work.uri.startswith(ACTIVATIONS_PREFIX)
    artifact = work.artifact("positions", digest=work.digest, hook_points=work.hook_points, corpus=work.corpus)
    documents = None if brought else work.artifact("documents", suffix=".jsonl", corpus=work.corpus)
    if not execution.artifacts.exists(artifact):
        with execution.artifacts.create(artifact) as place:
            if brought:
                save_file({"document": from_numpy(opened.document.copy())}, place)
            else:
                Positions.load(folder / "documents.safetensors").save(place)
    if documents and not execution.artifacts.exists(documents):
        with execution.artifacts.create(documents) as place:
            save_documents(_corpus(execution, work), place)
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = manifest.get("positions_digest") or content_key(positions=artifact, count=opened.n_positions)
    return {"digest": digest, "count": opened.n_positions, "artifact": artifact, "documents": documents}
