"""Webhook URLs are encrypted; what stays readable is their scheme and host.

Revision: 0015, after 0014.
"""

from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic import op

from featurewatch.service.kit.crypto import SecretBox, SecretKeyError

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_webhook = sa.table(
    "webhook",
    sa.column("id", sa.String()),
    sa.column("url", sa.String()),
    sa.column("sealed_url", sa.LargeBinary()),
    sa.column("secret", sa.LargeBinary()),
)
_record = sa.table("idempotency_record", sa.column("body", sa.String()))


def upgrade() -> None:
    """Go forward. Needs the key that the webhooks' secrets are encrypted with, if there are webhooks."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        op.execute("PRAGMA secure_delete = ON")  # the readable URLs do not stay in the file's free pages
    op.add_column("webhook", sa.Column("sealed_url", sa.LargeBinary(), nullable=True))
    rows = connection.execute(sa.select(_webhook.c.id, _webhook.c.url, _webhook.c.secret)).all()
    box = _box() if rows else None
    for id_, url, secret in rows:
        assert box is not None
        _open(box, secret, id_)  # a URL that another key encrypted would be lost
        values = {"url": _masked(url), "sealed_url": box.encrypt(url.encode(), context=f"{id_} url")}
        connection.execute(sa.update(_webhook).where(_webhook.c.id == id_).values(values))
    # Remembered answers to changes of webhooks hold URLs, too.
    connection.execute(sa.delete(_record).where(_record.c.body.like('%"whk_%')))
    with op.batch_alter_table("webhook") as batch:
        batch.alter_column("sealed_url", existing_type=sa.LargeBinary(), nullable=False)


def downgrade() -> None:
    """Go back: the URLs become readable again."""
    connection = op.get_bind()
    rows = connection.execute(sa.select(_webhook.c.id, _webhook.c.sealed_url)).all()
    box = _box() if rows else None
    for id_, sealed in rows:
        assert box is not None
        url = _open(box, sealed, id_, f"{id_} url").decode()
        connection.execute(sa.update(_webhook).where(_webhook.c.id == id_).values(url=url))
    with op.batch_alter_table("webhook") as batch:
        batch.drop_column("sealed_url")


def _box() -> SecretBox:
    config = op.get_context().config
    assert config is not None
    return SecretBox(config.attributes["settings"], create=False)


def _open(box: SecretBox, sealed: bytes, id_: str, context: str | None = None) -> bytes:
    try:
        return box.decrypt(sealed, context=context or id_)
    except SecretKeyError as error:
        raise SecretKeyError(
            f"what is stored of webhook {id_} does not open with it. Set FEATUREWATCH_SECRET_KEY to the key that the "
            "webhook was created with. If that key is lost, delete the webhook with the previous version and create it "
            "again"
        ) from error


def _masked(url: str) -> str:
    parts = urlsplit(url)
    hides = bool(parts.path.strip("/") or parts.query)
    return f"{parts.scheme}://{parts.netloc}{'/…' if hides else parts.path}"
