"""Alerts of other things than checkpoints; webhooks that pause, turn their secrets and speak Slack.

Revision: 0008, after 0007.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NEW_KINDS = ("quality", "run_failed", "absence", "webhook_paused")
_UNRESOLVED = sa.text("state != 'resolved'")
_WEBHOOK = {
    "old_secret": sa.LargeBinary(),
    "old_secret_until": sa.DateTime(timezone=True),
    "failing_since": sa.DateTime(timezone=True),
    "paused_at": sa.DateTime(timezone=True),
}
_RULE = sa.table("alert_rule", sa.column("id", sa.String), sa.column("condition", sa.JSON))
_ALERT = sa.table(
    "alert",
    sa.column("kind", sa.String),
    sa.column("key", sa.String),
    sa.column("rule_id", sa.String),
    sa.column("checkpoint_id", sa.String),
)


def upgrade() -> None:
    """Go forward."""
    op.add_column("webhook", sa.Column("format", sa.String(), nullable=False, server_default="standard"))
    for name, kind in _WEBHOOK.items():
        op.add_column("webhook", sa.Column(name, kind, nullable=True))
    op.create_index(op.f("ix_event_created_at"), "event", ["created_at"], unique=False)
    op.create_index(op.f("ix_delivery_event_id"), "delivery", ["event_id"], unique=False)
    op.add_column("alert", sa.Column("kind", sa.String(), nullable=False, server_default=""))
    op.add_column("alert", sa.Column("key", sa.String(), nullable=False, server_default=""))
    _name()
    with op.batch_alter_table("alert") as table:
        table.add_column(sa.Column("webhook_id", sa.String(), nullable=True))
        table.drop_constraint(op.f("uq_alert_rule_id_checkpoint_id"), type_="unique")
        for name in ("rule_id", "family_id", "checkpoint_id"):
            table.alter_column(name, existing_type=sa.String(), nullable=True)
        table.create_foreign_key(
            op.f("fk_alert_webhook_id_webhook"), "webhook", ["webhook_id"], ["id"], ondelete="CASCADE"
        )
    op.create_index(op.f("ix_alert_rule_id"), "alert", ["rule_id"], unique=False)
    op.create_index(op.f("ix_alert_webhook_id"), "alert", ["webhook_id"], unique=False)
    op.create_index("ix_alert_key", "alert", ["key", "created_at"], unique=False)
    op.create_index(
        "uq_alert_unresolved",
        "alert",
        ["key"],
        unique=True,
        sqlite_where=_UNRESOLVED,
        postgresql_where=_UNRESOLVED,
    )


def downgrade() -> None:
    """Go back. Rules and alerts of the new kinds are removed; a paused webhook is one that somebody disabled."""
    _remove_new_kinds()
    op.drop_index("uq_alert_unresolved", table_name="alert")
    op.drop_index("ix_alert_key", table_name="alert")
    op.drop_index(op.f("ix_alert_webhook_id"), table_name="alert")
    op.drop_index(op.f("ix_alert_rule_id"), table_name="alert")
    with op.batch_alter_table("alert") as table:
        table.drop_constraint(op.f("fk_alert_webhook_id_webhook"), type_="foreignkey")
        for name in ("rule_id", "family_id", "checkpoint_id"):
            table.alter_column(name, existing_type=sa.String(), nullable=False)
        table.create_unique_constraint(op.f("uq_alert_rule_id_checkpoint_id"), ["rule_id", "checkpoint_id"])
        for name in ("webhook_id", "key", "kind"):
            table.drop_column(name)
    op.drop_index(op.f("ix_delivery_event_id"), table_name="delivery")
    op.drop_index(op.f("ix_event_created_at"), table_name="event")
    for name in (*reversed(_WEBHOOK), "format"):
        op.drop_column("webhook", name)


def _name() -> None:
    """Existing alerts, one for each rule and checkpoint, get their kind and key."""
    bind = op.get_bind()
    for rule_id, condition in bind.execute(sa.select(_RULE.c.id, _RULE.c.condition)).all():
        kind = condition["kind"]
        key = sa.literal(f"{kind}:{rule_id}:") + _ALERT.c.checkpoint_id
        bind.execute(sa.update(_ALERT).where(_ALERT.c.rule_id == rule_id).values(kind=kind, key=key))


def _remove_new_kinds() -> None:
    bind = op.get_bind()
    bind.execute(sa.delete(_ALERT).where(_ALERT.c.kind.in_(_NEW_KINDS)))
    rules = bind.execute(sa.select(_RULE.c.id, _RULE.c.condition)).all()
    gone = [rule_id for rule_id, condition in rules if condition["kind"] in _NEW_KINDS]
    bind.execute(sa.delete(_RULE).where(_RULE.c.id.in_(gone)))
