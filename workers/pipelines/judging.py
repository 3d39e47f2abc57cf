"""Stage judge: statuses from measurements, and the one transaction that writes everything."""

from collections import Counter
from typing import Any

import numpy as np
import structlog
import torch
from safetensors.torch import load_file

from featurewatch.service.dependencies import logic as dependencies
from featurewatch.service.signatures import logic as signatures
from featurewatch.service.verdicts import logic as verdicts
from featurewatch.service.verdicts.intervals import reach
from featurewatch.service.verdicts.judge import BASELINE_Z, Evidence, Judgement, Successor, judge, standard_error
from featurewatch.service.verdicts.origins import held
from featurewatch.workers.activations import load_documents
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines import files, promoting
from featurewatch.workers.pipelines.dictionary import Basis
from featurewatch.workers.pipelines.measuring import Measures, appearance, firing
from featurewatch.workers.pipelines.sources import Activations
from featurewatch.workers.pipelines.work import Work
from featurewatch.workers.verdicts.succession import Share, shares

log = structlog.get_logger("featurewatch.worker")

STRENGTHENED = 1.5
"""A feature that grew by this may be the successor of one that weakened, beside those that are new."""
TOP_TOKENS = 5


def judged(
    work: Work,
    basis: Basis,
    measures: Measures,
    activations: Activations,
    gone: list[int],
    readability_before: np.ndarray,
) -> tuple[Evidence, Judgement]:
    """Evidence and judgement of every feature.

    gone: numbers that are not there at the parent; readability_before: [m] at the parent, NaN where it has none.
    """
    firings, documents = firing(basis, activations.document)
    replicates = {key: value.numpy() for key, value in measures.replicates.items()}
    found = appearance(
        measures.born_share, measures.born_share_se, measures.replicates["strength_ratio"], measures.baseline_z
    )
    readability = measures.per_hook["readability"].amax(0).numpy()
    squared = replicates["strength"] ** 2
    written = squared[0] >= BASELINE_Z * standard_error(squared)
    readable = np.nan_to_num(readability) >= work.policy.min_readability
    parents = measures.parent_readability.numpy()
    readability_before = np.where(np.isnan(readability_before), parents, readability_before)
    # Of the new columns those are new features that are surely written here, can be read here, and are not held by
    # the parent as well: those that it holds were there before.
    born = basis.born.numpy() & written & readable & ~held(found, readability, readability_before, work.policy)
    evidence = Evidence(
        projection=replicates["projection"],
        strength_ratio=replicates["strength_ratio"],
        orthogonal=replicates["orthogonal"],
        firings=firings,
        documents=documents,
        readability=readability,
        readability_before=readability_before,
        baseline_z=measures.baseline_z.numpy(),
        there_before=~np.isin(basis.numbers.numpy(), gone),
        born_here=born,
        comparison=work.comparison,
    )
    first = judge(evidence, work.policy)
    candidates = np.flatnonzero(born | (np.nan_to_num(first.projection_ratio) > STRENGTHENED))
    strength, ratio = replicates["strength"][0], replicates["strength_ratio"][0]
    before = np.nan_to_num(strength / np.where(ratio > 0, ratio, np.nan))
    carried = shares(basis.code.to_scipy(), np.flatnonzero(first.weakened), candidates, before, strength)
    evidence.successors = _successors(carried)
    return evidence, judge(evidence, work.policy)


def _successors(carried: dict[int, dict[int, Share]]) -> dict[int, list[Successor]]:
    """Name the kinds: one successor, one of several, or one that takes the place of several."""
    taken = Counter(candidate for named in carried.values() for candidate in named)
    return {
        column: [
            Successor(candidate, _kind(taken[candidate], len(named)), share.cofiring, share.strength)
            for candidate, share in sorted(named.items(), key=lambda item: -item[1].cofiring)
        ]
        for column, named in carried.items()
    }


def _kind(predecessors: int, successors: int) -> str:
    if predecessors > 1:
        return "merged"
    return "split" if successors > 1 else "replaced"


def readability_at_parent(execution: Execution, work: Work, basis: Basis) -> np.ndarray:
    """[m] of the basis' features, NaN of those that the parent's code does not have."""
    if work.parent is None:
        return np.full(basis.code.m, np.nan, dtype=np.float32)
    with execution.read() as session:
        return verdicts.readability(session, work.parent.id, basis.numbers.numpy())


def outcome(
    execution: Execution,
    work: Work,
    basis: Basis,
    measures: Measures,
    activations: Activations,
    folder: str,
    positions: dict[str, Any],
    evidence: Evidence,
    judgement: Judgement,
) -> verdicts.Outcome:
    """Everything that is written about the checkpoint, ready for one transaction."""
    examples = work.artifact("examples", code=basis.artifact)
    with execution.artifacts.create(examples) as place:
        tops, values = files.save_examples(place, basis.code)
    new = basis.numbers >= work.n_features
    quality = _quality(work, basis, measures, activations, evidence, judgement)
    log.info("verdicts", checkpoint=work.name, **{name: quality[name] for name in ("fvu", "l0", "statuses")})
    at_hooks = {key: values.numpy() for key, values in measures.per_hook.items()}
    at_hooks["projection_reach"] = reach(
        at_hooks["projection"], at_hooks.pop("projection_error"), judgement.size_factor,
        len(evidence.projection) - 1, work.policy,
    )  # fmt: skip
    logits, lens = promoting.token_logits(execution, work, new.nonzero().squeeze(1), measures.dictionaries)
    return verdicts.Outcome(
        generation=work.generation,
        positions=positions,
        first_number=work.n_features,
        numbers=basis.numbers.numpy(),
        origins=_origins(work, basis, evidence),
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
                    "paired_with": dict(enumerate(work.parent.hook_points)).get(s) if work.parent else None,
                },
                dictionary=measures.dictionaries[hook],
                activations=folder,
            )
            for s, (hook, width) in enumerate(zip(work.hook_points, activations.widths, strict=True))
        ],
        quality=quality | lens,
        evidence=evidence,
        judgement=judgement,
        strength=measures.replicates["strength"].numpy(),
        cosine=measures.replicates["cosine"][0].numpy(),
        per_hook={
            hook: {key: values[s] for key, values in at_hooks.items()} for s, hook in enumerate(work.hook_points)
        },
        fitted=work.fit != "extend",
        lineage=[verdicts.Link(*link) for link in basis.lineage],
    )


def _quality(
    work: Work,
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
        "fit": work.why,
        "refit_advised": bool(
            work.fit == "extend" and work.fitted_fvu and fvu > work.policy.max_fvu_ratio * work.fitted_fvu
        ),
    }


def _origins(work: Work, basis: Basis, evidence: Evidence) -> dict[int, str]:
    """Feature number -> origin, of the features that are new in this run."""
    new = np.flatnonzero(basis.numbers.numpy() >= work.n_features)
    otherwise = "discovered" if work.fit == "extend" else "fitted"
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


def wait_for_fit(
    execution: Execution, work: Work, activations: Activations, folder: str, positions: dict[str, Any]
) -> None:
    """Write that the checkpoint was harvested, and end the run: a later one's fit will judge it."""
    sources = [
        verdicts.SourceOutcome(hook, width, {}, None, folder)
        for hook, width in zip(work.hook_points, activations.widths, strict=True)
    ]
    with execution.write() as session:
        result = verdicts.keep(session, checkpoint_id=work.checkpoint_id, positions=positions, sources=sources)
        execution.finish(session, result)


def gone_at_parent(execution: Execution, work: Work) -> list[int]:
    """Numbers of the features that the parent lost, or had lost before."""
    if work.parent is None:
        return []
    with execution.read() as session:
        return verdicts.gone(session, work.parent.id)


def threads(execution: Execution) -> None:
    """As many CPU threads as the settings say."""
    if execution.settings.threads:
        torch.set_num_threads(execution.settings.threads)
