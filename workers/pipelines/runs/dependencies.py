"""Dependencies: what some features of a judged checkpoint are computed from, and what they do.

Sums by fold are kept for each feature as soon as they are there, under a name made from all that they depend on: a run
that was killed goes on with the features that are left, and a checkpoint that is asked again answers from what it has.
"""

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import structlog
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from featurewatch.service.dependencies import figures, judge, logic, queries, store
from featurewatch.service.dependencies.schemas import DependenciesIn
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.signatures import contrast
from featurewatch.service.signatures import queries as signature_queries
from featurewatch.service.signatures.contrast import StoredRow
from featurewatch.service.verdicts import queries as verdict_queries
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.activations import open_activations
from featurewatch.workers.activations.contrast import Row, open_prompts
from featurewatch.workers.activations.models.hooks import without_later_layers
from featurewatch.workers.activations.sources.identity import Reference, Verified
from featurewatch.workers.dependencies.attribution import Attribution, Options, attribute
from featurewatch.workers.dependencies.effects import Answers, Effects, activations, answer_margins, causal_effects
from featurewatch.workers.dependencies.passages import choose_tokens
from featurewatch.workers.dependencies.reading import Dictionary, Target
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.context import artifact_name, device_of
from featurewatch.workers.pipelines.shared.harvest_task import HarvestTask
from featurewatch.workers.pipelines.shared.identity import verified_checkpoint
from featurewatch.workers.pipelines.stages.attribute import TracedModel, trace
from featurewatch.workers.verdicts.folds import FOLDS

log = structlog.get_logger("featurewatch.worker")

NEARLY = 0.9
"""A feature is read at the latest hook point that reads it so well, as a share of the best."""
EFFECT_POSITIONS = 64
"""Each is read in as many versions as there are edits, up to the head."""
DIRECTIONS = 8
TOGETHER = 8
"""Features that share a forward pass, and are kept together."""
TOP_LOGITS = 10
WORDS = "words"


@dataclass(frozen=True)
class AnswerSignature:
    """A signature whose rows are answers to texts."""

    name: str
    contrast: str
    template: bool
    features: frozenset[int]
    pairs: list[tuple[StoredRow, StoredRow]]
    """(positive, negative): two answers to one text"""

    def texts(self, traced: TracedModel) -> list[Answers]:
        """Its texts in tokens, with the first tokens of both answers; those whose answers begin alike are left out."""
        some = self.pairs[:: max(1, -(-len(self.pairs) // EFFECT_POSITIONS))]
        rows = [Row(row.text, row.answer) for pair in some for row in pair]
        prompts = open_prompts(traced.reading.model, traced.tokenizer, rows, "answer", template=self.template)
        found = []
        for a, b in zip(prompts[::2], prompts[1::2], strict=True):
            if a.ids[: a.first] == b.ids[: b.first] and a.first > 0 and a.ids[a.first] != b.ids[b.first]:
                found.append(Answers(torch.tensor(a.ids[: a.first]), a.ids[a.first], b.ids[b.first]))
        return found


@dataclass(frozen=True)
class DependencyRequest:
    """What a run is about: plain copies of the rows it needs."""

    family_id: str
    checkpoint_id: str
    policy: Policy
    body: DependenciesIn
    uri: str
    hook_points: list[str]
    documents: str
    """Artifact: the family's corpus"""
    context_length: int
    positions: dict[str, Any]
    dictionaries: dict[str, str]
    """hook point -> artifact"""
    activations: str | None
    code: str
    targets: dict[int, str]
    """feature number -> hook point where it is read"""
    answer_signatures: list[AnswerSignature]
    """Signatures whose contrast sets hold answers"""

    def artifact(self, number: int) -> str:
        """Where the sums of a feature are kept."""
        inputs: dict[str, Any] = {
            "checkpoint": self.checkpoint_id,
            "code": self.code,
            "dictionaries": self.dictionaries,
            "feature": number,
            "hook": self.targets[number],
            "body": self.body.model_dump(exclude={"features", "hook_point"}),
            "answers": [
                (signature.contrast, signature.template)
                for signature in self.answer_signatures
                if number in signature.features
            ],
        }
        return artifact_name(self.family_id, "dependencies", **inputs)


def run(execution: Execution) -> None:
    """Find the dependencies of the features that the run names."""
    request = load(execution)
    missing = [number for number in request.targets if not execution.artifacts.exists(request.artifact(number))]
    log.info("features", request=len(request.targets), from_before=len(request.targets) - len(missing), uri=request.uri)
    if missing:
        with verified_checkpoint(execution, request.checkpoint_id) as (reference, checkpoint):
            traced = _traced(execution, request, reference, checkpoint)
            with execution.stage("attribute"):
                for start in range(0, len(missing), TOGETHER):
                    some = missing[start : start + TOGETHER]
                    _keep(execution, request, traced, some, start / len(missing), len(missing), checkpoint)
    with execution.stage("judge"):
        rows = [_row(execution, request, number) for number in request.targets]
        with execution.write() as session:
            result = logic.record(
                session, execution.artifacts, checkpoint_id=request.checkpoint_id, run_id=execution.run_id,
                rows=[row for row in rows if row is not None],
            )  # fmt: skip
            unseen = [feature_id(n) for n, row in zip(request.targets, rows, strict=True) if row is None]
            # Which positions are attention sinks stands beside the activations.
            sinks = {} if request.activations else {"attention_sinks": "not left out: the activations were removed"}
            log.info("dependencies", found=len(rows) - len(unseen), too_few_positions=unseen)
            execution.finish(session, result | {"too_few_positions": unseen} | sinks)


def load(execution: Execution) -> DependencyRequest:
    """Read what the run is about. RunError where the checkpoint was judged anew without one of the features."""
    body = DependenciesIn.model_validate(execution.params)
    with execution.read() as session:
        checkpoint = verdict_queries.checkpoint(session, str(execution.checkpoint_id))
        family = verdict_queries.family(session, checkpoint.family_id)
        sources = verdict_queries.sources(session, checkpoint.id)
        code = verdict_queries.code(session, checkpoint.id)
        if code is None or family.positions is None:
            raise RunError("not-judged", f"{checkpoint.name} is not judged any more; retry when it is")
        policy = Policy.model_validate(family.policy)
        hooks = [hook for hook in checkpoint.hook_points if sources[hook].dictionary]
        numbers = [parse_feature_id(name) for name in body.features]
        signatures = [
            (row.name, row.contrast, bool(row.settings["template"]), frozenset(signature_queries.carried(row.chosen)))
            for row in signature_queries.of_family(session, family.id)
        ]
        targets = {n: body.hook_point or _hook_point(session, checkpoint, hooks, n, body.method) for n in numbers}
        return DependencyRequest(
            family_id=family.id,
            checkpoint_id=checkpoint.id,
            policy=policy,
            body=body,
            uri=checkpoint.uri,
            hook_points=hooks,
            documents=family.positions["documents"],
            context_length=family.corpus["context_length"],
            positions=family.positions,
            dictionaries={hook: str(sources[hook].dictionary) for hook in hooks},
            activations=sources[hooks[0]].activations,
            code=code.artifact,
            targets=targets,
            answer_signatures=_answer_signatures(execution, signatures, targets) if body.effects else [],
        )


def _answer_signatures(
    execution: Execution, signatures: list[tuple[str, str, bool, frozenset[int]]], targets: dict[int, str]
) -> list[AnswerSignature]:
    """The signatures of some features whose sets are texts with a positive and a negative answer."""
    found = []
    for name, artifact, template, features in signatures:
        if features & targets.keys():
            groups: dict[int, list[StoredRow]] = {}
            for row in contrast.load(execution.artifacts.path(artifact)):
                groups.setdefault(row.group, []).append(row)
            if pairs := [pair for rows in groups.values() if (pair := _two_answers(rows)) is not None]:
                found.append(AnswerSignature(name, artifact, template, features, pairs))
    return found


def _two_answers(rows: list[StoredRow]) -> tuple[StoredRow, StoredRow] | None:
    """A positive and a negative answer to the same text, where a group is that."""
    if len(rows) != 2 or {row.label for row in rows} != {True, False}:
        return None
    positive, negative = sorted(rows, key=lambda row: not row.label)
    same = positive.text == negative.text and None not in (positive.answer, negative.answer)
    return (positive, negative) if same else None


def _hook_point(session: Any, checkpoint: Any, hooks: list[str], number: int, method: str) -> str:
    """Where a feature is read: as at the parent, so that the two can be compared, else where it is read well."""
    if checkpoint.parent_id is not None:
        before = queries.one(session, checkpoint.parent_id, number, method)
        if before is not None and before.hook_point in hooks:
            return before.hook_point
    best = {}
    for hook in hooks:
        values = verdict_queries.measurement(session, checkpoint.id, "readability", hook)
        best[hook] = 0.0 if values is None or number >= len(values) else float(np.nan_to_num(values[number]))
    good = [hook for hook in hooks if best[hook] >= NEARLY * max(best.values())]
    return max(good, key=lambda hook: int(hook.rpartition(".")[2]))


def _traced(
    execution: Execution, request: DependencyRequest, reference: Reference, checkpoint: Verified
) -> TracedModel:
    with execution.stage("load"):
        device, artifacts = device_of(execution), execution.artifacts
        task = HarvestTask(
            reference=asdict(reference),
            hook_points=request.hook_points,
            documents=request.documents,
            context_length=request.context_length,
            positions=request.positions,
            skip_tokens=request.policy.skip_tokens,
            max_norm_ratio=request.policy.max_norm_ratio,
            shard_positions=execution.settings.shard_positions,
        )
        spec = task.spec(execution.settings, artifacts, str(device), checkpoint)
        code, _, _ = files.load_code(artifacts.path(request.code), device)
        tensors = {
            hook: load_file(artifacts.path(name), device=str(device)) for hook, name in request.dictionaries.items()
        }
        valid = None
        if request.activations and artifacts.exists(f"{request.activations}/manifest.json"):
            hooks = request.hook_points
            valid = open_activations(artifacts.path(request.activations), hook_points=hooks).valid
        known = {hook: Dictionary.of(parts) for hook, parts in tensors.items()}
        return trace(spec, code, known, valid, execution.check)


def _keep(
    execution: Execution,
    request: DependencyRequest,
    traced: TracedModel,
    numbers: list[int],
    done: float,
    of: int,
    checkpoint: Verified,
) -> None:
    """Attribute some features, and keep what was found of each."""
    body, columns = request.body, _columns(execution, request, numbers)
    share = len(numbers) / of

    def tick(part: float, offset: float, width: float) -> None:
        execution.check()
        execution.progress(done + share * (offset + width * part))

    targets = [_target(request, traced, number, column, body.positions) for number, column in columns.items()]
    split = 0.6 if body.effects and traced.head else 1.0
    with without_later_layers(traced.reading.model, traced.points):
        options = Options(method=body.method, steps=body.steps, folds=FOLDS)
        found = attribute(traced.reading, targets, options, partial(tick, offset=0.0, width=split))
    for place, (number, column) in enumerate(columns.items()):
        effects = None
        if body.effects and traced.head is not None:
            width = (1 - split) / len(columns)
            fewer = _target(request, traced, number, column, min(body.positions, EFFECT_POSITIONS))
            effects = causal_effects(
                traced.reading, traced.head, fewer, directions=DIRECTIONS, folds=FOLDS, seed=number,
                tick=partial(tick, offset=split + width * place, width=width),
            )  # fmt: skip
        tensors, words = _tensors(execution, request, traced, found[place], effects)
        tensors |= _margins(execution, request, traced, number, column)
        checkpoint.recheck()
        with execution.artifacts.create(request.artifact(number)) as path:
            contiguous = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
            save_file(contiguous, path, metadata={WORDS: json.dumps(words)})


def _margins(
    execution: Execution, request: DependencyRequest, traced: TracedModel, number: int, column: int
) -> dict[str, Tensor]:
    """`answers.<signature>` -> margins [3 + directions, texts], of the signatures that the feature is of."""
    if traced.head is None:
        return {}
    found = {}
    for signature in request.answer_signatures:
        if number in signature.features and (texts := signature.texts(traced)):
            found[f"answers.{signature.name}"] = answer_margins(
                traced.reading, traced.head, request.targets[number], column, texts, directions=DIRECTIONS, seed=number,
                check=execution.check,
            )  # fmt: skip
    return found


def _columns(execution: Execution, request: DependencyRequest, numbers: list[int]) -> dict[int, int]:
    """Feature number -> column of the code."""
    own = load_file(execution.artifacts.path(request.code))["feature_numbers"].tolist()
    lost = sorted(set(numbers) - set(own))
    if lost:
        raise RunError("feature-not-in-checkpoint", f"the code of the checkpoint has no {feature_id(lost[0])}")
    return {number: own.index(number) for number in numbers}


def _target(request: DependencyRequest, traced: TracedModel, number: int, column: int, most: int) -> Target:
    reading, code = traced.reading, traced.reading.code
    fires = (activations(code, column) > 0).cpu()
    # The seed is the feature's own, so that every checkpoint is looked at in the same places.
    return choose_tokens(reading.passages, fires, traced.valid, request.targets[number], column, most, number)


def _tensors(
    execution: Execution, request: DependencyRequest, traced: TracedModel, found: Attribution, effects: Effects | None
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """What is kept of one feature (see `service.models.DependencyGraph`), and the tokens that columns stand for."""
    numbers = load_file(execution.artifacts.path(request.code))["feature_numbers"]
    tokens: dict[str, Tensor] = {}
    for token, sums in found.tokens.items():  # several ids may be of one string
        word = traced.tokenizer.decode([token])
        tokens[word] = tokens[word] + sums if word in tokens else sums
    words = {"tokens": list(tokens), "logits": list[str]()}
    tensors = {
        "counts": found.count,
        "values": found.value,
        "constant": torch.tensor(found.constant, dtype=torch.float64),
        "tokens": torch.stack(list(tokens.values()), 1) if tokens else torch.zeros(FOLDS, 0, dtype=torch.float64),
    }
    for hook, place in found.hook_points.items():
        live = (place.features != 0).any(0)
        tensors[f"numbers.{hook}"] = numbers[live]
        tensors[f"sums.{hook}"] = place.features[:, live]
        tensors[f"rest.{hook}"] = torch.stack([place.bias, place.error, place.uncoded], 1)
    if effects is not None and len(effects.logits):
        top = effects.logits.abs().topk(min(TOP_LOGITS, len(effects.logits))).indices
        words["logits"] = [traced.tokenizer.decode([token]) for token in top.tolist()]
        tensors |= {
            "effect.counts": effects.count, "effect.ablate": effects.ablate, "effect.amplify": effects.amplify,
            "effect.random": effects.random, "logits": effects.logits[top].double() / effects.count.sum(),
        }  # fmt: skip
    return tensors, words


def _row(execution: Execution, request: DependencyRequest, number: int) -> dict[str, Any] | None:
    """What is written of one feature; None where it fires in too few documents to say anything."""
    name = request.artifact(number)
    profile = store.load(execution.artifacts, name)
    if not judge.enough(profile.counts):
        return None
    with safe_open(execution.artifacts.path(name), framework="numpy") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
        words = json.loads(file.metadata()[WORDS])
    effect = None
    if "effect.counts" in kept:
        counts, ablate, amplify, random = (kept[f"effect.{part}"] for part in ("counts", "ablate", "amplify", "random"))
        answers = {key.removeprefix("answers."): kept[key] for key in kept if key.startswith("answers.")}
        effect = figures.effect(counts, ablate, amplify, random, answers, request.policy)
    logits = [(word, float(change)) for word, change in zip(words["logits"], kept.get("logits", []), strict=True)]
    tokens = (words["tokens"], kept["tokens"])
    graph = figures.graph(profile, float(kept["constant"]), tokens, logits, request.policy)
    return {
        "feature": number,
        "method": request.body.method,
        "hook_point": request.targets[number],
        "n_positions": int(profile.counts.sum()),
        "artifact": name,
        "graph": graph.model_dump(mode="json"),
        "effect": None if effect is None else effect.model_dump(mode="json"),
    }
