"""JSON of checkpoints."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from featurewatch.service.families.schemas import HookPoints, Name
from featurewatch.service.models import Checkpoint
from featurewatch.service.runs.schemas import RunView

CheckpointState = Literal["registered", "harvested", "judged", "failed"]


def _check_json(value: dict[str, Any]) -> dict[str, Any]:
    """Standard JSON only: Python's parser also accepts NaN and lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise ValueError("contains a value that JSON cannot represent") from None
    return value


class CheckpointIn(BaseModel):
    """A checkpoint to register."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Unique within the family.")
    uri: str = Field(
        min_length=1,
        max_length=2000,
        description="`hf://org/name@revision`, `file:///folder`, `file:///model.gguf`, an object store such as "
        "`s3://bucket/folder`, or `activations+file:///folder` for precomputed activations.",
    )
    adapter: str | None = Field(
        None, min_length=1, max_length=2000, description="URI of a PEFT adapter to apply to the model."
    )
    parent: str | None = Field(
        None, description="Name of the checkpoint it was trained from. Default: the newest one of the family."
    )
    hook_points: HookPoints | None = Field(
        None,
        description="For a model of another size, or to read more or fewer hook points. If there are as many as the "
        "parent has, they are compared by name, or else in list order; otherwise the most similar ones are. Default: "
        "the family's.",
    )
    fit: Literal["auto", "extend", "refit", "later"] = Field(
        "auto",
        description="`auto`: the family's policy decides. `later`, only before a family's first fit: read the "
        "checkpoint without fitting. The first fit then covers it and the checkpoints after it, and judges them all.",
    )
    metadata: Annotated[dict[str, Any], AfterValidator(_check_json)] = Field(
        default_factory=dict, description="Stored unchanged, e.g. commit and CI job."
    )
    priority: int = Field(
        0,
        ge=0,
        le=100,
        description="Priority of its run; higher runs first. Waiting checkpoints of the family get the same.",
    )


class CheckpointOut(BaseModel):
    """A checkpoint and the run that judges it."""

    id: str
    family: str
    name: str
    uri: str
    adapter: str | None
    resolved_uri: str | None = Field(
        description="The exact version that is read: the commit of `hf://org/name@main`, or for a folder in an object "
        "store a digest of its listing after `#`. Null until resolved."
    )
    resolved_adapter: str | None = Field(description="The same for the adapter.")
    content_digest: str | None = Field(
        description="SHA-256 over the full content of all files that were read. Null until they have been read."
    )
    parent: str | None
    deleted_parents: list[str] = Field(
        description="Former parents that were deleted, the original one first. Its verdicts were re-judged against "
        "`parent` from stored measurements."
    )
    hook_points: list[str]
    fit: str
    metadata: dict[str, Any]
    state: CheckpointState
    generation: int | None = Field(description="Generation of the dictionary that it was judged with.")
    quality: dict[str, Any] | None = Field(description="FVU, L0, share of valid positions, etc. Null until judged.")
    activations_kept: bool | None = Field(
        description="False if retention removed the activations: the checkpoint can no longer be a parent or be "
        "calibrated, but all verdicts remain. Null until it has been read."
    )
    created_at: datetime
    judged_at: datetime | None
    run: RunView | None = Field(description="The newest run of this checkpoint.")


class Registration(BaseModel):
    """The registered checkpoint and its run."""

    checkpoint: CheckpointOut
    run: RunView | None = Field(description="Null if the checkpoint was already registered and its run was deleted.")


def view(
    row: Checkpoint, family: str, parent: str | None, run: RunView | None, activations_kept: bool | None
) -> CheckpointOut:
    """A checkpoint as the API shows it."""
    values = {
        "family": family,
        "parent": parent,
        "deleted_parents": [parent["name"] for parent in row.deleted_parents],
        "metadata": row.details,
        "activations_kept": activations_kept,
        "run": run,
    }
    return CheckpointOut.model_validate(row.as_dict() | values)
