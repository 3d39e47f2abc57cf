"""Dependencies of features in a checkpoint.

Revision: 0006, after 0005.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "dependency_graph",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("feature", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("hook_point", sa.String(), nullable=False),
        sa.Column("n_positions", sa.Integer(), nullable=False),
        sa.Column("artifact", sa.String(), nullable=False),
        sa.Column("graph", sa.JSON(), nullable=False),
        sa.Column("effect", sa.JSON(), nullable=True),
        sa.Column("rewired", sa.Boolean(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_dependency_graph_checkpoint_id_checkpoint")
        ),
        sa.ForeignKeyConstraint(
            ["family_id", "feature"],
            ["feature.family_id", "feature.number"],
            name=op.f("fk_dependency_graph_family_id_feature"),
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "feature", "method", name=op.f("pk_dependency_graph")),
    )
    op.create_index("ix_dependency_graph_feature", "dependency_graph", ["family_id", "feature"], unique=False)


def downgrade() -> None:
    """Go back."""
    op.drop_index("ix_dependency_graph_feature", table_name="dependency_graph")
    op.drop_table("dependency_graph")
