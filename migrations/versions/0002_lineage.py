"""Lineage of features over generations; measurements by feature number.

Revision: 0002, after 0001.
"""

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "lineage",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("old", sa.Integer(), nullable=True),
        sa.Column("new", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_lineage_checkpoint_id_checkpoint")),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_lineage_family_id_family")),
        sa.ForeignKeyConstraint(
            ["family_id", "old"], ["feature.family_id", "feature.number"], name=op.f("fk_lineage_family_id_old_feature")
        ),
        sa.ForeignKeyConstraint(
            ["family_id", "new"], ["feature.family_id", "feature.number"], name=op.f("fk_lineage_family_id_new_feature")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lineage")),
    )
    op.create_index(op.f("ix_lineage_checkpoint_id"), "lineage", ["checkpoint_id"], unique=False)
    op.create_index("ix_lineage_generation", "lineage", ["family_id", "generation", "kind"], unique=False)
    op.create_index("ix_lineage_new", "lineage", ["family_id", "new"], unique=False)
    op.create_index("ix_lineage_old", "lineage", ["family_id", "old"], unique=False)
    _rewrite_measurements(_by_number)


def downgrade() -> None:
    """Go back. Features that a re-fit retired stay retired; nothing of 0001 reads that."""
    _rewrite_measurements(_by_column)
    op.drop_index("ix_lineage_old", table_name="lineage")
    op.drop_index("ix_lineage_new", table_name="lineage")
    op.drop_index("ix_lineage_generation", table_name="lineage")
    op.drop_index(op.f("ix_lineage_checkpoint_id"), table_name="lineage")
    op.drop_table("lineage")


_VERDICT = sa.table("verdict", sa.column("checkpoint_id", sa.String), sa.column("feature", sa.Integer))
_MEASUREMENT = sa.table(
    "measurement",
    sa.column("checkpoint_id", sa.String),
    sa.column("hook_point", sa.String),
    sa.column("metric", sa.String),
    sa.column("shape", sa.JSON),
    sa.column("data", sa.LargeBinary),
)


def _by_number(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    wide = np.full((*values.shape[:-1], int(numbers.max()) + 1), np.nan, dtype="<f4")
    wide[..., numbers] = values
    return wide


def _by_column(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return values[..., numbers]


def _rewrite_measurements(change) -> None:
    """Columns were in the order of the code; where it has all numbers from 0 on, that is the order of numbers."""
    bind = op.get_bind()
    for checkpoint in bind.execute(sa.select(_VERDICT.c.checkpoint_id).distinct()).scalars().all():
        found = bind.execute(sa.select(_VERDICT.c.feature).where(_VERDICT.c.checkpoint_id == checkpoint)).scalars()
        numbers = np.sort(np.array(found.all(), dtype=np.int64))
        if np.array_equal(numbers, np.arange(len(numbers))):
            continue
        rows = bind.execute(sa.select(_MEASUREMENT).where(_MEASUREMENT.c.checkpoint_id == checkpoint)).all()
        for row in rows:
            values = change(np.frombuffer(row.data, dtype="<f4").reshape(row.shape), numbers)
            bind.execute(
                sa.update(_MEASUREMENT)
                .where(
                    _MEASUREMENT.c.checkpoint_id == checkpoint,
                    _MEASUREMENT.c.hook_point == row.hook_point,
                    _MEASUREMENT.c.metric == row.metric,
                )
                .values(shape=list(values.shape), data=np.ascontiguousarray(values).tobytes())
            )
