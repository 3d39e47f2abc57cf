"""A checkpoint's verdicts as columns, for questions about all of them. Older checkpoints are read from their rows.

Revision: 0011, after 0010.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "standing",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name="fk_standing_checkpoint_id_checkpoint"),
        sa.PrimaryKeyConstraint("checkpoint_id", name="pk_standing"),
    )
    if op.get_bind().dialect.name == "postgresql":  # floats hardly shrink, and to try takes longer than to read them
        op.execute("ALTER TABLE standing ALTER COLUMN data SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Go back."""
    op.drop_table("standing")
