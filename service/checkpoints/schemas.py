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
    """JSON as every reader knows it: Python's own reads NaN and halves of characters too."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise ValueError("holds a number or a character that JSON has not") from None
    return value


class CheckpointIn(BaseModel):
    """A checkpoint to be registered."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Unique in the family.")
    uri: str = Field(
        min_length=1,
        max_length=2000,
        description="`hf://org/name@revision`, `file:///folder`, `file:///model.gguf`, an object store such as "
        "`s3://bucket/folder`, or `activations+file:///folder` for activations brought along.",
    )
    adapter: str | None = Field(None, min_length=1, max_length=2000, description="URI of a PEFT adapter to put on it.")
    parent: str | None = Field(
        None, description="Name of the checkpoint that it comes from. Left out: the newest one of the family."
    )
    hook_points: HookPoints | None = Field(
        None,
        description="For a model of another size, or to read more or less of it. As many as the parent's are compared "
        "by name, or else by their place in the list; of another number, those most alike. Left out: the family's.",
    )
    fit: Literal["auto", "extend", "refit", "later"] = Field(
        "auto",
        description="`auto`: the family's policy decides. `later`, before a family's first fit: only read it; the "
        "first fit is made over it and those that follow, and judges them all.",
    )
    metadata: Annotated[dict[str, Any], AfterValidator(_check_json)] = Field(
        default_factory=dict, description="Kept as it comes, e.g. commit and CI job."
    )
    priority: int = Field(
        0, ge=0, le=100, description="Of its run: larger ones go first. Checkpoints of the family that wait go with it."
    )


class CheckpointOut(BaseModel):
    """A checkpoint and the run that judges it."""

    id: str
    family: str
    name: str
    uri: str
    adapter: str | None
    resolved_uri: str | None = Field(
        description="What is read: of `hf://org/name@main` the commit, of an object store's folder a digest of its "
        "listing behind `#`. Null until a worker has resolved it."
    )
    resolved_adapter: str | None = Field(description="The same for the adapter.")
    content_digest: str | None = Field(
        description="SHA-256 over all files that were read, each of them in full; null until then."
    )
    parent: str | None
    deleted_parents: list[str] = Field(
        description="Parents that were deleted and handed it to their own, the one it was registered with first. Its "
        "verdicts were then re-judged against `parent` from stored measurements."
    )
    hook_points: list[str]
    fit: str
    metadata: dict[str, Any]
    state: CheckpointState
    generation: int | None = Field(description="Of the dictionary that it was judged with.")
    quality: dict[str, Any] | None = Field(description="FVU, L0, share of valid positions, ...; null until judged.")
    activations_kept: bool | None = Field(
        description="False: retention removed them, so no checkpoint can be registered as its child, nor a calibration "
        "made on it; all verdicts stay. Null until it was read."
    )
    created_at: datetime
    judged_at: datetime | None
    run: RunView | None = Field(description="The newest run of this checkpoint.")


class Registration(BaseModel):
    """Answer to a registration."""

    checkpoint: CheckpointOut
    run: RunView | None = Field(description="Null where the checkpoint was registered before and its run was deleted.")


def view(
    row: Checkpoint, family: str, parent: str | None, run: RunView | None, activations_kept: bool | None
) -> CheckpointOut:
    """A checkpoint as the API shows it."""
    return CheckpointOut(
        id=row.id,
        family=family,
        name=row.name,
        uri=row.uri,
        adapter=row.adapter,
        resolved_uri=row.resolved_uri,
        resolved_adapter=row.resolved_adapter,
        content_digest=row.content_digest,
        parent=parent,
        deleted_parents=[one["name"] for one in row.deleted_parents],
        hook_points=row.hook_points,
        fit=row.fit,
        metadata=row.details,
        state=row.state,
        generation=row.generation,
        quality=row.quality,
        activations_kept=activations_kept,
        created_at=row.created_at,
        judged_at=row.judged_at,
        run=run,
    )
