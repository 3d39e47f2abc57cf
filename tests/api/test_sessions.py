"""Signing out and revoking a key end sessions and event streams at once, on every process of the API."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
import uvicorn
from sqlalchemy import func, select

from featurewatch.service.app import create_app
from featurewatch.service.auth import logic as auth
from featurewatch.service.auth import queries
from featurewatch.service.config import Settings
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Database
from featurewatch.service.models import ApiKey, Run, WebSession
from featurewatch.workers.sweeps import Sweeper
from tests import factories
from tests.services import free_port, wait_until
from tests.web.conftest import token_of

ENDS = 20.0
"""Seconds in which a stream must end: it takes about one, and would go on for 15 minutes by itself."""


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """URL of a process of the API, but for the process."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), port=port, log_level="critical", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started, 20)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, secret_key="s" * 32, log_level="CRITICAL")


@pytest.fixture
def urls(settings: Settings) -> Iterator[list[str]]:
    """Two servers on one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(served(settings)) for _ in range(2)]


@pytest.fixture
def run_id(database: Database) -> str:
    """A run that does not end."""
    with database.write() as session:
        family = factories.family(session)
        run = Run(family_id=family.id, kind="onboard", state="queued", params={})
        session.add(run)
        session.flush()
        return run.id


def new_key(database: Database, scope: str = "read") -> tuple[str, str]:
    with database.write() as session:
        row, key = auth.create(session, name=scope, scopes=[scope])
        return row.id, key


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Tab:
    """A browser that signed in."""

    def __init__(self, url: str, key: str) -> None:
        self.client = httpx2.Client(base_url=url, headers={"Accept": "text/html"})
        self.send("/login", key=key)

    def send(self, path: str, **fields: str) -> httpx2.Response:
        """Send a form of a page."""
        page = self.client.get("/login" if path == "/login" else "/families")
        return self.client.post(path, data={"csrf": token_of(page.text), **fields})

    def signed_in(self, url: str | None = None) -> bool:
        """Whether its cookie opens a page, of another process too."""
        return self.client.get(f"{url or ''}/families").status_code == 200

    def copy(self) -> "Tab":
        """Another client with the same cookie."""
        other = object.__new__(Tab)
        other.client = httpx2.Client(base_url=self.client.base_url, headers={"Accept": "text/html"})
        other.client.cookies = httpx2.Cookies(self.client.cookies)
        return other


class Stream:
    """An event stream that is read in a thread until the server ends it."""

    def __init__(self, client: httpx2.Client, path: str) -> None:
        self.heard, self.ended, self.text = threading.Event(), threading.Event(), ""
        self._thread = threading.Thread(target=self._read, args=(client, path), daemon=True)
        self._thread.start()
        assert self.heard.wait(ENDS)

    def _read(self, client: httpx2.Client, path: str) -> None:
        with (
            suppress(httpx2.RemoteProtocolError),  # the server ended first
            client.stream("GET", path, headers={"Accept": "text/event-stream"}, timeout=60) as answer,
        ):
            for text in answer.iter_text():
                self.text += text
                if "event: progress" in self.text:
                    self.heard.set()
            self.ended.set()


def test_signing_out_ends_the_session_and_every_copy_of_its_cookie(urls, database) -> None:
    _, key = new_key(database)
    tab, other = Tab(urls[0], key), Tab(urls[0], key)
    thief = tab.copy()
    assert tab.signed_in() and thief.signed_in() and thief.signed_in(urls[1]), "a copy opens as much"
    assert tab.send("/logout").headers["location"] == "/login"
    for url in urls:
        assert not thief.signed_in(url), "not a moment longer, on no process"
    assert other.signed_in(), "another browser with the same key stays signed in"
    page = thief.client.get("/login").text
    assert "Sign out" not in page and "key" in page
    assert thief.client.post("/logout", data={"csrf": token_of(page)}).status_code == 303, (
        "signing out twice is not an error"
    )


def test_signing_in_again_ends_the_session_before(urls, database) -> None:
    _, key = new_key(database)
    tab = Tab(urls[0], key)
    before = tab.copy()
    page = tab.client.get("/families")
    assert tab.client.post("/login", data={"csrf": token_of(page.text), "key": key}).status_code == 303
    assert tab.signed_in() and not before.signed_in()


def test_revoking_a_key_ends_its_sessions_and_streams_everywhere(urls, database, run_id) -> None:
    key_id, key = new_key(database)
    _, admin = new_key(database, "admin")
    tab, rest = Tab(urls[0], key), Tab(urls[0], admin)
    paths = (
        (httpx2.Client(base_url=urls[0], headers=bearer(key)), f"/v1/runs/{run_id}/events"),
        (
            tab.client,
            f"/runs/{run_id}/events",
        ),
    )
    streams = [Stream(*path) for path in paths]
    others = [Stream(rest.client, f"/runs/{run_id}/events"),
              Stream(httpx2.Client(base_url=urls[0], headers=bearer(admin)), f"/v1/runs/{run_id}/events")]  # fmt: skip
    with httpx2.Client(base_url=urls[1], headers=bearer(admin)) as administrator:
        assert administrator.delete(f"/v1/keys/{key_id}").status_code == 204
    for url in urls:
        assert not tab.signed_in(url)
    for stream in streams:
        assert stream.ended.wait(ENDS)
        assert "has ended" in stream.text
    assert httpx2.get(f"{urls[0]}/v1/runs/{run_id}/events", headers=bearer(key)).status_code == 401
    assert rest.signed_in() and not any(stream.ended.is_set() for stream in others), "nobody else is disturbed"


def test_signing_out_ends_the_streams_of_that_browser_alone(urls, database, run_id) -> None:
    _, key = new_key(database)
    tab, other = Tab(urls[0], key), Tab(urls[0], key)
    stream, goes_on = (Stream(each.client, f"/runs/{run_id}/events") for each in (tab, other))
    copy = tab.copy()
    copy.client.base_url = urls[1]
    assert copy.send("/logout").status_code == 303
    assert stream.ended.wait(ENDS)
    assert not goes_on.ended.is_set()


def test_a_key_that_expires_ends_its_stream(urls, database, run_id) -> None:
    key_id, key = new_key(database)
    stream = Stream(httpx2.Client(base_url=urls[0], headers=bearer(key)), f"/v1/runs/{run_id}/events")
    with database.write() as session:
        session.get_one(ApiKey, key_id).expires_at = utcnow()
    assert stream.ended.wait(ENDS)


def test_sessions_that_are_over_are_forgotten(database, settings) -> None:
    key_id, _ = new_key(database)
    with database.write() as session:
        principal = auth.Principal(key_id, frozenset({"read"}))
        over, lasts = (auth.sign_in(session, principal) for _ in range(2))
        over.expires_at = utcnow() - timedelta(seconds=1)
        over_id, lasts_id = over.id, lasts.id
    with database.read() as session:
        assert auth.returning(session, over_id) is None, "also before it is swept"
        found = auth.returning(session, lasts_id)
        assert found is not None and (found.id, found.session_id) == (key_id, lasts_id)
        assert queries.key_of_session(session, key_id, utcnow()) is None, "cookies of before 0016 held the key's id"
    Sweeper(settings, database, publish=None).tidy()
    with database.read() as session:
        assert session.scalars(select(WebSession.id)).all() == [lasts_id]
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 1
