"""Both clients against a server that answers as a script says."""

import asyncio
import email.utils
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from featurewatch.service.client import ApiError, AsyncClient, Client, ClientError, UnreachableError, WaitTimeoutError
from tests.services import free_port

RUN = {"id": "run_1", "state": "running", "stage": "fit", "progress": 0.5, "detail": {}}


class Script(ThreadingHTTPServer):
    """Answers one request after the other from `answers`: (status, headers, JSON), or None to break the connection."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], Any] | None] = []
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Script

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, self.path, headers, json.loads(body) if body else None))
        answer = self.server.answers.pop(0)
        if answer is None:
            self.connection.close()
            return
        status, extra, document = answer
        text = json.dumps(document).encode()
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Script]:
    with Script() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Caller:
    """A client of either kind, whose calls are waited for and whose lists are read to their end."""

    def __init__(self, kind: type, url: str, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = kind(url, "fw_secret", **options)
        self.waited: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.client, AsyncClient):
            self.runner.run(self.client.aclose())
        else:
            self.client.close()
        self.runner.close()

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: self.runner.run(self._call(name, given, named))

    async def _call(self, name: str, given: Any, named: Any) -> Any:
        found = getattr(self.client, name)(*given, **named)
        if isinstance(found, AsyncIterator):
            return [row async for row in found]
        if isinstance(found, Iterator):
            return list(found)
        return await found if isinstance(found, Awaitable) else found

    def note_pauses(self) -> list[float]:
        """How long it would wait, from now on."""

        async def note(seconds: float) -> None:
            self.waited.append(seconds)

        self.client.pause = note if isinstance(self.client, AsyncClient) else self.waited.append
        return self.waited


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def url(server: Script) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def client(kind: type, url: str) -> Iterator[Caller]:
    with Caller(kind, url) as client:
        yield client


def test_pages_are_followed_to_the_end(server: Script, client: Caller) -> None:
    server.answers = [
        (200, {}, {"data": [{"id": "F1"}], "next_cursor": "abc"}),
        (200, {}, {"data": [{"id": "F2"}], "next_cursor": None}),
    ]
    rows = client.features("a family", checkpoint="v2", status=["absent", "replaced"], watched=True)
    assert [row["id"] for row in rows] == ["F1", "F2"]
    first, second = (path for _, path, _, _ in server.requests)
    assert first.startswith("/v1/families/a%20family/features?")
    assert "status=absent&status=replaced" in first
    assert "watched=true" in first
    assert "cursor" not in first
    assert "cursor=abc" in second
    assert server.requests[0][2]["authorization"] == "Bearer fw_secret"


@pytest.mark.parametrize("trouble", [(503, {"Retry-After": "0"}, {}), (429, {}, {}), (502, {}, {}), None])
def test_a_passing_trouble_is_waited_out(server: Script, client: Caller, trouble: Any) -> None:
    server.answers = [trouble, trouble, (200, {}, RUN)]
    client.note_pauses()
    assert client.run("run_1")["stage"] == "fit"
    assert len(server.requests) == 3


def test_a_repeated_post_has_the_same_idempotency_key(server: Script, client: Caller) -> None:
    server.answers = [None, (202, {}, RUN), (202, {}, RUN)]
    client.note_pauses()
    client.cancel("run_1")
    client.cancel("run_1")
    first, second, third = (headers["idempotency-key"] for _, _, headers, _ in server.requests)
    assert first == second != third


def test_retry_after_is_kept(server: Script, client: Caller) -> None:
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.answers = [(429, {"Retry-After": "20"}, {}), (503, {"Retry-After": soon}, {}), (200, {}, RUN)]
    waited = client.note_pauses()
    client.run("run_1")
    assert waited[0] == 20.0
    assert 25.0 < waited[1] <= 30.0


def test_who_is_to_come_back_much_later_is_told_at_once(server: Script, client: Caller) -> None:
    server.answers = [(503, {"Retry-After": "3600"}, {"title": "Not available now", "detail": "an upgrade"})]
    with pytest.raises(ApiError, match="an upgrade"):
        client.run("run_1")


def test_a_problem_document_becomes_an_error(server: Script, client: Caller) -> None:
    problem = {"title": "Not found", "code": "not-found", "detail": "There is no family x.", "status": 404}
    server.answers = [(404, {"Content-Type": "application/problem+json"}, problem)]
    with pytest.raises(ApiError, match=r"Not found: There is no family x\.") as caught:
        client.family("x")
    assert (caught.value.status, caught.value.code) == (404, "not-found")
    assert len(server.requests) == 1


def test_an_error_that_is_no_problem_document(server: Script, client: Caller) -> None:
    server.answers = [(418, {}, ["what?"])]
    with pytest.raises(ApiError) as caught:
        client.family("x")
    assert caught.value.status == 418


def test_trouble_that_stays_is_told(server: Script, kind: type, url: str) -> None:
    server.answers = [(503, {}, {"title": "Not available now", "code": "unavailable", "detail": "d"})] * 2
    with Caller(kind, url, retries=1) as client, pytest.raises(ApiError) as caught:
        client.family("x")
    assert caught.value.status == 503


def test_nothing_answers(kind: type) -> None:
    with Caller(kind, f"http://127.0.0.1:{free_port()}", retries=1) as client, pytest.raises(UnreachableError):
        client.family("x")


def test_a_url_without_scheme_is_refused(kind: type) -> None:
    with pytest.raises(ClientError, match="http://"):
        kind("localhost:8000")


def test_waiting_sees_every_state_and_ends(server: Script, client: Caller) -> None:
    server.answers = [(200, {}, RUN | {"state": state}) for state in ("queued", "running", "failed")]
    seen: list[str] = []
    run = client.wait("run_1", on_progress=lambda run: seen.append(run["state"]), interval=0.01)
    assert seen == ["queued", "running", "failed"]
    assert run["state"] == "failed"


def test_waiting_has_an_end(server: Script, client: Caller) -> None:
    server.answers = [(200, {}, RUN)] * 100
    with pytest.raises(WaitTimeoutError, match="still running") as caught:
        client.wait("run_1", timeout=0.1, interval=0.02)
    assert caught.value.run["id"] == "run_1"


def test_a_broken_download_leaves_nothing(server: Script, client: Caller, tmp_path: Path) -> None:
    server.answers = [(404, {}, {"title": "Not found", "detail": "no code yet"})]
    with pytest.raises(ApiError):
        client.download_codes("x", tmp_path / "codes.npz")
    assert list(tmp_path.iterdir()) == []
