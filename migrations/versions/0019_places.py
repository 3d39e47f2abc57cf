"""Own codes of checkpoints, and where each feature is active.

Revision: 0019, after 0018.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

FIGURES = [
    "places_q_value",
    "gained_documents",
    *(
        f"{name}{end}"
        for name in ("firing_rate_ratio", "gained_share", "lost_share", "kept_amplitude")
        for end in ("", "_lo", "_hi")
    ),
]
ARTIFACTS = ["own_code", "rows"]


def upgrade() -> None:
    """Go forward. Verdicts made so far have no places."""
    for name in ARTIFACTS:
        op.add_column("code", sa.Column(name, sa.String(), nullable=True))
    op.add_column("verdict", sa.Column("places", sa.String(), nullable=True))
    for name in FIGURES:
        op.add_column("verdict", sa.Column(name, sa.Double(), nullable=True))


def downgrade() -> None:
    """Go back. Places are lost. The own codes stay in the store: upgrade again, and a vacuum removes them."""
    for name in [*reversed(FIGURES), "places"]:
        op.drop_column("verdict", name)
    for name in reversed(ARTIFACTS):
        op.drop_column("code", name)
