"""The migrations make exactly the tables of the models, on both engines, and can be undone."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from featurewatch.service import migrate
from featurewatch.service.config import Settings
from featurewatch.service.kit import clock
from featurewatch.service.kit.crypto import SecretBox
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Alert, AlertRule, Base, Checkpoint, Code, IdempotencyRecord, Verdict, Webhook
from featurewatch.service.models.webhook import url_context
from featurewatch.service.verdicts import queries, stored
from featurewatch.service.webhooks import logic as webhooks
from featurewatch.service.webhooks.schemas import WebhookCreate
from tests import factories

KEY = "a key for the tests, long enough"


def test_autogenerate_finds_no_difference(database: Database) -> None:
    with database.writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_partial_index_holds_one_active_run_per_family(database: Database) -> None:
    indexes = {index["name"]: index for index in inspect(database.writer).get_indexes("run")}
    assert indexes["uq_run_active_family"]["unique"]
    options = indexes["uq_run_active_family"]["dialect_options"]
    assert any("cancelling" in str(option) for option in options.values())


def test_measurements_are_stored_uncompressed_on_postgres(database: Database) -> None:
    if database.is_sqlite:
        columns = {column["name"] for column in inspect(database.writer).get_columns("measurement")}
        assert "data" in columns
        return
    with database.writer.connect() as connection:
        storage = connection.scalar(
            text("SELECT attstorage FROM pg_attribute WHERE attrelid = 'measurement'::regclass AND attname = 'data'")
        )
    assert storage in ("e", b"e")


def test_down_and_up_again(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    database.close()
    migrate.downgrade_url(url, "base")
    assert set(inspect(database.writer).get_table_names()) <= {"alembic_version"}
    database.close()
    migrate.upgrade_url(url)
    assert "verdict" in inspect(database.writer).get_table_names()


def test_measurements_are_turned_to_feature_numbers_and_back(database: Database) -> None:
    """0001 had them in the order of the code's columns, which skips numbers on a branch."""
    url = database.url.render_as_string(hide_password=False)
    by_number = np.array([[1, np.nan, np.nan, 2], [3, np.nan, np.nan, 4]], dtype="<f4")
    with database.write() as session:
        family = factories.family(session)
        checkpoint = factories.checkpoint(session, family, "b2")
        for number in (0, 3):
            factories.verdict(session, checkpoint, factories.feature(session, family, number, checkpoint))
        factories.measurement(session, checkpoint, "level", by_number)
        id_ = checkpoint.id
    database.close()

    def stored() -> np.ndarray:
        with database.read() as session:
            found = queries.measurement(session, id_, "level")
            assert found is not None
            return found.copy()

    migrate.downgrade_url(url, "0001")
    np.testing.assert_array_equal(stored(), by_number[:, [0, 3]])
    database.close()
    migrate.upgrade_url(url)
    np.testing.assert_array_equal(stored(), by_number)


def test_features_of_before_get_an_automatic_label(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    with database.write() as session:
        family = factories.family(session)
        checkpoint = factories.checkpoint(session, family, "v1")
        factories.feature(session, family, 0, checkpoint, top_tokens=[" stop", "Stop"])
        factories.feature(session, family, 1, checkpoint, top_tokens=[])
    database.close()
    migrate.downgrade_url(url, "0004")
    migrate.upgrade_url(url)
    with database.read() as session:
        found = session.query(factories.Feature).order_by(factories.Feature.number)
        assert [(one.auto_label, one.promoted_tokens, one.logits) for one in found] == [
            ("“stop”", [], {}),
            (None, [], {}),
        ]


def test_alerts_of_before_get_kind_and_key(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    settings = Settings(database_url=url, secret_key=KEY)
    with database.write() as session:
        family = factories.family(session)
        checkpoint = factories.checkpoint(session, family, "v1")
        for kind in ("watched", "absence"):
            rule = AlertRule(id=f"rul_{kind}", name=kind, family_id=family.id, condition={"kind": kind})
            session.add(rule)
            session.flush()
            at = checkpoint.id if kind == "watched" else None
            session.add(
                Alert(
                    id=f"alt_{kind}",
                    kind=kind,
                    key=f"{kind}:{rule.id}:{at or family.id}",
                    rule_id=rule.id,
                    family_id=family.id,
                    checkpoint_id=at,
                    summary="",
                    evidence=[],
                )
            )
        hook, _ = webhooks.create(session, settings, WebhookCreate(url="https://example.com"))
        hook.paused_at = clock.utcnow()
        session.add(
            Alert(kind="webhook_paused", key="webhook_paused:whk_1", webhook_id=hook.id, summary="", evidence=[])
        )
    database.close()
    migrate.downgrade_url(url, "0007", settings=settings)
    database.close()
    migrate.upgrade_url(url, settings=settings)
    with database.read() as session:
        assert [rule.id for rule in session.query(AlertRule)] == ["rul_watched"], "0007 knows no absence"
        (alert,) = session.query(Alert)
        assert (alert.id, alert.kind, alert.key) == ("alt_watched", "watched", f"watched:rul_watched:{checkpoint.id}")
        assert session.query(Webhook.format).scalar() == "standard"


PACKED_AT_0017 = np.dtype(
    [("number", "<i8"), ("status", "i1"), ("firings", "<i8"), ("change", "<f4"), ("projection_ratio", "<f4"),
     ("projection_ratio_lo", "<f4"), ("projection_ratio_hi", "<f4"), ("q_value", "<f4"), ("direction_cosine", "<f4"),
     ("firing_rate", "<f8"), ("documents", "<f4")]
)  # fmt: skip
STATUSES_AT_0017 = (
    "present", "suppressed", "amplified", "absent", "relocated", "replaced", "emerged", "indeterminate"
)  # fmt: skip
"""Packed tables had a status as its position here."""


def test_packed_verdicts_of_before_keep_their_meaning(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    records = np.zeros(len(STATUSES_AT_0017), dtype=PACKED_AT_0017)
    records["number"] = records["status"] = np.arange(len(records))
    records["projection_ratio"], records["firing_rate"] = np.arange(len(records)) / 4, 0.01
    with database.write() as session:
        family = factories.family(session)
        checkpoint = factories.checkpoint(session, family, "v1")
        for number in range(len(records)):
            # Not what is packed, so that it shows which of the two is read.
            factories.verdict(session, checkpoint, factories.feature(session, family, number, checkpoint), "present")
        id_ = checkpoint.id
    database.close()
    migrate.downgrade_url(url, "0017")
    with database.writer.begin() as connection:
        connection.execute(
            text("INSERT INTO standing (checkpoint_id, data) VALUES (:id, :data)"),
            {"id": id_, "data": records.tobytes()},
        )
    database.close()
    migrate.upgrade_url(url)
    with database.read() as session:
        statuses = stored.statuses(session, id_)
        if stored.RECORD == PACKED_AT_0017:
            assert statuses == dict(enumerate(STATUSES_AT_0017))
            table = stored.standing(session, session.get_one(Checkpoint, id_))
            np.testing.assert_array_equal(table.figures["projection_ratio"], records["projection_ratio"])
        else:
            assert set(statuses.values()) == {"present"}, "the rows are read"
    with database.write() as session:
        session.execute(text("UPDATE standing SET layout = 'another'"))
        assert set(stored.statuses(session, id_).values()) == {"present"}, "another layout is made from the rows"
    database.close()
    migrate.downgrade_url(url, "0017")
    with database.writer.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM standing")) == 0, "0017 would misread another layout"


def test_verdicts_of_before_have_no_places_and_lose_them_on_the_way_back(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    placed = {"places": "broadened", "gained_share": 1.5, "gained_share_lo": 1.25, "gained_share_hi": 1.75}
    with database.write() as session:
        family = factories.family(session)
        checkpoint = factories.checkpoint(session, family, "v1")
        feature = factories.feature(session, family, 7, checkpoint)
        factories.verdict(session, checkpoint, feature, "suppressed", projection_ratio=0.25, **placed)
        names = {"artifact": "a", "own_code": "b", "rows": "c", "examples": "d"}
        numbers = {"generation": 1, "n_positions": 10, "n_features": 1, "extra": {}}
        session.add(Code(checkpoint_id=checkpoint.id, family_id=family.id, **names, **numbers))
        id_ = checkpoint.id
    database.close()
    migrate.downgrade_url(url, "0018")
    columns = {
        table: {column["name"] for column in inspect(database.writer).get_columns(table)}
        for table in ("verdict", "code")
    }
    assert not columns["verdict"] & {*placed, "places_q_value", "firing_rate_ratio_lo", "gained_documents"}
    assert not columns["code"] & {"own_code", "rows"}
    assert _stored(url, "SELECT projection_ratio FROM verdict") == [0.25]
    database.close()
    migrate.upgrade_url(url)
    with database.read() as session:
        verdict = session.query(Verdict).one()
        assert (verdict.status, verdict.projection_ratio) == ("suppressed", 0.25)
        assert {getattr(verdict, name) for name in placed} == {None}
        code = session.get_one(Code, id_)
        assert (code.artifact, code.own_code, code.rows) == ("a", None, None)
        assert stored.statuses(session, id_) == {7: "suppressed"}


URL = "https://hooks.example.com/services/T0/B0/token?team=red"


@pytest.fixture
def readable(database: Database) -> Iterator[str]:
    """URL of a database of before 0015, with a webhook and a remembered answer that hold a readable URL."""
    url = database.url.render_as_string(hide_password=False)
    settings = Settings(database_url=url, secret_key=KEY)
    with database.write() as session:
        webhook, _ = webhooks.create(session, settings, WebhookCreate(url=URL))
        for key, body in (("k1", {"id": webhook.id, "url": URL}), ("k2", {"name": "smol"})):
            fields = {"fingerprint": "", "status": 200, "headers": {}, "body": json.dumps(body)}
            session.add(IdempotencyRecord(key=key, **fields))
    database.close()
    migrate.downgrade_url(url, "0014", settings=settings)
    assert _stored(url, "SELECT url FROM webhook") == [URL]
    database.close()
    yield url


def _stored(url: str, statement: str) -> list[Any]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return list(connection.scalars(text(statement)))
    finally:
        engine.dispose()


def test_urls_of_webhooks_are_encrypted(readable: str, database: Database, tmp_path) -> None:
    settings = Settings(database_url=readable, secret_key=KEY)
    migrate.upgrade(settings)
    with database.read() as session:
        (webhook,) = session.query(Webhook)
        assert webhook.url == "https://hooks.example.com/…"
        opened = SecretBox(settings).decrypt(webhook.sealed_url, context=url_context(webhook.id))
        assert opened.decode() == URL
        assert [record.key for record in session.query(IdempotencyRecord)] == ["k2"]
    if database.is_sqlite:
        database.close()
        assert all(b"token?team" not in path.read_bytes() for path in tmp_path.glob("featurewatch.db*"))


@pytest.mark.parametrize(("key", "message"), [("", "requires the secret key"), ("another key, " * 3, "does not open")])
def test_without_the_right_key_nothing_is_changed(readable: str, tmp_path, key: str, message: str) -> None:
    with pytest.raises(migrate.SchemaError, match=message) as error:
        migrate.upgrade(Settings(database_url=readable, secret_key=key, data_dir=tmp_path / "data"))
    assert "FEATUREWATCH_SECRET_KEY" in str(error.value) and "nothing was changed" in str(error.value)
    assert _stored(readable, "SELECT url FROM webhook") == [URL]
    assert _stored(readable, "SELECT version_num FROM alembic_version") == ["0014"]
    assert not (tmp_path / "data").exists(), "no key is made where another one is needed"


def test_without_webhooks_no_key_is_needed(database: Database, tmp_path) -> None:
    url = database.url.render_as_string(hide_password=False)
    database.close()
    settings = Settings(database_url=url, data_dir=tmp_path / "data")
    migrate.downgrade_url(url, "0014", settings=settings)
    migrate.upgrade(settings)
    assert not (tmp_path / "data").exists()


def test_an_embedded_installation_is_migrated_with_its_key_file(sqlite_template, tmp_path) -> None:
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "featurewatch.db").write_bytes(sqlite_template.read_bytes())
    with closing(Database(settings.resolved_database_url)) as database:
        with database.write() as session:
            webhooks.create(session, settings, WebhookCreate(url=URL))
        migrate.downgrade_url(settings.resolved_database_url, "0014", settings=settings)
        migrate.upgrade(settings)
        with database.read() as session:
            (webhook,) = session.query(Webhook)
            opened = SecretBox(settings).decrypt(webhook.sealed_url, context=url_context(webhook.id))
    assert opened.decode() == URL


def test_check_says_what_to_do(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    settings = Settings(database_url=url)
    migrate.check(settings)
    with database.writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(migrate.SchemaError, match="newer version of featurewatch"):
        migrate.check(settings)
    with database.writer.begin() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
    with pytest.raises(migrate.SchemaError, match="featurewatch db upgrade"):
        migrate.check(settings)


def test_two_migrators_at_once_make_one_schema(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    database.close()
    migrate.downgrade_url(url, "base")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            migrate.upgrade_url(url)
        except BaseException as error:  # noqa: BLE001 - handed to the assertion below
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    migrate.check(Settings(database_url=url))


def test_a_migration_that_orphans_rows_is_undone(tmp_path) -> None:
    url = f"sqlite:///{tmp_path / 'orphan.db'}"
    migrate.upgrade_url(url)
    engine = create_engine(url)
    with engine.begin() as connection:  # a plain connection: foreign keys are off
        connection.execute(text("INSERT INTO bell (run_id, created_at) VALUES ('run_none', '2026-01-01 00:00:00')"))
    with pytest.raises(migrate.SchemaError, match="without parents"):
        migrate.upgrade_url(url)
