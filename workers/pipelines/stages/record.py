"""The end of stage judge: everything about a checkpoint, described and written in one transaction."""

from collections import Counter
from typing import Any

import numpy as np
import structlog

from featurewatch.service.dependencies import logic as dependencies
from featurewatch.service.recording import verdicts
from featurewatch.service.signatures import logic as signatures
from featurewatch.service.verdicts.intervals import reach
from featurewatch.service.verdicts.statuses import PLACES_BY_CODE
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files, promoted_tokens
from featurewatch.workers.pipelines.shared.context import OnboardingContext
from featurewatch.workers.pipelines.stages.harvest import Harvest
from featurewatch.workers.pipelines.stages.judge import ParentComparison

log = structlog.get_logger("featurewatch.worker")

TOP_TOKENS = 5


def describe(
    execution: Execution, comparison: ParentComparison, folder: str, positions: dict[str, Any]
) -> verdicts.Outcome:
    """Everything that is stored about the checkpoint. `folder`: the artifact with its activations."""
    context, activations = comparison.pair.context, comparison.pair.activations
    assert comparison.activity is not None
    basis, measurements, evidence = comparison.basis, comparison.measurements, comparison.evidence
    examples = context.artifact("examples", code=basis.artifact)
    with execution.artifacts.create(examples) as place:
        tops, values = files.save_examples(place, basis.code)
    new = comparison.numbers >= context.n_features
    quality = _quality(comparison)
    log.info("verdicts", checkpoint=context.name, **{name: quality[name] for name in ("fvu", "l0", "statuses")})
    at_hooks = {key: tensor.numpy() for key, tensor in measurements.per_hook.items()}
    at_hooks["projection_reach"] = reach(
        at_hooks["projection"],
        at_hooks.pop("projection_error"),
        comparison.judgement.size_factor,
        len(evidence.projection) - 1,
        context.policy,
    )
    logits, lens = promoted_tokens.token_logits(execution, context, np.flatnonzero(new), measurements.dictionaries)
    return verdicts.Outcome(
        generation=context.generation,
        positions=positions,
        first_number=context.n_features,
        numbers=comparison.numbers,
        origins=_origins(comparison, new),
        top_tokens=_top_tokens(execution, positions, tops[new], values[new]),
        logits=logits,
        code=basis.artifact,
        examples=examples,
        own_code=comparison.activity.own_code,
        rows=comparison.activity.rows,
        n_positions=basis.code.n,
        sources=[
            verdicts.SourceOutcome(
                hook_point=hook,
                d_model=width,
                stats={
                    "fvu": round(float(measurements.fvu[s]), 5),
                    "rms": activations.statistics()[s][1],
                    "paired_with": dict(enumerate(context.parent.hook_points)).get(s) if context.parent else None,
                },
                dictionary=measurements.dictionaries[hook],
                activations=folder,
            )
            for s, (hook, width) in enumerate(zip(context.hook_points, activations.widths, strict=True))
        ],
        quality=quality | lens,
        evidence=evidence,
        judgement=comparison.judgement,
        strength=measurements.replicates["strength"].numpy(),
        cosine=measurements.replicates["cosine"][0].numpy(),
        per_hook={
            hook: {key: values[s] for key, values in at_hooks.items()} for s, hook in enumerate(context.hook_points)
        },
        fitted=context.fit != "extend",
        lineage=[verdicts.Link(*link) for link in basis.lineage],
    )


def _quality(comparison: ParentComparison) -> dict[str, Any]:
    """How well the dictionary fits the checkpoint, and how it was made."""
    context, code, activations = comparison.pair.context, comparison.basis.code, comparison.pair.activations
    judgement, fvu = comparison.judgement, comparison.measurements.fvu.mean().item()
    return {
        "fvu": round(fvu, 5),
        "l0": round(len(code.values) / max(int(activations.valid.sum()), 1), 3),
        "dead_share": round(float((comparison.evidence.firings == 0).mean()), 5),
        "valid_share": round(float(activations.opened.valid.mean()), 5),
        "size_factor": round(judgement.size_factor, 5),
        "fdr_level": float(f"{judgement.level:.3g}"),
        "positions": code.n,
        "statuses": dict(Counter(str(status) for status in judgement.status)),
        "places": dict(Counter(PLACES_BY_CODE[code].value for code in judgement.places.tolist() if code >= 0)),
        "fit": context.why,
        "refit_advised": bool(
            context.fit == "extend" and context.fitted_fvu and fvu > context.policy.max_fvu_ratio * context.fitted_fvu
        ),
    }


def _origins(comparison: ParentComparison, new: np.ndarray) -> dict[int, str]:
    """Feature number -> origin, of the features that are new in this run."""
    otherwise = "discovered" if comparison.pair.context.fit == "extend" else "fitted"
    numbers, born = comparison.numbers, comparison.evidence.born_here
    return {int(numbers[column]): "emerged" if born[column] else otherwise for column in np.flatnonzero(new)}


def _top_tokens(
    execution: Execution, positions: dict[str, Any], tops: np.ndarray, values: np.ndarray
) -> list[list[str]]:
    """The tokens that each new feature fires on most, by summed activation over its top positions."""
    if positions["documents"] is None or not len(tops):
        return [[] for _ in tops]
    text = files.load_text(execution.artifacts, positions)
    result = []
    for rows, weights in zip(tops, values, strict=True):
        tokens: dict[str, float] = {}
        for row, weight in zip(rows[rows >= 0], weights[rows >= 0], strict=True):
            token = text.texts[int(text.document[row])][text.start[row] : text.end[row]]
            tokens[token] = tokens.get(token, 0.0) + float(weight)
        result.append(sorted(tokens, key=lambda token: -tokens[token])[:TOP_TOKENS])
    return result


def write(execution: Execution, outcomes: list[tuple[str, verdicts.Outcome]]) -> None:
    """Write verdicts, measurements, alerts, events and the end of the run: all or nothing.

    outcomes: (checkpoint id, its outcome), parents first. The run's result is that of the last one.
    """
    with execution.write() as session:
        for checkpoint_id, outcome in outcomes:
            summary = verdicts.record(session, checkpoint_id=checkpoint_id, run_id=execution.run_id, outcome=outcome)
            reads = signatures.queue_all(session, checkpoint_id)
            summary |= {"signature_run": reads.id} if reads else {}
            dependencies.queue_watched(session, checkpoint_id)
        execution.finish(session, summary)


def write_harvest(execution: Execution, context: OnboardingContext, harvest: Harvest) -> None:
    """Write that the checkpoint was harvested, and end the run. A later run will fit it and judge it."""
    sources = [
        verdicts.SourceOutcome(hook, width, {}, None, harvest.folder)
        for hook, width in zip(context.hook_points, harvest.activations.widths, strict=True)
    ]
    with execution.write() as session:
        result = verdicts.keep(
            session, checkpoint_id=context.checkpoint_id, positions=harvest.positions, sources=sources
        )
        execution.finish(session, result)
