"""Checkpoints, and their sources, one for each hook point."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import ARTIFACT, Base
from featurewatch.service.kit.ids import new_id


class Checkpoint(Base):
    __tablename__ = "checkpoint"
    __table_args__ = (UniqueConstraint("family_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ckp"))
    family_id: Mapped[str] = mapped_column(ForeignKey("family.id"), index=True)
    name: Mapped[str]
    uri: Mapped[str]
    adapter: Mapped[str | None]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoint.id"))
    deleted_parents: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    """`[{id, name}]` of former parents that were deleted, the original one first."""
    hook_points: Mapped[list[str]]
    """The family's, unless the registration named others."""
    fit: Mapped[str]
    """The requested fit mode: auto, extend, refit or later."""
    details: Mapped[dict[str, Any]]
    """`metadata` of the registration, unchanged."""
    resolved_uri: Mapped[str | None]
    """What `uri` referred to at registration: a commit or a listing. None until resolved."""
    resolved_adapter: Mapped[str | None]
    contents: Mapped[dict[str, Any] | None]
    """Its files as `service.checkpoints.contents.Contents`. None if an older version read it."""
    content_digest: Mapped[str | None]
    """SHA-256 over names, sizes and digests of all its files, once a worker has read them."""
    state: Mapped[str] = mapped_column(default="registered")
    """registered, harvested (waiting for the family's first fit), judged or failed. Only judged checkpoints can be
    baselines."""
    generation: Mapped[int | None]
    """Generation of the dictionary that it was judged with."""
    quality: Mapped[dict[str, Any] | None]
    """`{fvu, l0, dead_share, valid_share, size_factor, positions_per_second, ...}` and the same per hook point."""
    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    """Incremented when its verdicts or measurements are written. In-memory caches are keyed by it."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    judged_at: Mapped[datetime | None]


class Source(Base):
    """The artifacts of one (checkpoint, hook point), by their names in the artifact store."""

    __tablename__ = "source"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    hook_point: Mapped[str] = mapped_column(primary_key=True)
    d_model: Mapped[int]
    stats: Mapped[dict[str, Any]]
    """`{rms, fvu}` as floats, and `paired_with`: the parent's hook point that it was compared with, or None."""
    dictionary: Mapped[str | None] = mapped_column(info=ARTIFACT)
    """safetensors with `mean` [d], `rms` [], `decoder` [m, d], `bias` [d], `readout` [d, m], `readout_bias` [m],
    `readout_slope` [m], `reference` [m, d]."""
    activations: Mapped[str | None] = mapped_column(info=ARTIFACT)
    """Folder of the activations. None after retention has removed them."""
