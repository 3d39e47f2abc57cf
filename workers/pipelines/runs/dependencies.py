"""Finding dependencies: the features that others in a judged checkpoint are computed from, and their effects.

Sums by fold are stored for each feature as soon as they are complete, under a name made from all their inputs: a run
that was killed resumes with the features that are left, and a repeated request reuses what exists.
"""

import json
from typing import Any

import structlog
from safetensors import safe_open

from featurewatch.service.dependencies import figures, judge, store
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.recording import dependencies as recording
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.dependency_request import DependencyRequest, load_request
from featurewatch.workers.pipelines.shared.identity import verified_checkpoint
from featurewatch.workers.pipelines.stages.attribute import WORDS, attribute_features, trace_checkpoint

log = structlog.get_logger("featurewatch.worker")

BATCH = 8
"""Features that share a forward pass, and are stored together."""


def run(execution: Execution) -> None:
    """Find the dependencies of the features that the run names."""
    request = load_request(execution)
    missing = [number for number in request.targets if not execution.artifacts.exists(request.artifact(number))]
    log.info("features", requested=len(request.targets), reused=len(request.targets) - len(missing), uri=request.uri)
    if missing:
        with verified_checkpoint(execution, request.checkpoint_id) as (reference, checkpoint):
            traced = trace_checkpoint(execution, request, reference, checkpoint)
            with execution.stage("attribute"):
                for start in range(0, len(missing), BATCH):
                    batch, done = missing[start : start + BATCH], start / len(missing)
                    attribute_features(execution, request, traced, batch, done, len(missing), checkpoint)
    with execution.stage("judge"):
        rows = [_row(execution, request, number) for number in request.targets]
        with execution.write() as session:
            result = recording.record(
                session, execution.artifacts, checkpoint_id=request.checkpoint_id, run_id=execution.run_id,
                rows=[row for row in rows if row is not None],
            )  # fmt: skip
            unseen = [feature_id(n) for n, row in zip(request.targets, rows, strict=True) if row is None]
            # Attention sinks are marked in the stored activations.
            sinks = {} if request.activations else {"attention_sinks": "not left out: the activations were removed"}
            log.info("dependencies", features=len(rows) - len(unseen), too_few_positions=unseen)
            execution.finish(session, result | {"too_few_positions": unseen} | sinks)


def _row(execution: Execution, request: DependencyRequest, number: int) -> dict[str, Any] | None:
    """The row of one feature. None if it fires in too few documents to judge."""
    name = request.artifact(number)
    profile = store.load(execution.artifacts, name)
    if not judge.enough(profile.counts):
        return None
    with safe_open(execution.artifacts.path(name), framework="numpy") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        words = json.loads(file.metadata()[WORDS])
    effect = None
    if "effect.counts" in stored:
        counts, ablate, amplify, random = (
            stored[f"effect.{part}"] for part in ("counts", "ablate", "amplify", "random")
        )
        answers = {key.removeprefix("answers."): stored[key] for key in stored if key.startswith("answers.")}
        effect = figures.effect(counts, ablate, amplify, random, answers, request.policy)
    logits = [(word, float(change)) for word, change in zip(words["logits"], stored.get("logits", []), strict=True)]
    tokens = (words["tokens"], stored["tokens"])
    graph = figures.graph(profile, float(stored["constant"]), tokens, logits, request.policy)
    return {
        "feature": number,
        "method": request.body.method,
        "hook_point": request.targets[number],
        "n_positions": int(profile.counts.sum()),
        "artifact": name,
        "graph": graph.model_dump(mode="json"),
        "effect": None if effect is None else effect.model_dump(mode="json"),
    }
