"""Signatures and their readings.

Revision: 0004, after 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "signature",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("contrast", sa.String(), nullable=False),
        sa.Column("n_rows", sa.Integer(), nullable=False),
        sa.Column("n_positive", sa.Integer(), nullable=False),
        sa.Column("baseline_id", sa.String(), nullable=False),
        sa.Column("chosen", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["baseline_id"], ["checkpoint.id"], name=op.f("fk_signature_baseline_id_checkpoint")),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_signature_family_id_family")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signature")),
        sa.UniqueConstraint("family_id", "name", name=op.f("uq_signature_family_id_name")),
    )
    op.create_table(
        "reading",
        sa.Column("signature_id", sa.String(), nullable=False),
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("previous_status", sa.String(), nullable=True),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("carriers", sa.JSON(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("activations", sa.String(), nullable=False),
        sa.Column("judged_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_reading_checkpoint_id_checkpoint")),
        sa.ForeignKeyConstraint(
            ["signature_id"], ["signature.id"], name=op.f("fk_reading_signature_id_signature"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("signature_id", "checkpoint_id", name=op.f("pk_reading")),
    )
    op.create_index("ix_reading_checkpoint", "reading", ["checkpoint_id"])


def downgrade() -> None:
    """Go back."""
    op.drop_table("reading")
    op.drop_table("signature")
