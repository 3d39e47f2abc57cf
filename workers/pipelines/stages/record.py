"""The end of stage judge: all that is known about a checkpoint, written in one transaction."""

from collections import Counter
from typing import Any

import numpy as np
import structlog
from safetensors.torch import load_file

from featurewatch.service.dependencies import logic as dependencies
from featurewatch.service.signatures import logic as signatures
from featurewatch.service.verdicts import logic as verdicts
from featurewatch.service.verdicts.intervals import reach
from featurewatch.service.verdicts.judge import Evidence, Judgement
from featurewatch.workers.activations import load_documents
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files, promoted_tokens
from featurewatch.workers.pipelines.shared.basis import Basis
from featurewatch.workers.pipelines.shared.context import OnboardingContext
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.pipelines.stages.measure import Measures

log = structlog.get_logger("featurewatch.worker")

TOP_TOKENS = 5


def describe_outcome(
    execution: Execution,
    context: OnboardingContext,
    basis: Basis,
    measures: Measures,
    activations: Activations,
    folder: str,
    positions: dict[str, Any],
    evidence: Evidence,
    judgement: Judgement,
) -> verdicts.Outcome:
    """Everything that is written about the checkpoint, ready for one transaction."""
    examples = context.artifact("examples", code=basis.artifact)
    with execution.artifacts.create(examples) as place:
        tops, values = files.save_examples(place, basis.code)
    new = basis.numbers >= context.n_features
    quality = _quality(context, basis, measures, activations, evidence, judgement)
    log.info("verdicts", checkpoint=context.name, **{name: quality[name] for name in ("fvu", "l0", "statuses")})
    at_hooks = {key: values.numpy() for key, values in measures.per_hook.items()}
    at_hooks["projection_reach"] = reach(
        at_hooks["projection"], at_hooks.pop("projection_error"), judgement.size_factor,
        len(evidence.projection) - 1, context.policy,
    )  # fmt: skip
    logits, lens = promoted_tokens.token_logits(execution, context, new.nonzero().squeeze(1), measures.dictionaries)
    return verdicts.Outcome(
        generation=context.generation,
        positions=positions,
        first_number=context.n_features,
        numbers=basis.numbers.numpy(),
        origins=_origins(context, basis, evidence),
        top_tokens=_top_tokens(execution, positions, tops[new.numpy()], values[new.numpy()]),
        logits=logits,
        code=basis.artifact,
        examples=examples,
        n_positions=basis.code.n,
        sources=[
            verdicts.SourceOutcome(
                hook_point=hook,
                d_model=width,
                stats={
                    "fvu": round(float(measures.fvu[s]), 5),
                    "rms": activations.statistics()[s][1],
                    "paired_with": dict(enumerate(context.parent.hook_points)).get(s) if context.parent else None,
                },
                dictionary=measures.dictionaries[hook],
                activations=folder,
            )
            for s, (hook, width) in enumerate(zip(context.hook_points, activations.widths, strict=True))
        ],
        quality=quality | lens,
        evidence=evidence,
        judgement=judgement,
        strength=measures.replicates["strength"].numpy(),
        cosine=measures.replicates["cosine"][0].numpy(),
        per_hook={
            hook: {key: values[s] for key, values in at_hooks.items()} for s, hook in enumerate(context.hook_points)
        },
        fitted=context.fit != "extend",
        lineage=[verdicts.Link(*link) for link in basis.lineage],
    )


def _quality(
    context: OnboardingContext,
    basis: Basis,
    measures: Measures,
    activations: Activations,
    evidence: Evidence,
    judgement: Judgement,
) -> dict[str, Any]:
    """How well the dictionary does on the checkpoint, and how it came about."""
    fvu = measures.fvu.mean().item()
    return {
        "fvu": round(fvu, 5),
        "l0": round(len(basis.code.values) / max(int(activations.valid.sum()), 1), 3),
        "dead_share": round(float((evidence.firings == 0).mean()), 5),
        "valid_share": round(float(activations.opened.valid.mean()), 5),
        "size_factor": round(judgement.size_factor, 5),
        "fdr_level": float(f"{judgement.level:.3g}"),
        "positions": basis.code.n,
        "statuses": dict(Counter(str(status) for status in judgement.status)),
        "fit": context.why,
        "refit_advised": bool(
            context.fit == "extend" and context.fitted_fvu and fvu > context.policy.max_fvu_ratio * context.fitted_fvu
        ),
    }


def _origins(context: OnboardingContext, basis: Basis, evidence: Evidence) -> dict[int, str]:
    """Feature number -> origin, of the features that are new in this run."""
    new = np.flatnonzero(basis.numbers.numpy() >= context.n_features)
    otherwise = "discovered" if context.fit == "extend" else "fitted"
    return {int(basis.numbers[column]): "emerged" if evidence.born_here[column] else otherwise for column in new}


def _top_tokens(
    execution: Execution, positions: dict[str, Any], tops: np.ndarray, values: np.ndarray
) -> list[list[str]]:
    """Tokens that each new feature fires on most, by summed activation over its top positions."""
    if positions["documents"] is None or not len(tops):
        return [[] for _ in tops]
    place = load_file(execution.artifacts.path(positions["artifact"]))
    document, start, end = (place[key].numpy() for key in ("document", "start", "end"))
    texts = {d.id: d.text for d in load_documents(execution.artifacts.path(positions["documents"]))}
    result = []
    for rows, weights in zip(tops, values, strict=True):
        tokens: dict[str, float] = {}
        for row, weight in zip(rows[rows >= 0], weights[rows >= 0], strict=True):
            token = texts[int(document[row])][start[row] : end[row]]
            tokens[token] = tokens.get(token, 0.0) + float(weight)
        result.append(sorted(tokens, key=lambda token: -tokens[token])[:TOP_TOKENS])
    return result


def write(execution: Execution, outcomes: list[tuple[str, verdicts.Outcome]]) -> None:
    """Verdicts, measurements, alerts, events and the end of the run: all or nothing.

    outcomes: (checkpoint, what was found out about it), parents first; the run's result is the last one's.
    """
    with execution.write() as session:
        for checkpoint_id, found in outcomes:
            summary = verdicts.record(session, checkpoint_id=checkpoint_id, run_id=execution.run_id, outcome=found)
            reads = signatures.queue_all(session, checkpoint_id)
            summary |= {"signature_run": reads.id} if reads else {}
            dependencies.queue_watched(session, checkpoint_id)
        execution.finish(session, summary)


def write_harvest(
    execution: Execution, context: OnboardingContext, activations: Activations, folder: str, positions: dict[str, Any]
) -> None:
    """Write that the checkpoint was harvested, and end the run: a later one's fit will judge it."""
    sources = [
        verdicts.SourceOutcome(hook, width, {}, None, folder)
        for hook, width in zip(context.hook_points, activations.widths, strict=True)
    ]
    with execution.write() as session:
        result = verdicts.keep(session, checkpoint_id=context.checkpoint_id, positions=positions, sources=sources)
        execution.finish(session, result)
