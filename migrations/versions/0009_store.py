"""Artifacts that nothing refers to, and since when.

Revision: 0009, after 0008.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "unreferenced",
        sa.Column("artifact", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("artifact", name=op.f("pk_unreferenced")),
    )


def downgrade() -> None:
    """Go back."""
    op.drop_table("unreferenced")
