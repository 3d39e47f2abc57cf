"""Features: latents with ids that are permanent within the family."""

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
    """By a person, for readers only, never evidence. If None, the automatic label is shown."""
    auto_label: Mapped[str | None]
    """By `service.labels.automatic` from the tokens below. None without tokens."""
    model_label: Mapped[str | None]
    """By the model `model_label_by` in the run `model_label_run`."""
    model_label_by: Mapped[str | None]
    model_label_score: Mapped[float | None]
    """Balanced accuracy on held-out passages, with its 95% interval. None if there were none."""
    model_label_score_lo: Mapped[float | None]
    model_label_score_hi: Mapped[float | None]
    model_label_run: Mapped[str | None]
    top_tokens: Mapped[list[str]]
    """Tokens with the largest summed activation. Empty if the family has no text."""
    promoted_tokens: Mapped[list[str]] = mapped_column(default=list)
    """Tokens whose logits its decoder row raises most, in the checkpoint it was born in. Empty without a head; the
    checkpoint's `quality["logit_lens"]` gives the reason."""
    logits: Mapped[dict[str, Any]] = mapped_column(default=dict, deferred=True)
    """`{"promoted": [[token, value], ...], "demoted": ...}` at unit norm, minus the mean over the vocabulary."""
    tags: Mapped[list[str]]
    watched: Mapped[bool] = mapped_column(default=False)
    origin: Mapped[str]
    """fitted (by a generation's fit), emerged (new in born_in) or discovered (older, but first found in born_in)."""
    born_in: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"))
    """The checkpoint whose run assigned its id."""
    generation: Mapped[int]
    retired_in: Mapped[int | None]
    """The generation in which it was retired; None if it has not been retired. `Lineage` has its successors."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Code(Base):
    """The sparse code of one generation up to one checkpoint. Columns are features in order of their ids."""

    __tablename__ = "code"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    family_id: Mapped[str] = mapped_column(ForeignKey("family.id"), index=True)
    generation: Mapped[int]
    artifact: Mapped[str] = mapped_column(info=ARTIFACT)
    """safetensors CSR: `indptr` int64, `indices` int32, `values` float32, `feature_numbers` int64 [columns]."""
    examples: Mapped[str] = mapped_column(info=ARTIFACT)
    """safetensors: `positions` int64 [columns, n], padded with -1, and `values` float32, largest first."""
    n_positions: Mapped[int]
    n_features: Mapped[int]
    extra: Mapped[dict[str, Any]]
    """`{fitted: true}` if the dictionary was fitted on this checkpoint instead of extended to it."""
