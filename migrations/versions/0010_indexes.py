"""Counts what is written of a checkpoint, and indexes that lists are read from in their order.

Revision: 0010, after 0009.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.add_column("checkpoint", sa.Column("revision", sa.Integer(), nullable=False, server_default="0"))
    op.drop_index("ix_verdict_changes", table_name="verdict")
    op.drop_index("ix_verdict_order", table_name="verdict")
    op.create_index("ix_verdict_changes", "verdict", ["checkpoint_id", "status", sa.text("change DESC"), "feature"])
    op.create_index("ix_verdict_order", "verdict", ["checkpoint_id", sa.text("change DESC"), "feature"])
    op.create_index("ix_feature_born", "feature", ["family_id", "born_in"])
    op.create_index("ix_feature_watched", "feature", ["family_id", "watched"])


def downgrade() -> None:
    """Go back."""
    op.drop_index("ix_feature_watched", table_name="feature")
    op.drop_index("ix_feature_born", table_name="feature")
    op.drop_index("ix_verdict_order", table_name="verdict")
    op.drop_index("ix_verdict_changes", table_name="verdict")
    op.create_index("ix_verdict_changes", "verdict", ["checkpoint_id", "status", "change"])
    op.create_index("ix_verdict_order", "verdict", ["checkpoint_id", "change"])
    op.drop_column("checkpoint", "revision")
