"""Tokens that features promote, automatic labels, and labels of models.

Revision: 0005, after 0004.
"""

import sqlalchemy as sa
from alembic import op

from featurewatch.service.labels.automatic import auto_label

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. What a feature promotes is read from its checkpoint's weights: older ones stay without."""
    op.add_column("feature", sa.Column("promoted_tokens", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("feature", sa.Column("logits", sa.JSON(), nullable=False, server_default="{}"))
    for name, kind in _OPTIONAL.items():
        op.add_column("feature", sa.Column(name, kind, nullable=True))
    _label()


def downgrade() -> None:
    """Go back."""
    for name in (*reversed(_OPTIONAL), "logits", "promoted_tokens"):
        op.drop_column("feature", name)


_OPTIONAL = {
    "auto_label": sa.String(),
    "model_label": sa.String(),
    "model_label_by": sa.String(),
    "model_label_score": sa.Double(),
    "model_label_score_lo": sa.Double(),
    "model_label_score_hi": sa.Double(),
    "model_label_run": sa.String(),
}
_FEATURE = sa.table(
    "feature",
    sa.column("family_id", sa.String),
    sa.column("number", sa.Integer),
    sa.column("top_tokens", sa.JSON),
    sa.column("auto_label", sa.String),
)


def _label() -> None:
    """Features that there are get their automatic label too, from their top tokens alone."""
    bind = op.get_bind()
    found = bind.execute(sa.select(_FEATURE.c.family_id, _FEATURE.c.number, _FEATURE.c.top_tokens)).all()
    rows = [{"f": row[0], "n": row[1], "label": auto_label(row[2], [])} for row in found]
    if rows:
        chosen = (_FEATURE.c.family_id == sa.bindparam("f")) & (_FEATURE.c.number == sa.bindparam("n"))
        bind.execute(sa.update(_FEATURE).where(chosen).values(auto_label=sa.bindparam("label")), rows)
