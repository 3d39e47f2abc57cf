"""Both clients against a live server over a filled database: every operation of the API, all that it can be sent, every
answer's shape.
"""

import asyncio
import importlib.util
import inspect
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

import httpx2 as httpx
import pytest
from pydantic import TypeAdapter
from typing_extensions import is_typeddict

from featurewatch.service.app import create_app
from featurewatch.service.client import AsyncClient, Client
from featurewatch.service.config import Settings
from tests import filled

WITHOUT_A_METHOD = {
    ("GET", "/metrics"): "text for Prometheus, which asks for it itself",
}
ELSE = {
    "register", "report_text", "trajectory", "sources", "examples", "code_ids", "diff", "download_codes",
    "download_dictionary", "download_table", "progress",
}  # fmt: skip
"""What answers with a part of the document's shape, with more than it, or with a file."""
ROWS = [{"positive": f"a lie {number}", "negative": f"the truth {number}"} for number in range(20)]


def calls(number: int, folder: Path) -> dict[str, Callable[[Any], Any]]:
    """A call of every method; `number` keeps what one client deletes away from the other."""
    rule, alert, hook, delivery, key, signature = (
        ids[number]
        for ids in (filled.RULES, filled.ALERTS, filled.WEBHOOKS, filled.DELIVERIES, filled.KEYS, filled.SIGNATURES)
    )
    queued, failed, done = filled.RUN_IDS[0], filled.RUN_IDS[4], filled.RUN_IDS[3]
    return {
        "families": lambda c: c.families(),
        "family": lambda c: c.family("smol"),
        "create_family": lambda c: c.create_family(f"new-{number}", ["resid_post.1"], policy={"fdr": 0.01}),
        "checkpoints": lambda c: c.checkpoints("smol", state="judged"),
        "checkpoint": lambda c: c.checkpoint("smol", "v2"),
        "register": lambda c: c.register(f"new-{number}", name="v1", uri="hf://org/model@v1", metadata={"by": "ci"}),
        "report": lambda c: c.report("smol", "v2", min_change=1),
        "report_text": lambda c: c.report_text("smol", "v2", format="markdown"),
        "calibrate": lambda c: c.calibrate("smol", checkpoint="v1", nulls=["halves"], splits=2 + number),
        "calibrations": lambda c: c.calibrations("smol"),
        "calibration": lambda c: c.calibration("smol", filled.RUN_IDS[1]),
        "create_signature": lambda c: c.create_signature("smol", f"lies-{number}", rows=ROWS, baseline="v1"),
        "signatures": lambda c: c.signatures("smol"),
        "signature": lambda c: c.signature("smol", signature),
        "signature_trajectory": lambda c: c.signature_trajectory("smol", signature),
        "delete_signature": lambda c: c.delete_signature("smol", signature),
        "features": lambda c: c.features("smol", checkpoint="v2", status=["suppressed", "replaced"]),
        "feature": lambda c: c.feature("smol", "F1"),
        "update_feature": lambda c: c.update_feature("smol", "F1", label="a lie", tags=["deception"], watched=True),
        "trajectory": lambda c: c.trajectory("smol", "F1"),
        "sources": lambda c: c.sources("smol", "F1"),
        "examples": lambda c: c.examples("smol", "F0", limit=3),
        "label": lambda c: c.label("smol", features=["F0"], checkpoint="v2"),
        "find_dependencies": lambda c: c.find_dependencies("smol", "v2", ["F0"], method="relp"),
        "dependencies": lambda c: c.dependencies("smol", "F5", checkpoint="v2", baseline="v1"),
        "diff": lambda c: c.diff("smol", "v1", "v2", sort="q_value"),
        "compare": lambda c: c.compare("smol", "v1", "v2", limit=2),
        "lineage": lambda c: c.lineage("smol", generation=2),
        "download_codes": lambda c: c.download_codes("smol", folder / f"codes-{number}.npz"),
        "download_dictionary": lambda c: c.download_dictionary(
            "smol", "v2", folder / f"{number}.safetensors", hook_point="resid_post.12"
        ),
        "download_table": lambda c: c.download_table("smol", "verdicts", folder / f"{number}.parquet"),
        "code_ids": lambda c: c.code_ids("smol", checkpoint="v2"),
        "neuronpedia": lambda c: c.neuronpedia("smol", passages=1),
        "neuronpedia_feature": lambda c: c.neuronpedia_feature("smol", "F0"),
        "runs": lambda c: c.runs(family="smol", state="queued"),
        "run": lambda c: c.run(queued),
        "attempts": lambda c: c.attempts(done),
        "log": lambda c: c.log(done, attempt=1, level="warning", after=1),
        "progress": lambda c: c.progress(done),
        "wait": lambda c: c.wait(done, timeout=5),
        "retry": lambda c: c.retry(failed),
        "cancel": lambda c: c.cancel(failed),
        "webhooks": lambda c: c.webhooks(),
        "create_webhook": lambda c: c.create_webhook("https://hooks.example.com/x", event_types=["run.failed"]),
        "webhook": lambda c: c.webhook(hook),
        "update_webhook": lambda c: c.update_webhook(hook, event_types=["run.failed"], enabled=True),
        "rotate_secret": lambda c: c.rotate_secret(hook, hours=1),
        "test_webhook": lambda c: c.test_webhook(hook),
        "deliveries": lambda c: c.deliveries(hook, state="pending"),
        "delivery": lambda c: c.delivery(hook, delivery),
        "redeliver": lambda c: c.redeliver(hook, delivery),
        "delete_webhook": lambda c: c.delete_webhook(hook),
        "alert_rules": lambda c: c.alert_rules(family="smol"),
        "create_alert_rule": lambda c: c.create_alert_rule("mine", {"kind": "watched"}, family="smol", enabled=False),
        "alert_rule": lambda c: c.alert_rule(rule),
        "update_alert_rule": lambda c: c.update_alert_rule(rule, enabled=False),
        "alerts": lambda c: c.alerts(family="smol", checkpoint="v2", rule=rule),
        "alert": lambda c: c.alert(alert),
        "acknowledge": lambda c: c.acknowledge(alert),
        "mute": lambda c: c.mute(alert, until=datetime.now(UTC) + timedelta(hours=2)),
        "reopen": lambda c: c.reopen(alert),
        "resolve": lambda c: c.resolve(alert),
        "delete_alert_rule": lambda c: c.delete_alert_rule(rule),
        "keys": lambda c: c.keys(),
        "create_key": lambda c: c.create_key("made", ["read"]),
        "key": lambda c: c.key(key),
        "revoke_key": lambda c: c.revoke_key(key),
        "audit": lambda c: c.audit(),
        "delete_run": lambda c: c.delete_run(filled.SPARE_RUNS[number]),
        "delete_checkpoint": lambda c: c.delete_checkpoint(f"new-{number}", "v1", reparent=True),
        "delete_family": lambda c: c.delete_family(f"new-{number}"),
        "health": lambda c: c.health(),
        "readiness": lambda c: c.readiness(),
    }  # fmt: skip


async def _answer(found: Any) -> Any:
    if isinstance(found, Awaitable):
        return await found
    return [row async for row in found] if isinstance(found, AsyncIterator) else found


def answered(client: type, url: str, number: int, folder: Path) -> dict[str, tuple[Any, list[tuple[str, str]]]]:
    """What each method answers, and the requests that it sent."""
    sent: list[tuple[str, str]] = []
    found: dict[str, tuple[Any, list[tuple[str, str]]]] = {}

    def note(request: Any) -> None:
        sent.append((request.method, request.url.path))

    async def anote(request: Any) -> None:
        note(request)

    def keep(name: str, answer: Any) -> None:
        found[name] = answer, sent.copy()
        sent.clear()

    def synchronous() -> None:
        with Client(url) as client:
            client._http.event_hooks["request"].append(note)
            for name, call in calls(number, folder).items():
                answer = call(client)
                keep(name, list(answer) if isinstance(answer, Iterator) else answer)

    async def asynchronous() -> None:
        async with AsyncClient(url) as client:
            client._http.event_hooks["request"].append(anote)
            for name, call in calls(number, folder).items():
                keep(name, await _answer(call(client)))

    synchronous() if client is Client else asyncio.run(asynchronous())
    return found


def template_of(path: str, paths: list[str]) -> str:
    """The document's path that a request's path belongs to; one without parameters goes first."""
    fitting = [one for one in paths if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", one), path)]
    return min(fitting, key=lambda one: one.count("{"))


def shape_of(operation: dict[str, Any]) -> str:
    """The client's name of what an operation answers with; of a list, its rows; `NoneType` where there is nothing."""
    answer = next(about for status, about in operation["responses"].items() if status < "300")
    schema = answer.get("content", {}).get("application/json", {}).get("schema")
    if schema is None:
        return "NoneType"
    return str(client_code().name_of(schema["$ref"].rpartition("/")[2].removeprefix("Page_").removesuffix("_")))


def body_of(operation: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The parts of an operation's body, each with its schema; empty where there is no body."""
    shape = next(client_code().referred(operation.get("requestBody", {})), None)
    return schemas[shape]["properties"] if shape else {}


def all_sent(client: type, name: str, places: int, parts: dict[str, Any]) -> dict[str, Any]:
    """The body that a method sends when it is given every part of it, behind so many parameters of its path."""
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json={})

    caller = client("http://127.0.0.1")
    kind = httpx.Client if client is Client else httpx.AsyncClient
    caller._http = kind(base_url=caller.url, transport=httpx.MockTransport(answer))
    # The client looks at no value but a time: a word stands for any other.
    values = {part: datetime.now(UTC) if "date-time" in str(about) else "x" for part, about in parts.items()}
    asyncio.run(_answer(getattr(caller, name)(*["x"] * places, **values)))
    return bodies[0]


def shapes_in(kind: Any) -> set[str]:
    """Names of the dictionaries with known keys that a type is made of."""
    return {kind.__name__} if is_typeddict(kind) else set[str]().union(*map(shapes_in, get_args(kind)))


def check_body(client: type, name: str, places: int, parts: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Behind its path's parameters a method takes the parts of its body and nothing else, sends each of them, and
    knows the keys of dictionaries. No method is excepted.
    """
    kinds = dict(list(get_type_hints(getattr(client, name)).items())[places:-1])  # the last one is what it answers
    assert set(kinds) == set(parts), name
    assert set(all_sent(client, name, places, parts)) == set(parts), name
    for part, about in parts.items():
        shapes = {one for one in client_code().referred(about) if "properties" in schemas[one]}
        assert shapes_in(kinds[part]) == set(map(client_code().name_of, shapes)), f"{name}: {part}"


@cache
def client_code() -> ModuleType:
    """The script of `make docs` that names the client's types."""
    path = Path(__file__).parents[2] / "docs" / "client_code.py"
    spec = importlib.util.spec_from_file_location("client_code", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("client", "number"), [(Client, 0), (AsyncClient, 1)], ids=["sync", "async"])
def test_every_operation_has_a_method(client: type, number: int, filled_url: str, tmp_path: Path) -> None:
    document = create_app(Settings(data_dir=tmp_path)).openapi()
    paths, schemas = document["paths"], document["components"]["schemas"]
    operations = {(m.upper(), path): about for path, item in paths.items() for m, about in item.items()}
    found = answered(client, filled_url, number, tmp_path)
    public = {name for name, value in inspect.getmembers(client, inspect.isfunction) if name[0] != "_"}
    transport = {"pages", "json", "events", "download", "send", "close", "aclose"}
    assert set(found) == public - transport, "a method without a call here"

    reached = set()
    for name, (answer, sent) in found.items():
        wanted = get_type_hints(getattr(client, name))["return"]
        if get_origin(wanted) in (Iterator, AsyncIterator):
            wanted, rows = get_args(wanted)[0], answer
            assert rows or name == "attempts", f"{name} has nothing to show its shape by"
        else:
            rows = [answer]
        TypeAdapter(list[wanted]).validate_python(rows, strict=True)  # type: ignore[valid-type]
        operation = sent[0][0], template_of(sent[0][1], list(paths))
        reached.add(operation)
        if name not in ELSE:
            assert wanted.__name__ == shape_of(operations[operation]), name
        asked = {one["name"] for one in operations[operation].get("parameters", []) if one["in"] == "query"}
        taken = {parameter.rstrip("_") for parameter in inspect.signature(getattr(client, name)).parameters}
        assert asked - {"limit", "cursor", "format"} <= taken or name in ("run", "report_text"), (
            f"{name}: {asked - taken}"
        )
        if parts := body_of(operations[operation], schemas):
            check_body(client, name, operation[1].count("{"), parts, schemas)
    assert set(operations) - reached == set(WITHOUT_A_METHOD)
