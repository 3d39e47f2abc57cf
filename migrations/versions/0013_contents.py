"""What was read: contents of checkpoints, digests of artifacts, the copy of a family's corpus.

Revision: 0013, after 0012.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Artifacts of before are digested when they are first opened."""
    for name in ("resolved_uri", "resolved_adapter", "content_digest"):
        op.add_column("checkpoint", sa.Column(name, sa.String(), nullable=True))
    op.add_column("checkpoint", sa.Column("contents", sa.JSON(), nullable=True))
    op.drop_column("checkpoint", "digest")
    op.add_column("family", sa.Column("documents", sa.JSON(), nullable=True))
    op.create_table(
        "artifact",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_artifact")),
    )


def downgrade() -> None:
    """Go back. Registrations are then told apart by their URIs."""
    op.drop_table("artifact")
    op.drop_column("family", "documents")
    op.add_column("checkpoint", sa.Column("digest", sa.String(), nullable=False, server_default=""))
    for name in ("contents", "content_digest", "resolved_adapter", "resolved_uri"):
        op.drop_column("checkpoint", name)
