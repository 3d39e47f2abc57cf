"""The layout of each packed table of verdicts. A table of another layout is not read.

Revision: 0018, after 0017.
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

LAYOUT = "58687a3fb5110f6e"
"""That of every table packed so far. Its codes of statuses are the positions that they had in the enum: 0 present, 1
suppressed, 2 amplified, 3 absent, 4 relocated, 5 replaced, 6 emerged, 7 indeterminate."""


def upgrade() -> None:
    """Go forward. What is packed stays; a worker of the version before goes on writing this layout."""
    op.add_column("standing", sa.Column("layout", sa.String(), nullable=False, server_default=LAYOUT))


def downgrade() -> None:
    """Go back. Tables of another layout are removed; their rows are read instead."""
    op.execute(sa.text("DELETE FROM standing WHERE layout != :layout").bindparams(layout=LAYOUT))
    op.drop_column("standing", "layout")
