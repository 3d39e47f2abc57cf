"""How often each feature was active at the baseline.

Revision: 0020, after 0019.
"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Verdicts made so far lack the figure."""
    op.add_column("verdict", sa.Column("firing_rate_before", sa.Double(), nullable=True))


def downgrade() -> None:
    """Go back."""
    op.drop_column("verdict", "firing_rate_before")
