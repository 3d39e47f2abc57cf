"""What an onboarding is about: plain copies of the rows it needs, read once at its start."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from featurewatch.service.config import Settings
from featurewatch.service.families.schemas import CrosscoderOptions
from featurewatch.service.kit.artifacts import content_key
from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.verdicts import logic as verdicts
from featurewatch.service.verdicts.generations import Ancestor, anchors, fitted_fvu, itself, why_refit
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.activations.harvest.shards import PLAN_VERSION
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution

VERSIONS = {
    "activations": PLAN_VERSION,
    "code": 1,
    "contrast-activations": 1,
    "dependencies": 1,
    "dictionary": 1,
    "documents": 1,
    "examples": 1,
    "lineage": 1,
    "measures": 2,
    "positions": 1,
    "promoted": 1,
}
"""Kind of artifact -> version of the step that makes it. Raise one when the step writes something else than before of
the same inputs: what an older version has made is then not taken for it."""
EARLIER = 8
"""Ancestors, the latest ones, in which the past of a discovered feature is looked for."""


@dataclass(frozen=True)
class EarlierCheckpoint:
    """An earlier checkpoint whose activations are kept; and its dictionaries, where it was judged."""

    id: str
    name: str
    hook_points: list[str]
    """its own: in the order of this run's where they are as many, else all of them until they are paired"""
    widths: dict[str, int]
    """hook point -> d_model"""
    activations: dict[str, str]
    """hook point -> artifact"""
    dictionaries: dict[str, str]
    uri: str
    adapter: str | None


@dataclass(frozen=True)
class ParentCheckpoint(EarlierCheckpoint):
    """The checkpoint that is extended and compared with."""

    code: str
    generation: int


@dataclass(frozen=True)
class OnboardingContext:
    """One onboarding."""

    family_id: str
    family_name: str
    checkpoint_id: str
    name: str
    uri: str
    adapter: str | None
    hook_points: list[str]
    corpus: dict[str, Any]
    documents: dict[str, Any] | None
    """The family's copy of its corpus; None: it is not made yet, or the family's activations came without text"""
    crosscoder: dict[str, Any]
    policy: Policy
    positions: dict[str, Any] | None
    n_features: int
    generation: int
    """of the dictionary that this run judges with"""
    fit: Literal["fit", "extend", "refit", "later"]
    why: str
    """What is done and, of a re-fit, why: "refit: 8 extensions"."""
    parent: ParentCheckpoint | None
    anchors: list[EarlierCheckpoint] = field(default_factory=list)
    """What a re-fit trains on beside this checkpoint"""
    waiting: list[EarlierCheckpoint] = field(default_factory=list)
    """Checkpoints that wait for the first fit, oldest first: it is made over them and this one, and judges them all"""
    comparison: int = 1
    """Which one of its lineage: how many judged checkpoints came before this one"""
    fitted_fvu: float | None = None
    """FVU of the parent's generation where it was fitted"""
    earlier: list[EarlierCheckpoint] = field(default_factory=list)
    """Of the latest ancestors those whose activations are kept, the parent first: discovered features' past"""

    def artifact(self, kind: str, suffix: str = ".safetensors", **inputs: Any) -> str:
        """Name of an artifact of this family that is made from these inputs."""
        return artifact_name(self.family_id, kind, suffix, **inputs)


def artifact_name(family_id: str, kind: str, suffix: str = ".safetensors", **inputs: Any) -> str:
    """Name of an artifact of a family that a step of this version makes from these inputs."""
    return f"{family_id}/{kind}-{content_key(kind=kind, version=VERSIONS[kind], **inputs)}{suffix}"


def load_context(execution: Execution) -> OnboardingContext:
    """Read what the run is about. RunError where the parent has no verdicts to extend, or `fit` cannot be had."""
    with execution.read() as session:
        subject = verdicts.subject(session, str(execution.checkpoint_id))
    checkpoint, family, ancestors = subject.checkpoint, subject.family, subject.ancestors
    policy = Policy.model_validate(family.policy)
    fit, why = _what_to_do(checkpoint, ancestors, policy)
    parent, anchored = None, []
    waiting = bool(ancestors) and all(one.checkpoint.state == "harvested" for one in ancestors)
    if ancestors and not waiting:
        parent = _parent(ancestors[0], checkpoint.hook_points)
    if fit == "refit":
        anchored = anchors(ancestors, checkpoint.hook_points, policy.anchors)
    return OnboardingContext(
        **_about(checkpoint, family),
        family_id=family.id,
        generation=parent.generation if parent and fit == "extend" else family.generation + 1,
        fit=fit,
        why=why,
        parent=parent,
        anchors=[EarlierCheckpoint(**_kept(one, checkpoint.hook_points)) for one in anchored],
        waiting=[EarlierCheckpoint(**_kept(one, checkpoint.hook_points)) for one in reversed(ancestors)]
        if waiting
        else [],
        comparison=max(1, len(ancestors)),
        fitted_fvu=fitted_fvu(ancestors),
        earlier=_earlier(ancestors, parent) if parent and fit == "extend" else [],
    )


def load_against_itself(execution: Execution) -> OnboardingContext:
    """A judged checkpoint as a child of its own, to be extended onto. Its artifacts go to a folder of the run."""
    with execution.read() as session:
        subject = verdicts.subject(session, str(execution.checkpoint_id))
        parent = _parent(itself(session, subject.checkpoint), subject.checkpoint.hook_points)
    checkpoint, family = subject.checkpoint, subject.family
    return OnboardingContext(
        **_about(checkpoint, family),
        family_id=f"{family.id}/calibrations/{execution.run_id}",
        generation=parent.generation,
        fit="extend",
        why="extend",
        parent=parent,
    )


def load_judged(execution: Execution, checkpoint_id: str) -> tuple[OnboardingContext, EarlierCheckpoint, str]:
    """A judged checkpoint as its own run saw it, what is kept of it, and the artifact of its code.

    It is without dictionaries: they are what is to be made again. RunError where the activations are not kept.
    """
    with execution.read() as session:
        subject = verdicts.subject(session, checkpoint_id)
        checkpoint, one = subject.checkpoint, itself(session, subject.checkpoint)
    if one.code is None or not one.readable(checkpoint.hook_points):
        raise RunError("activations-gone", f"the activations of {checkpoint.name} are not kept any more")
    parent = _parent(subject.ancestors[0], checkpoint.hook_points) if subject.ancestors else None
    extends = parent is not None and parent.generation == one.code.generation
    fit: Literal["fit", "extend", "refit"] = "extend" if extends else "refit" if parent else "fit"
    context = OnboardingContext(
        **_about(checkpoint, subject.family),
        family_id=subject.family.id,
        generation=one.code.generation,
        fit=fit,
        why=fit,
        parent=parent,
    )
    kept = EarlierCheckpoint(**(_kept(one, checkpoint.hook_points) | {"dictionaries": {}}))
    return context, kept, one.code.artifact


def _about(checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    """What a run is told of its checkpoint and family. Options that are newer than the family take their defaults."""
    return {
        "family_name": family.name,
        "checkpoint_id": checkpoint.id,
        "name": checkpoint.name,
        "uri": checkpoint.uri,
        "adapter": checkpoint.adapter,
        "hook_points": list(checkpoint.hook_points),
        "corpus": dict(family.corpus),
        "documents": family.documents or _documents_of(family.positions),
        "crosscoder": CrosscoderOptions.model_validate(family.crosscoder).model_dump(),
        "policy": Policy.model_validate(family.policy),
        "positions": family.positions,
        "n_features": family.n_features,
    }


def _documents_of(positions: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a family whose corpus was copied with its positions."""
    artifact = (positions or {}).get("documents")
    return {"artifact": artifact} if artifact else None


def _what_to_do(
    checkpoint: Checkpoint, ancestors: list[Ancestor], policy: Policy
) -> tuple[Literal["fit", "extend", "refit", "later"], str]:
    """What the registration asks for, or the policy; and why."""
    if checkpoint.fit == "later":
        if any(one.code is not None for one in ancestors):
            raise RunError("dictionary-is-there", "`fit: later` is for before a family's first fit; use auto or extend")
        return "later", "later"
    if all(one.checkpoint.state == "harvested" for one in ancestors):
        if checkpoint.fit == "extend":
            raise RunError(
                "nothing-to-extend", f"{checkpoint.name} is the first checkpoint: there is no dictionary yet"
            )
        names = [*(one.checkpoint.name for one in reversed(ancestors)), checkpoint.name]
        return "fit", f"fit over {', '.join(names)}" if ancestors else "fit"
    if checkpoint.fit == "refit":
        return "refit", "refit: asked for"
    reason = why_refit(ancestors, policy) if checkpoint.fit == "auto" else None
    return ("refit", f"refit: {reason}") if reason else ("extend", "extend")


def _parent(ancestor: Ancestor, hook_points: list[str]) -> ParentCheckpoint:
    parent = ancestor.checkpoint
    if parent.state != "judged" or ancestor.code is None:
        raise RunError("parent-not-judged", f"the parent {parent.name} is {parent.state}; retry when it is judged")
    own = ancestor.hooks(hook_points)
    missing = [] if own is None else [hook for hook in own if hook not in ancestor.sources]
    if missing:
        raise RunError("parent-lacks-hook-point", f"the parent {parent.name} was not read at {', '.join(missing)}")
    if own is not None and not ancestor.readable(hook_points):
        raise RunError(
            "parent-activations-gone",
            f"the activations of {parent.name} were removed; register it again under another name, as a child of its "
            "own parent, and compare with that one",
        )
    return ParentCheckpoint(
        **_kept(ancestor, hook_points), code=ancestor.code.artifact, generation=ancestor.code.generation
    )


def _earlier(ancestors: list[Ancestor], parent: ParentCheckpoint) -> list[EarlierCheckpoint]:
    hooks = parent.hook_points
    readable = [one for one in ancestors[:EARLIER] if one.checkpoint.state == "judged" and one.readable(hooks)]
    return [EarlierCheckpoint(**_kept(one, hooks)) for one in readable]


def _kept(ancestor: Ancestor, hook_points: list[str]) -> dict[str, Any]:
    own = ancestor.hooks(hook_points)
    if own is None or not ancestor.readable(hook_points):
        theirs = ", ".join(ancestor.checkpoint.hook_points)
        raise RunError(
            "other-hook-points",
            f"{ancestor.checkpoint.name} was read at {theirs}, none of them of the kinds of {', '.join(hook_points)}; "
            "name one of a kind that it has, or as many as it has, to be paired by their place",
        )
    return {
        "id": ancestor.checkpoint.id,
        "name": ancestor.checkpoint.name,
        "hook_points": own,
        "widths": {hook: source.d_model for hook, source in ancestor.sources.items()},
        "activations": {hook: str(source.activations) for hook, source in ancestor.sources.items()},
        "dictionaries": {hook: source.dictionary for hook, source in ancestor.sources.items() if source.dictionary},
        "uri": ancestor.checkpoint.uri,
        "adapter": ancestor.checkpoint.adapter,
    }


class _HasSettings(Protocol):
    settings: Settings


def device_of(worker: _HasSettings) -> torch.device:
    """The device that the settings of an execution or a helper ask for. RunError `no-device` if it is missing."""
    wanted = worker.settings.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise RunError("no-device", f"FEATUREWATCH_DEVICE is {wanted}, but this worker has no CUDA device")
    return torch.device(wanted)


def set_threads(execution: Execution) -> None:
    """As many CPU threads as the settings say."""
    if execution.settings.threads:
        torch.set_num_threads(execution.settings.threads)
