"""Tokens that features promote.

Revision: 0005, after 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. What a feature promotes is read from its checkpoint's weights: older ones stay without."""
    op.add_column("feature", sa.Column("promoted_tokens", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("feature", sa.Column("logits", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """Go back."""
    op.drop_column("feature", "logits")
    op.drop_column("feature", "promoted_tokens")
