"""A feature: a latent with an id that is stable in the family for ever."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import ARTIFACT, Base


class Feature(Base):
    __tablename__ = "feature"
    __table_args__ = (
        Index("ix_feature_born", "family_id", "born_in"),
        Index("ix_feature_watched", "family_id", "watched"),
    )

    family_id: Mapped[str] = mapped_column(ForeignKey("family.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str | None]
    """A person's text for people, never evidence. None: show the automatic one."""
    auto_label: Mapped[str | None]
    """Made from the tokens below by `service.labels.automatic`; None where there are none."""
    model_label: Mapped[str | None]
    """By a model behind an endpoint, `model_label_by`, in the run `model_label_run`."""
    model_label_by: Mapped[str | None]
    model_label_score: Mapped[float | None]
    """Balanced accuracy on held-out passages, with its 95% interval; None where there were none."""
    model_label_score_lo: Mapped[float | None]
    model_label_score_hi: Mapped[float | None]
    model_label_run: Mapped[str | None]
    top_tokens: Mapped[list[str]]
    """On which it fires most, by summed activation; empty where the family has no text."""
    promoted_tokens: Mapped[list[str]] = mapped_column(default=list)
    """Whose logits its decoder row raises most, in the checkpoint it was born in; empty where that has no head. The
    checkpoint's `quality["logit_lens"]` says why."""
    logits: Mapped[dict[str, Any]] = mapped_column(default=dict, deferred=True)
    """`{"promoted": [[token, value], ...], "demoted": ...}`: for the row at unit norm, less the vocabulary's mean."""
    tags: Mapped[list[str]]
    watched: Mapped[bool] = mapped_column(default=False)
    origin: Mapped[str]
    """fitted (in a generation's fit), emerged (new in born_in) or discovered (there before, found in born_in)."""
    born_in: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"))
    """The checkpoint whose run gave it its id."""
    generation: Mapped[int]
    retired_in: Mapped[int | None]
    """Generation that carries it no longer; None while it lives. `Lineage` says what became of it."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Code(Base):
    """The sparse code of one generation up to one checkpoint: columns are the features in order of ids."""

    __tablename__ = "code"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    family_id: Mapped[str] = mapped_column(ForeignKey("family.id"), index=True)
    generation: Mapped[int]
    artifact: Mapped[str] = mapped_column(info=ARTIFACT)
    """safetensors CSR: `indptr` int64, `indices` int32, `values` float32, `feature_numbers` int64 [columns]."""
    examples: Mapped[str] = mapped_column(info=ARTIFACT)
    """safetensors: `positions` int64 [columns, n], -1 where fewer; `values` float32, largest first."""
    n_positions: Mapped[int]
    n_features: Mapped[int]
    extra: Mapped[dict[str, Any]]
    """`{fitted: true}` where the dictionary was fitted on this checkpoint, not extended onto it."""
