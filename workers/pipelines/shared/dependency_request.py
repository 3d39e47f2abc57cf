"""The inputs of a run that finds dependencies."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from featurewatch.service.dependencies import queries
from featurewatch.service.dependencies.schemas import DependenciesIn
from featurewatch.service.kit.ids import parse_feature_id
from featurewatch.service.signatures import contrast
from featurewatch.service.signatures import queries as signature_queries
from featurewatch.service.signatures.contrast import StoredRow
from featurewatch.service.verdicts import queries as verdict_queries
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import artifact_name

NEARLY = 0.9
"""A feature is read at the latest hook point whose readability is at least this share of the best."""


@dataclass(frozen=True)
class AnswerSignature:
    """A signature whose contrast set holds two answers to each text."""

    name: str
    contrast: str
    template: bool
    features: frozenset[int]
    pairs: list[tuple[StoredRow, StoredRow]]
    """(positive, negative) answers to one text"""


@dataclass(frozen=True)
class DependencyRequest:
    """The inputs of a run: plain copies of the rows it needs."""

    family_id: str
    checkpoint_id: str
    policy: Policy
    body: DependenciesIn
    uri: str
    hook_points: list[str]
    documents: str
    """Artifact of the family's copy of its corpus"""
    context_length: int
    positions: dict[str, Any]
    dictionaries: dict[str, str]
    """hook point -> artifact"""
    activations: str | None
    code: str
    targets: dict[int, str]
    """feature number -> hook point where the feature is read"""
    answer_signatures: list[AnswerSignature]
    """Those that contain one of the features"""

    def artifact(self, number: int) -> str:
        """Name of the artifact with the sums of a feature."""
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


def load_request(execution: Execution) -> DependencyRequest:
    """The inputs of a run. RunError `not-judged` if the checkpoint no longer has verdicts."""
    body = DependenciesIn.model_validate(execution.params)
    with execution.read() as session:
        checkpoint = verdict_queries.checkpoint(session, str(execution.checkpoint_id))
        family = verdict_queries.family(session, checkpoint.family_id)
        sources = verdict_queries.sources(session, checkpoint.id)
        code = verdict_queries.code(session, checkpoint.id)
        if code is None or family.positions is None:
            raise RunError("not-judged", f"{checkpoint.name} no longer has verdicts; retry once it is judged again")
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
    """Signatures that contain one of the features and whose sets pair a positive and a negative answer."""
    answer_signatures = []
    for name, artifact, template, features in signatures:
        if features & targets.keys():
            groups: dict[int, list[StoredRow]] = {}
            for row in contrast.load(execution.artifacts.path(artifact)):
                groups.setdefault(row.group, []).append(row)
            if pairs := [pair for rows in groups.values() if (pair := _two_answers(rows)) is not None]:
                answer_signatures.append(AnswerSignature(name, artifact, template, features, pairs))
    return answer_signatures


def _two_answers(rows: list[StoredRow]) -> tuple[StoredRow, StoredRow] | None:
    """The positive and the negative answer to one text, if a group consists of them."""
    if len(rows) != 2 or {row.label for row in rows} != {True, False}:
        return None
    positive, negative = sorted(rows, key=lambda row: not row.label)
    same = positive.text == negative.text and None not in (positive.answer, negative.answer)
    return (positive, negative) if same else None


def _hook_point(session: Any, checkpoint: Any, hooks: list[str], number: int, method: str) -> str:
    """Where to read a feature: as at the parent, so that the two can be compared, else where it is readable."""
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
