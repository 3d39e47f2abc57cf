"""`featurewatch key rotate-secret`: nothing that is encrypted is lost, and running processes go on."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.app import create_app
from featurewatch.service.config import Settings
from featurewatch.service.kit.crypto import KEY_FILE, OLD_KEY_FILE, SecretBox, SecretKeyError, replace_key_file
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Webhook
from featurewatch.service.models.webhook import url_context
from featurewatch.service.webhooks import logic as webhooks
from featurewatch.service.webhooks.schemas import RotateBody, WebhookCreate, WebhookUpdate
from tests.cli.live import within

URL = "https://hooks.example/services/token"
EARLIER, LATER = "the key of before; long enough", "the key that comes after it"


@pytest.fixture
def embedded(tmp_path: Path, sqlite_template: Path) -> Settings:
    (tmp_path / "featurewatch.db").write_bytes(sqlite_template.read_bytes())
    return Settings(data_dir=tmp_path, require_keys=False, log_level="ERROR")


@pytest.fixture
def embedded_database(embedded: Settings) -> Iterator[Database]:
    database = Database(embedded.resolved_database_url)
    yield database
    database.close()


def register(database: Database, settings: Settings) -> tuple[str, str]:
    """Id and secret of a webhook, which has an older secret beside it."""
    with database.write() as session:
        webhook, _ = webhooks.create(session, settings, WebhookCreate(url=URL))
        return webhook.id, webhooks.rotate(session, settings, webhook, RotateBody())


def opened(database: Database, box: SecretBox) -> list[bytes]:
    """Everything that is encrypted; SecretKeyError where the box opens it not."""
    with database.write() as session:
        return [part.plain for part in webhooks.unsealed(session, box)]


def rotate(**environment: str) -> dict:
    settings = {f"FEATUREWATCH_{name.upper()}": value for name, value in environment.items()}
    done = within("key", "rotate-secret", "--json", env=settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_embedded_installation_goes_on_while_its_key_is_replaced(embedded, embedded_database) -> None:
    with TestClient(create_app(embedded), base_url="http://localhost", follow_redirects=False) as client:
        made = client.post("/v1/webhooks", json={"url": URL}).json()
        running = SecretBox(embedded)
        with embedded_database.read() as session:
            sealed = session.get_one(Webhook, made["id"]).sealed_url
        key = (embedded.data_dir / KEY_FILE).read_text()
        done = rotate(data_dir=str(embedded.data_dir))
        assert (done["encrypted"], done["changed"]) == (2, 2)
        assert (embedded.data_dir / KEY_FILE).read_text() != key
        assert (embedded.data_dir / KEY_FILE).stat().st_mode & 0o777 == 0o600
        assert not (embedded.data_dir / OLD_KEY_FILE).exists()
        with pytest.raises(SecretKeyError):
            running.decrypt(sealed, context=url_context(made["id"]))
        assert opened(embedded_database, running) == [URL.encode(), made["secret"].encode()]
        other = client.post("/v1/webhooks", json={"url": URL}).json()
        assert opened(embedded_database, SecretBox(embedded))[2:] == [URL.encode(), other["secret"].encode()]
    assert key.encode() not in b"".join(path.read_bytes() for path in embedded.data_dir.rglob("*") if path.is_file())


def test_a_rotation_that_broke_off_is_finished_by_the_next(embedded, embedded_database) -> None:
    _, secret = register(embedded_database, embedded)
    box = SecretBox(embedded)
    replace_key_file(embedded)
    replace_key_file(embedded)
    assert len((embedded.data_dir / OLD_KEY_FILE).read_text().split()) == 2
    assert (embedded.data_dir / OLD_KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert secret.encode() in opened(embedded_database, box), "old and new are valid in between"
    register(embedded_database, embedded)
    assert rotate(data_dir=str(embedded.data_dir))["changed"] == 6
    assert not (embedded.data_dir / OLD_KEY_FILE).exists()
    assert secret.encode() in opened(embedded_database, SecretBox(embedded))


def test_nothing_is_lost_to_writers_beside_a_rotation(embedded, embedded_database) -> None:
    """A request that took the old key and stores what it encrypted after the rotation would lose it."""
    webhook_id, _ = register(embedded_database, embedded)
    stop, faults, written = threading.Event(), list[BaseException](), list[str]()

    def write() -> None:
        try:
            while not stop.is_set():
                with embedded_database.write() as session:
                    webhook = webhooks.get(session, webhook_id)
                    webhooks.change(session, embedded, webhook, WebhookUpdate(url=f"{URL}/{len(written)}"))
                    secret = webhooks.rotate(session, embedded, webhook, RotateBody(hours=0))
                written.append(secret)
                opened(embedded_database, SecretBox(embedded))
        except BaseException as error:  # noqa: BLE001 - handed to the assertion below
            faults.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        before = len(written)
        rotate(data_dir=str(embedded.data_dir))
        while len(written) == before and not faults:
            stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert opened(embedded_database, SecretBox(embedded))[1].decode() in written


def test_a_key_in_the_environment_is_rotated(database: Database, database_url: str, tmp_path: Path) -> None:
    before = Settings(database_url=database_url, secret_key=EARLIER)
    between = Settings(
        database_url=database_url, secret_key=LATER, secret_key_old=f"a key that nothing uses, {EARLIER}"
    )
    after = Settings(database_url=database_url, secret_key=LATER)
    _, secret = register(database, before)
    register(database, between)
    plain = opened(database, SecretBox(between))
    assert secret.encode() in plain and len(plain) == 6
    with pytest.raises(SecretKeyError, match="FEATUREWATCH_SECRET_KEY_OLD"):
        opened(database, SecretBox(after))
    environment = {"database_url": database_url, "data_dir": str(tmp_path / "data"), "secret_key": LATER}
    refused = within("key", "rotate-secret", env={f"FEATUREWATCH_{k.upper()}": v for k, v in environment.items()})
    assert refused.returncode == 2 and "FEATUREWATCH_SECRET_KEY_OLD" in refused.stderr
    environment["secret_key_old"] = EARLIER
    assert [rotate(**environment)["changed"] for _ in range(2)] == [3, 0]
    assert opened(database, SecretBox(after)) == plain
    said = within("key", "rotate-secret", env={f"FEATUREWATCH_{k.upper()}": v for k, v in environment.items()}).stderr
    assert "remove FEATUREWATCH_SECRET_KEY_OLD" in said.replace("\n", " ")
    assert EARLIER not in said and LATER not in said


def test_an_installation_without_its_key_is_told(database_url: str, tmp_path: Path) -> None:
    done = within("key", "rotate-secret", env={"FEATUREWATCH_DATABASE_URL": database_url,
                                               "FEATUREWATCH_DATA_DIR": str(tmp_path / "none")})  # fmt: skip
    assert done.returncode == 2 and "FEATUREWATCH_SECRET_KEY" in done.stderr
    with pytest.raises(SecretKeyError, match="too short"):
        SecretBox(Settings(secret_key=LATER, secret_key_old="short"))
