"""Every operation of the OpenAPI document with made-up requests: valid ones, broken ones, and some to real rows.

schemathesis makes the requests and holds each answer against the document. `make fuzz` makes many more.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.python import asgi
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurewatch.service import migrate
from featurewatch.service.app import create_app
from featurewatch.service.auth import logic as auth
from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.crypto import SecretBox
from featurewatch.service.kit.db import Database
from tests import filled
from tests.filled import VALUES
from tests.services import Postgres

EXAMPLES = int(os.environ.get("FEATUREWATCH_TEST_FUZZ_EXAMPLES", "2"))
"""For each operation. Over 10: the document's corner cases too, and other requests each time."""
THE_SAME = EXAMPLES <= 10
"""Whether it makes the same requests each time."""
OPEN = ("/healthz", "/readyz")
ALLOWED = {"none": set(), "read": {"read"}, "write": {"read", "write"}, "admin": {"read", "write", "admin"}}


class Counted:
    """The application under test, which changes with the database, and a count of its answers."""

    app: ASGIApp
    answers: Counter[int]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answers[message["status"]] += 1
            await send(message)

        await self.app(scope, receive, counting)


Keys = dict[str, dict[str, str]]
SPARE_FAMILY = {"dictionary": "spare_family", "probability": 0.8}
CONFIG = {
    "dictionaries": {name: {"values": values} for name, values in VALUES.items()},
    "parameters": {name: {"dictionary": name, "probability": 0.8} for name in VALUES},
    "generation": {
        "mode": "all",
        "deterministic": THE_SAME,
        "database": "none",
        "with-security-parameters": False,
    },
    # What JSON Schema cannot say is refused with these; `nothing_that_the_document_allows` looks closer.
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ["2XX", "400", "401", "403", "404", "409", "422"]},
        "negative_data_rejection": {
            "expected-statuses": ["400", "401", "403", "404", "405", "406", "409", "413", "422"]
        },
    },
    "phases": {"coverage": {"enabled": EXAMPLES > 10}},
    # `labels` could be a feature too, as far as the router knows, so that path has the methods of both.
    "operations": [
        {
            "include-path": "/v1/families/{family}/features/labels",
            "checks": {"allow_header_conformance": {"enabled": False}},
        },
        *(
            {"include-path": path, "include-method": "DELETE", "parameters": parameters}
            for path, parameters in (
                ("/v1/families/{family}", {"family": SPARE_FAMILY}),
                ("/v1/families/{family}/checkpoints/{name}", {"family": SPARE_FAMILY}),
                ("/v1/runs/{run_id}", {"run_id": {"dictionary": "spare_run", "probability": 0.8}}),
            )
        ),
    ],
    "max-stream-events": 1,
    "base-url": f"http://{asgi.HOST}",
}
schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=schemathesis.Config.from_dict(CONFIG))
schema.app = target = Counted()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def keys(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    """Headers of a caller with each scope; the application is the real one, over a filled database."""
    folder = tmp_path_factory.mktemp("fuzz")
    postgres: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgres" else None
    name = postgres.create() if postgres else ""
    settings = Settings(
        data_dir=folder,
        database_url=postgres.database_url(name) if postgres else "",
        secret_key="a secret of this test",
        roots=str(folder),
        requests_per_minute=0,
        log_level="CRITICAL",
    )
    migrate.upgrade(settings)
    database = Database(settings.resolved_database_url)
    with database.write() as session:
        filled.fill(session, ArtifactStore(settings.artifacts_uri, folder / "cache"), SecretBox(settings))
        made = {scope: auth.create(session, name=scope, scopes=[scope])[1] for scope in auth.SCOPES}
    database.close()
    target.app, target.answers = create_app(settings), Counter()
    yield {"none": {}} | {scope: {"Authorization": f"Bearer {key}"} for scope, key in made.items()}
    asgi.shutdown_lifespans()
    if postgres:
        postgres.drop(name)
    sys.stderr.write(
        f"\n{request.param}: {target.answers.total():,} requests, {dict(sorted(target.answers.items()))}\n"
    )


def needed(case: schemathesis.Case) -> str | None:
    """The scope that an operation asks for, as docs/api.md says; None: it is open."""
    if case.path in OPEN:
        return None
    of_a_family = case.path == "/v1/families/{family}"
    if case.path.startswith(("/v1/keys", "/v1/audit")) or (of_a_family and case.method == "DELETE"):
        return "admin"
    return "read" if case.method == "GET" else "write"


@schema.parametrize()
@settings(max_examples=EXAMPLES, derandomize=THE_SAME, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_operation(case: schemathesis.Case, keys: Keys) -> None:
    asked = needed(case)
    for scope, allowed in ALLOWED.items():
        if asked and asked not in allowed and case.method == case.operation.method.upper():
            refused = case.call(headers=keys[scope])
            assert refused.status_code == (401 if scope == "none" else 403), f"{scope}: {refused.text}"
    right = keys[asked or "none"]
    response = case.call(headers=right)
    case.validate_response(
        response,
        headers=right,
        transport_kwargs={"headers": right},
        additional_checks=[nothing_that_the_document_allows],
    )


def nothing_that_the_document_allows(_ctx: object, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """A valid request is never refused for what the document could have said: only by validators of our own."""
    if case.meta and case.meta.generation.mode == schemathesis.GenerationMode.POSITIVE and response.status_code == 422:
        faults = {fault["code"] for fault in response.json().get("errors") or []}
        assert faults <= {"value_error"}, response.text
