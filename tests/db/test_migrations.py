"""The migrations make exactly the tables of the models, on both engines, and can be undone."""

import threading

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from service import migrate
from service.config import Settings
from service.kit import clock
from service.kit.db import Database
from service.models import Alert, AlertRule, Base, Webhook
from service.verdicts import queries
from tests import factories


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
        hook = Webhook(id="whk_1", url="https://example.com", event_types=[], secret=b"", paused_at=clock.utcnow())
        session.add(hook)
        session.flush()
        session.add(
            Alert(kind="webhook_paused", key="webhook_paused:whk_1", webhook_id="whk_1", summary="", evidence=[])
        )
    database.close()
    migrate.downgrade_url(url, "0007")
    database.close()
    migrate.upgrade_url(url)
    with database.read() as session:
        assert [rule.id for rule in session.query(AlertRule)] == ["rul_watched"], "0007 knows no absence"
        (alert,) = session.query(Alert)
        assert (alert.id, alert.kind, alert.key) == ("alt_watched", "watched", f"watched:rul_watched:{checkpoint.id}")
        assert session.query(Webhook.format).scalar() == "standard"


def test_check_says_what_to_do(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    settings = Settings(database_url=url)
    migrate.check(settings)
    with database.writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(migrate.SchemaError, match="newer featurewatch"):
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
    with pytest.raises(migrate.SchemaError, match="without their parents"):
        migrate.upgrade_url(url)
