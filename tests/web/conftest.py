"""A filled installation shared by the page tests, on each database, and signed-in browsers."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.app import create_app
from featurewatch.service.auth import logic as auth
from featurewatch.service.config import Settings
from featurewatch.service.kit.db import Database
from tests.services import Postgres
from tests.web.filled import fill

BASE = "http://localhost"
SECRET = "s" * 32


@dataclass
class Browser:
    """A client that keeps cookies and submits forms like a browser."""

    client: TestClient
    key: str = ""
    token: str = field(default="")

    def get(self, path: str, **options):
        return self.client.get(path, headers={"accept": "text/html", **options.pop("headers", {})}, **options)

    def page(self, path: str) -> str:
        """The HTML of a page, which must exist."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def send(self, path: str, fields: dict[str, str | list[str]] | None = None, *, token: str | None = None, **headers):
        """Submit a form with its CSRF token."""
        token = self.token if token is None else token
        return self.client.post(
            path, data={"csrf": token, **(fields or {})}, headers={"accept": "text/html", **headers}
        )

    def sign_in(self, target: str = "/families"):
        self.token = token_of(self.page(f"/login?next={target}"))
        answer = self.send("/login", {"key": self.key, "next": target})
        if answer.status_code == 303:
            self.token = token_of(self.page("/families"))
        return answer


def token_of(text: str) -> str:
    """The CSRF token of the first form on a page."""
    match = re.search(r'name="csrf" value="([^"]+)"', text)
    assert match, text
    return match[1]


@dataclass
class Installation:
    """A filled service with a key for each scope."""

    settings: Settings
    client: TestClient
    keys: dict[str, str]

    @property
    def database(self) -> Database:
        return self.client.app.state.database

    def browser(self, scope: str | None, base: str = BASE) -> Browser:
        """A new browser, signed in if a scope is given."""
        client = TestClient(self.client.app, base_url=base, follow_redirects=False)
        browser = Browser(client, self.keys.get(scope or "", ""))
        if scope is not None:
            assert browser.sign_in().status_code == 303
        return browser

    def new_key(self, scope: str) -> tuple[str, str]:
        """(id, key) of a key that a test may revoke."""
        with self.database.write() as session:
            row, key = auth.create(session, name=f"a {scope} key", scopes=[scope])
            return row.id, key


@pytest.fixture(scope="session")
def filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder of a filled SQLite installation, for copying."""
    folder = tmp_path_factory.mktemp("filled-")
    fill(Settings(data_dir=folder, secret_key=SECRET))
    return folder


@contextmanager
def open_installation(settings: Settings) -> Iterator[Installation]:
    with TestClient(create_app(settings), base_url=BASE, follow_redirects=False) as client:
        installation = Installation(settings, client, {})
        installation.keys |= {scope: installation.new_key(scope)[1] for scope in ("read", "write", "admin")}
        yield installation


@pytest.fixture(scope="module")
def filled(filled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """On SQLite. Tests share it, so each writes only to rows that no other test uses."""
    folder = tmp_path_factory.mktemp("pages-") / "data"
    shutil.copytree(filled_folder, folder)
    with open_installation(Settings(data_dir=folder, secret_key=SECRET, log_level="ERROR")) as installation:
        yield installation


@pytest.fixture(scope="module")
def on_postgres(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A smaller one on Postgres, for the statements that only pages make."""
    name = postgres.create()
    url, folder = postgres.database_url(name), tmp_path_factory.mktemp("pages-postgres-")
    settings = Settings(data_dir=folder, database_url=url, secret_key=SECRET, log_level="ERROR")
    fill(settings, n_features=120)
    with open_installation(settings) as installation:
        yield installation
    postgres.drop(name)
