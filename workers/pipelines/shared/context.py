"""The inputs of a run: plain copies of the rows it needs, read once at its start."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from featurewatch.service.config import Settings
from featurewatch.service.families.schemas import CrosscoderOptions
from featurewatch.service.kit.artifacts import content_key
from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.recording import verdicts
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
    "own-code": 1,
    "positions": 1,
    "promoted": 1,
    "rows": 1,
}
"""Kind of artifact -> version of the step that makes it. Raise it when the step gives another result for equal inputs:
artifacts of older versions are then not reused."""
EARLIER = 8
"""How many ancestors, latest first, are searched for the past of a discovered feature."""


@dataclass(frozen=True)
class EarlierCheckpoint:
    """An earlier checkpoint with stored activations, and with dictionaries if it was judged."""

    id: str
    name: str
    hook_points: list[str]
    """Its own: in the order of this run's if equally many, else all of them until they are paired"""
    widths: dict[str, int]
    """hook point -> d_model"""
    activations: dict[str, str]
    """hook point -> artifact"""
    dictionaries: dict[str, str]
    uri: str
    adapter: str | None


@dataclass(frozen=True)
class ParentCheckpoint(EarlierCheckpoint):
    """The checkpoint that is extended, and compared with."""

    code: str
    generation: int
    own_code: str | None = None
    """None if it was judged by a version that read no own codes"""
    rows: str | None = None
    """What its own code was read with"""


@dataclass(frozen=True)
class OnboardingContext:
    """The inputs of an onboarding."""

    family_id: str
    family_name: str
    checkpoint_id: str
    name: str
    uri: str
    adapter: str | None
    hook_points: list[str]
    corpus: dict[str, Any]
    documents: dict[str, Any] | None
    """The family's copy of its corpus. None if it does not exist yet, or the family has no text"""
    crosscoder: dict[str, Any]
    policy: Policy
    positions: dict[str, Any] | None
    n_features: int
    generation: int
    """Of the dictionary that this run judges with"""
    fit: Literal["fit", "extend", "refit", "later"]
    why: str
    """The fit and, for a re-fit, its reason: "refit: 8 extensions\""""
    parent: ParentCheckpoint | None
    anchors: list[EarlierCheckpoint] = field(default_factory=list)
    """Checkpoints that a re-fit trains on besides this one"""
    waiting: list[EarlierCheckpoint] = field(default_factory=list)
    """Checkpoints waiting for the first fit, oldest first. The fit covers them and this one, and judges them all"""
    comparison: int = 1
    """How many judged checkpoints precede this one in its lineage"""
    fitted_fvu: float | None = None
    """FVU of the parent's generation when it was fitted"""
    earlier: list[EarlierCheckpoint] = field(default_factory=list)
    """Latest ancestors with stored activations, the parent first, for the past of discovered features"""

    def artifact(self, kind: str, suffix: str = ".safetensors", **inputs: Any) -> str:
        """Name of the family's artifact of this kind for these inputs."""
        return artifact_name(self.family_id, kind, suffix, **inputs)


def artifact_name(family_id: str, kind: str, suffix: str = ".safetensors", **inputs: Any) -> str:
    """Name of a family's artifact of this kind, made by the current version of its step from these inputs."""
    return f"{family_id}/{kind}-{content_key(kind=kind, version=VERSIONS[kind], **inputs)}{suffix}"


def load_context(execution: Execution) -> OnboardingContext:
    """The inputs of an onboarding. RunError if the parent has no verdicts, or the requested fit is not possible."""
    with execution.read() as session:
        subject = verdicts.subject(session, str(execution.checkpoint_id))
    checkpoint, family, ancestors = subject.checkpoint, subject.family, subject.ancestors
    policy = Policy.model_validate(family.policy)
    fit, why = _choose_fit(checkpoint, ancestors, policy)
    parent, anchored = None, []
    waiting = bool(ancestors) and all(ancestor.checkpoint.state == "harvested" for ancestor in ancestors)
    if ancestors and not waiting:
        parent = _parent(ancestors[0], checkpoint.hook_points)
    if fit == "refit":
        anchored = anchors(ancestors, checkpoint.hook_points, policy.anchors)
    return OnboardingContext(
        **_common_fields(checkpoint, family),
        family_id=family.id,
        generation=parent.generation if parent and fit == "extend" else family.generation + 1,
        fit=fit,
        why=why,
        parent=parent,
        anchors=[_stored(ancestor, checkpoint.hook_points) for ancestor in anchored],
        waiting=[_stored(ancestor, checkpoint.hook_points) for ancestor in reversed(ancestors)] if waiting else [],
        comparison=max(1, len(ancestors)),
        fitted_fvu=fitted_fvu(ancestors),
        earlier=_earlier(ancestors, parent) if parent and fit == "extend" else [],
    )


def load_against_itself(execution: Execution) -> OnboardingContext:
    """A judged checkpoint as a child of itself. Its artifacts go to a folder of the run."""
    with execution.read() as session:
        subject = verdicts.subject(session, str(execution.checkpoint_id))
        parent = _parent(itself(session, subject.checkpoint), subject.checkpoint.hook_points)
    checkpoint, family = subject.checkpoint, subject.family
    return OnboardingContext(
        **_common_fields(checkpoint, family),
        family_id=f"{family.id}/calibrations/{execution.run_id}",
        generation=parent.generation,
        fit="extend",
        why="extend",
        parent=parent,
    )


def load_judged(execution: Execution, checkpoint_id: str) -> tuple[OnboardingContext, EarlierCheckpoint, str]:
    """A judged checkpoint as its own run saw it, the checkpoint as it is stored, and the artifact of its code.

    The dictionaries are left out: they are what is to be restored. RunError if the activations are not stored.
    """
    with execution.read() as session:
        subject = verdicts.subject(session, checkpoint_id)
        checkpoint, stored = subject.checkpoint, itself(session, subject.checkpoint)
    if stored.code is None or not stored.readable(checkpoint.hook_points):
        raise RunError("activations-gone", f"the activations of {checkpoint.name} are no longer stored")
    parent = _parent(subject.ancestors[0], checkpoint.hook_points) if subject.ancestors else None
    extends = parent is not None and parent.generation == stored.code.generation
    fit: Literal["fit", "extend", "refit"] = "extend" if extends else "refit" if parent else "fit"
    context = OnboardingContext(
        **_common_fields(checkpoint, subject.family),
        family_id=subject.family.id,
        generation=stored.code.generation,
        fit=fit,
        why=fit,
        parent=parent,
        comparison=max(1, len(subject.ancestors)),
    )
    return context, replace(_stored(stored, checkpoint.hook_points), dictionaries={}), stored.code.artifact


def _common_fields(checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    """Fields of a checkpoint and its family. Options newer than the family get their defaults."""
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
    """For a family whose corpus was copied along with its positions."""
    artifact = (positions or {}).get("documents")
    return {"artifact": artifact} if artifact else None


def _choose_fit(
    checkpoint: Checkpoint, ancestors: list[Ancestor], policy: Policy
) -> tuple[Literal["fit", "extend", "refit", "later"], str]:
    """The fit that the registration or the policy asks for, and why."""
    if checkpoint.fit == "later":
        if any(ancestor.code is not None for ancestor in ancestors):
            raise RunError("dictionary-is-there", "the family already has a dictionary; use `fit: auto` or `extend`")
        return "later", "later"
    if all(ancestor.checkpoint.state == "harvested" for ancestor in ancestors):
        if checkpoint.fit == "extend":
            raise RunError(
                "nothing-to-extend",
                f"{checkpoint.name} is the first checkpoint, so there is no dictionary to extend; use `fit: auto`",
            )
        names = [*(ancestor.checkpoint.name for ancestor in reversed(ancestors)), checkpoint.name]
        return "fit", f"fit over {', '.join(names)}" if ancestors else "fit"
    if checkpoint.fit == "refit":
        return "refit", "refit: asked for"
    reason = why_refit(ancestors, policy) if checkpoint.fit == "auto" else None
    return ("refit", f"refit: {reason}") if reason else ("extend", "extend")


def _parent(ancestor: Ancestor, hook_points: list[str]) -> ParentCheckpoint:
    parent = ancestor.checkpoint
    if parent.state != "judged" or ancestor.code is None:
        raise RunError("parent-not-judged", f"the parent {parent.name} is {parent.state}; retry once it is judged")
    own = ancestor.hooks(hook_points)
    missing = [] if own is None else [hook for hook in own if hook not in ancestor.sources]
    if missing:
        raise RunError("parent-lacks-hook-point", f"the parent {parent.name} was not read at {', '.join(missing)}")
    if own is not None and not ancestor.readable(hook_points):
        raise RunError(
            "parent-activations-gone",
            f"the activations of {parent.name} were removed; register it again under another name with the same "
            "parent, then use that checkpoint as the parent",
        )
    return ParentCheckpoint(
        **vars(_stored(ancestor, hook_points)),
        code=ancestor.code.artifact,
        generation=ancestor.code.generation,
        own_code=ancestor.code.own_code,
        rows=ancestor.code.rows,
    )


def _earlier(ancestors: list[Ancestor], parent: ParentCheckpoint) -> list[EarlierCheckpoint]:
    hooks = parent.hook_points
    return [
        _stored(ancestor, hooks)
        for ancestor in ancestors[:EARLIER]
        if ancestor.checkpoint.state == "judged" and ancestor.readable(hooks)
    ]


def _stored(ancestor: Ancestor, hook_points: list[str]) -> EarlierCheckpoint:
    own = ancestor.hooks(hook_points)
    if own is None or not ancestor.readable(hook_points):
        theirs = ", ".join(ancestor.checkpoint.hook_points)
        raise RunError(
            "other-hook-points",
            f"{ancestor.checkpoint.name} was read at {theirs}, none of them of the same kind as "
            f"{', '.join(hook_points)}. Name hook points of the same kind, or the same number to pair them in order",
        )
    return EarlierCheckpoint(
        id=ancestor.checkpoint.id,
        name=ancestor.checkpoint.name,
        hook_points=own,
        widths={hook: source.d_model for hook, source in ancestor.sources.items()},
        activations={hook: str(source.activations) for hook, source in ancestor.sources.items()},
        dictionaries={hook: source.dictionary for hook, source in ancestor.sources.items() if source.dictionary},
        uri=ancestor.checkpoint.uri,
        adapter=ancestor.checkpoint.adapter,
    )


def device_of(settings: Settings) -> torch.device:
    """The device that the settings ask for. RunError `no-device` if it is missing."""
    wanted = settings.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise RunError("no-device", f"FEATUREWATCH_DEVICE is {wanted}, but this worker has no CUDA device")
    return torch.device(wanted)


def set_threads(settings: Settings) -> None:
    """Use as many CPU threads as the settings allow."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
