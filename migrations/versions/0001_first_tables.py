"""The first tables.

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("prefix", name=op.f("uq_api_key_prefix")),
    )
    op.create_table(
        "audit_entry",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entry")),
    )
    op.create_index(op.f("ix_audit_entry_at"), "audit_entry", ["at"], unique=False)
    op.create_table(
        "family",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("hook_points", sa.JSON(), nullable=False),
        sa.Column("corpus", sa.JSON(), nullable=False),
        sa.Column("crosscoder", sa.JSON(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("n_features", sa.Integer(), nullable=False),
        sa.Column("positions", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_family")),
        sa.UniqueConstraint("name", name=op.f("uq_family_name")),
    )
    op.create_table(
        "idempotency_record",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_record")),
    )
    op.create_index(op.f("ix_idempotency_record_created_at"), "idempotency_record", ["created_at"], unique=False)
    op.create_table(
        "webhook",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("event_types", sa.JSON(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
    )
    op.create_table(
        "alert_rule",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=True),
        sa.Column("condition", sa.JSON(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_alert_rule_family_id_family")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_rule")),
    )
    op.create_index(op.f("ix_alert_rule_family_id"), "alert_rule", ["family_id"], unique=False)
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("uri", sa.String(), nullable=False),
        sa.Column("adapter", sa.String(), nullable=True),
        sa.Column("parent_id", sa.String(), nullable=True),
        sa.Column("hook_points", sa.JSON(), nullable=False),
        sa.Column("fit", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=True),
        sa.Column("quality", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("judged_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_checkpoint_family_id_family")),
        sa.ForeignKeyConstraint(["parent_id"], ["checkpoint.id"], name=op.f("fk_checkpoint_parent_id_checkpoint")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint")),
        sa.UniqueConstraint("family_id", "name", name=op.f("uq_checkpoint_family_id_name")),
    )
    op.create_index(op.f("ix_checkpoint_family_id"), "checkpoint", ["family_id"], unique=False)
    op.create_table(
        "event",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_event_family_id_family")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index(op.f("ix_event_family_id"), "event", ["family_id"], unique=False)
    op.create_table(
        "alert",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("rule_id", sa.String(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("summary", sa.String(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("muted_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_alert_checkpoint_id_checkpoint")),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_alert_family_id_family")),
        sa.ForeignKeyConstraint(
            ["rule_id"], ["alert_rule.id"], name=op.f("fk_alert_rule_id_alert_rule"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert")),
        sa.UniqueConstraint("rule_id", "checkpoint_id", name=op.f("uq_alert_rule_id_checkpoint_id")),
    )
    op.create_index(op.f("ix_alert_checkpoint_id"), "alert", ["checkpoint_id"], unique=False)
    op.create_index(op.f("ix_alert_family_id"), "alert", ["family_id"], unique=False)
    op.create_table(
        "code",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("artifact", sa.String(), nullable=False),
        sa.Column("examples", sa.String(), nullable=False),
        sa.Column("n_positions", sa.Integer(), nullable=False),
        sa.Column("n_features", sa.Integer(), nullable=False),
        sa.Column("extra", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_code_checkpoint_id_checkpoint")),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_code_family_id_family")),
        sa.PrimaryKeyConstraint("checkpoint_id", name=op.f("pk_code")),
    )
    op.create_index(op.f("ix_code_family_id"), "code", ["family_id"], unique=False)
    op.create_table(
        "delivery",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("webhook_id", sa.String(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("log", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["event_id"], ["event.id"], name=op.f("fk_delivery_event_id_event")),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhook.id"], name=op.f("fk_delivery_webhook_id_webhook"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint("webhook_id", "event_id", name=op.f("uq_delivery_webhook_id_event_id")),
    )
    op.create_index("ix_delivery_due", "delivery", ["state", "next_attempt_at"], unique=False)
    op.create_index(op.f("ix_delivery_webhook_id"), "delivery", ["webhook_id"], unique=False)
    op.create_table(
        "feature",
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("label", sa.String(), nullable=True),
        sa.Column("top_tokens", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("watched", sa.Boolean(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("born_in", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("retired_in", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["born_in"], ["checkpoint.id"], name=op.f("fk_feature_born_in_checkpoint")),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_feature_family_id_family")),
        sa.PrimaryKeyConstraint("family_id", "number", name=op.f("pk_feature")),
    )
    op.create_table(
        "measurement",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("hook_point", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_measurement_checkpoint_id_checkpoint")
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "hook_point", "metric", name=op.f("pk_measurement")),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("checkpoint_id", sa.String(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=True),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_run_checkpoint_id_checkpoint")),
        sa.ForeignKeyConstraint(["family_id"], ["family.id"], name=op.f("fk_run_family_id_family")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
    )
    op.create_index(op.f("ix_run_checkpoint_id"), "run", ["checkpoint_id"], unique=False)
    op.create_index(op.f("ix_run_family_id"), "run", ["family_id"], unique=False)
    op.create_index("ix_run_state", "run", ["state", "priority", "created_at"], unique=False)
    op.create_index(
        "uq_run_active_family",
        "run",
        ["family_id"],
        unique=True,
        sqlite_where=sa.text("state IN ('running', 'cancelling')"),
        postgresql_where=sa.text("state IN ('running', 'cancelling')"),
    )
    op.create_table(
        "source",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("hook_point", sa.String(), nullable=False),
        sa.Column("d_model", sa.Integer(), nullable=False),
        sa.Column("stats", sa.JSON(), nullable=False),
        sa.Column("dictionary", sa.String(), nullable=True),
        sa.Column("activations", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_source_checkpoint_id_checkpoint")),
        sa.PrimaryKeyConstraint("checkpoint_id", "hook_point", name=op.f("pk_source")),
    )
    op.create_table(
        "bell",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rung_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_bell_run_id_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bell")),
    )
    op.create_index(op.f("ix_bell_run_id"), "bell", ["run_id"], unique=False)
    op.create_index(op.f("ix_bell_rung_at"), "bell", ["rung_at"], unique=False)
    op.create_table(
        "verdict",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("feature", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("family_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("previous_status", sa.String(), nullable=True),
        sa.Column("change", sa.Double(), nullable=False),
        sa.Column("projection_ratio", sa.Double(), nullable=True),
        sa.Column("projection_ratio_lo", sa.Double(), nullable=True),
        sa.Column("projection_ratio_hi", sa.Double(), nullable=True),
        sa.Column("strength_ratio", sa.Double(), nullable=True),
        sa.Column("strength_ratio_lo", sa.Double(), nullable=True),
        sa.Column("strength_ratio_hi", sa.Double(), nullable=True),
        sa.Column("orthogonal_ratio", sa.Double(), nullable=True),
        sa.Column("q_value", sa.Double(), nullable=True),
        sa.Column("strength", sa.Double(), nullable=True),
        sa.Column("direction_cosine", sa.Double(), nullable=True),
        sa.Column("readability", sa.Double(), nullable=True),
        sa.Column("firing_rate", sa.Double(), nullable=False),
        sa.Column("firings", sa.Integer(), nullable=False),
        sa.Column("minimum_detectable_ratio", sa.Double(), nullable=True),
        sa.Column("successors", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_verdict_checkpoint_id_checkpoint")),
        sa.ForeignKeyConstraint(
            ["family_id", "feature"],
            ["feature.family_id", "feature.number"],
            name=op.f("fk_verdict_family_id_feature_feature"),
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "feature", name=op.f("pk_verdict")),
    )
    op.create_index("ix_verdict_changes", "verdict", ["checkpoint_id", "status", "change"], unique=False)
    op.create_index("ix_verdict_course", "verdict", ["family_id", "feature"], unique=False)
    op.create_index("ix_verdict_order", "verdict", ["checkpoint_id", "change"], unique=False)
    if op.get_bind().dialect.name == "postgresql":
        # Float arrays do not compress: storing them as they are saves the attempt on every write and read.
        op.execute("ALTER TABLE measurement ALTER COLUMN data SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Go back."""
    op.drop_index("ix_verdict_order", table_name="verdict")
    op.drop_index("ix_verdict_course", table_name="verdict")
    op.drop_index("ix_verdict_changes", table_name="verdict")
    op.drop_table("verdict")
    op.drop_index(op.f("ix_bell_rung_at"), table_name="bell")
    op.drop_index(op.f("ix_bell_run_id"), table_name="bell")
    op.drop_table("bell")
    op.drop_table("source")
    op.drop_index(
        "uq_run_active_family",
        table_name="run",
        sqlite_where=sa.text("state IN ('running', 'cancelling')"),
        postgresql_where=sa.text("state IN ('running', 'cancelling')"),
    )
    op.drop_index("ix_run_state", table_name="run")
    op.drop_index(op.f("ix_run_family_id"), table_name="run")
    op.drop_index(op.f("ix_run_checkpoint_id"), table_name="run")
    op.drop_table("run")
    op.drop_table("measurement")
    op.drop_table("feature")
    op.drop_index(op.f("ix_delivery_webhook_id"), table_name="delivery")
    op.drop_index("ix_delivery_due", table_name="delivery")
    op.drop_table("delivery")
    op.drop_index(op.f("ix_code_family_id"), table_name="code")
    op.drop_table("code")
    op.drop_index(op.f("ix_alert_family_id"), table_name="alert")
    op.drop_index(op.f("ix_alert_checkpoint_id"), table_name="alert")
    op.drop_table("alert")
    op.drop_index(op.f("ix_event_family_id"), table_name="event")
    op.drop_table("event")
    op.drop_index(op.f("ix_checkpoint_family_id"), table_name="checkpoint")
    op.drop_table("checkpoint")
    op.drop_index(op.f("ix_alert_rule_family_id"), table_name="alert_rule")
    op.drop_table("alert_rule")
    op.drop_table("webhook")
    op.drop_index(op.f("ix_idempotency_record_created_at"), table_name="idempotency_record")
    op.drop_table("idempotency_record")
    op.drop_table("family")
    op.drop_index(op.f("ix_audit_entry_at"), table_name="audit_entry")
    op.drop_table("audit_entry")
    op.drop_table("api_key")
