"""Alembic's entry point, for `featurewatch.service.migrate` and for the `alembic` command, which opens a connection."""

from typing import Any

from alembic import context
from sqlalchemy import Connection

from featurewatch.service import models
from featurewatch.service.config import Settings
from featurewatch.service.kit.db import UtcDateTime
from featurewatch.service.migrate import migrating


def render_item(kind: str, item: Any, _context: Any) -> str | bool:
    """Write our column types as plain ones: an old migration must not change when our code does."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def migrate(connection: Connection) -> None:
    """Run the revisions in the caller's transaction."""
    context.configure(
        connection=connection,
        target_metadata=models.Base.metadata,
        compare_type=True,
        render_as_batch=True,
        render_item=render_item,
        # Alembic thinks that SQLite has no transactional DDL. It has, once the driver does not interfere.
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    settings = context.config.attributes["settings"] = Settings()
    with migrating(settings.resolved_database_url) as own:
        migrate(own)
