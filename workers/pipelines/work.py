"""What an onboarding is about: plain copies of the rows it needs, read once at its start."""

from dataclasses import dataclass
from typing import Any

import torch

from service.families.schemas import CrosscoderOptions
from service.kit.artifacts import content_key
from service.verdicts import logic as verdicts
from service.verdicts.policy import Policy
from workers.errors import RunError
from workers.execution import Execution


@dataclass(frozen=True)
class Parent:
    """The checkpoint that is extended and compared with."""

    id: str
    name: str
    hook_points: list[str]
    widths: dict[str, int]
    """hook point -> d_model"""
    activations: dict[str, str]
    """hook point -> artifact"""
    dictionaries: dict[str, str]
    code: str
    fvu: float | None


@dataclass(frozen=True)
class Work:
    """One onboarding."""

    family_id: str
    family_name: str
    checkpoint_id: str
    name: str
    uri: str
    adapter: str | None
    digest: str
    hook_points: list[str]
    corpus: dict[str, Any]
    crosscoder: dict[str, Any]
    policy: Policy
    positions: dict[str, Any] | None
    n_features: int
    generation: int
    parent: Parent | None

    def artifact(self, kind: str, suffix: str = ".safetensors", **inputs: Any) -> str:
        """Name of an artifact of this family that is made from these inputs."""
        return f"{self.family_id}/{kind}-{content_key(kind=kind, **inputs)}{suffix}"


def load(execution: Execution) -> Work:
    """Read what the run is about. RunError where the parent has no verdicts to extend, or `fit` cannot be had."""
    with execution.read() as session:
        subject = verdicts.subject(session, str(execution.checkpoint_id))
    checkpoint, family, parent = subject.checkpoint, subject.family, subject.parent
    if checkpoint.fit == "extend" and parent is None:
        raise RunError("nothing-to-extend", f"{checkpoint.name} is the first checkpoint: there is no dictionary yet")
    if checkpoint.fit == "refit" and parent is not None:
        raise RunError(
            "refit-unavailable",
            "re-fits of a family that has a dictionary are not in this version; register with fit: extend or auto",
        )
    base = None
    if parent is not None:
        if parent.state != "judged" or subject.code is None:
            raise RunError("parent-not-judged", f"the parent {parent.name} is {parent.state}; retry when it is judged")
        missing = [hook for hook in checkpoint.hook_points if hook not in subject.sources]
        if missing:
            raise RunError("parent-lacks-hook-point", f"the parent {parent.name} was not read at {', '.join(missing)}")
        gone = [hook for hook in checkpoint.hook_points if subject.sources[hook].activations is None]
        if gone:
            raise RunError("parent-activations-gone", f"retention removed the activations of {parent.name}; retry it")
        base = Parent(
            id=parent.id,
            name=parent.name,
            hook_points=list(parent.hook_points),
            widths={hook: source.d_model for hook, source in subject.sources.items()},
            activations={hook: str(source.activations) for hook, source in subject.sources.items()},
            dictionaries={hook: str(source.dictionary) for hook, source in subject.sources.items()},
            code=subject.code.artifact,
            fvu=(parent.quality or {}).get("fvu"),
        )
    return Work(
        family_id=family.id,
        family_name=family.name,
        checkpoint_id=checkpoint.id,
        name=checkpoint.name,
        uri=checkpoint.uri,
        adapter=checkpoint.adapter,
        digest=checkpoint.digest,
        hook_points=list(checkpoint.hook_points),
        corpus=dict(family.corpus),
        # Options that were added after the family was made take their defaults.
        crosscoder=CrosscoderOptions.model_validate(family.crosscoder).model_dump(),
        policy=Policy.model_validate(family.policy),
        positions=family.positions,
        n_features=family.n_features,
        generation=max(family.generation, 1),
        parent=base,
    )


def device_of(execution: Execution) -> torch.device:
    """The device that the settings ask for; RunError where it is not there."""
    wanted = execution.settings.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise RunError("no-device", f"FEATUREWATCH_DEVICE is {wanted}, but this worker has no CUDA device")
    return torch.device(wanted)
