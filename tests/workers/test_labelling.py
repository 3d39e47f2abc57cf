"""Labels from an endpoint: a small HTTP server that answers as a model would, or as models and servers sometimes do."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from featurewatch.service.config import Settings
from featurewatch.service.families import logic as families
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.problems import ConflictError
from featurewatch.service.labels import logic as labels
from featurewatch.service.labels.schemas import LabelIn
from featurewatch.service.models import Code, Feature, Run
from featurewatch.service.runs import logic as runs
from featurewatch.workers.labels import endpoint as endpoints
from featurewatch.workers.pipelines import PIPELINES
from tests import factories
from tests.workers.conftest import Installation

KEY = "sk-very-secret-0123456789"
DOCUMENTS = 40
Reply = tuple[int, dict[str, str], Any]


class Model:
    """An endpoint that knows what "stop" means. `script`: what it answers first, in place of that."""

    def __init__(self) -> None:
        self.script: list[Reply | Callable[[], Reply]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    def reply(self, body: dict[str, Any]) -> Reply:
        self.asked.append(body)
        if self.script:
            first = self.script.pop(0)
            return first() if callable(first) else first
        question = body["messages"][-1]["content"]
        if not question.startswith("Description:"):
            return said('Let me think {it over}. {"label": "the word stop"}')
        lines = question.split("\n\n", 1)[1].splitlines()
        fits = [number for number, line in enumerate(lines, start=1) if "stop" in line]
        return said(f"```json\n{json.dumps({'fits': fits})}\n```")


def said(content: Any) -> Reply:
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": content}}]}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def server(model: Model) -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            model.keys.add(self.headers.get("Authorization"))
            status, headers, body = model.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the other side has gone: that is what is tested

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(settings: Settings, server: HTTPServer) -> Settings:
    return settings.model_copy(
        update={
            "label_url": f"http://127.0.0.1:{server.server_port}/v1/",
            "label_model": "small-1",
            "label_key": SecretStr(KEY),
            "label_allow": "127.0.0.1/32",
            "label_seconds": 30.0,
        }
    )


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "PAUSES", (0.01,))


@pytest.fixture(autouse=True)
def family(installation: Installation) -> None:
    """F0 fires on "stop", in 20 of 40 documents; F1 in one alone; F2 nowhere; F3 in all; F9, F10 in no code."""
    with installation.database.write() as session:
        family = factories.family(session)
        checkpoint = factories.checkpoint(session, family, "v1")
        changes = dict.fromkeys((2, 3, 9, 10), ("present", 0.0))
        changes |= {0: ("suppressed", 1.5), 1: ("absent", 3.0)}
        for number, (status, change) in changes.items():
            feature = factories.feature(session, family, number, checkpoint, promoted_tokens=[" now"])
            factories.verdict(session, checkpoint, feature, status, change=change)
        family.positions = positions(installation.artifacts, family.id)
        session.add(
            Code(
                checkpoint_id=checkpoint.id, family_id=family.id, generation=1, artifact=f"{family.id}/code",
                examples="none", n_positions=DOCUMENTS * 5, n_features=4, extra={},
            )
        )  # fmt: skip


def positions(artifacts: ArtifactStore, family_id: str) -> dict[str, Any]:
    """Documents of five words, every other one with "stop" as the third; and the code on them."""
    lines, document, start, end, rows, values = [], [], [], [], [], []
    for number in range(DOCUMENTS):
        words = ["then", "we", "stop" if number % 2 == 0 else "went", "at", f"place{number}"]
        lines.append(json.dumps({"id": number, "text": " ".join(words)}))
        at = 0
        for word in words:
            document.append(number)
            start.append(at)
            end.append(at + len(word))
            at += len(word) + 1
        latents = {0: float(number + 1)} if number % 2 == 0 else {}
        latents |= {1: 1.0} if number == 7 else {}
        rows += [[3], [], sorted(latents), [], []]
        values += [0.5, *(latents[one] for one in sorted(latents))]
    with factories.unrecorded(artifacts).create(f"{family_id}/documents.jsonl") as path:
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    places = {"document": document, "start": start, "end": end}
    factories.save(artifacts, f"{family_id}/positions", {key: np.array(value) for key, value in places.items()})
    tensors = {
        "indptr": np.cumsum([0, *map(len, rows)]),
        "indices": np.array([latent for row in rows for latent in row], np.int32),
        "values": np.array(values, np.float32),
        "feature_numbers": np.array([0, 1, 2, 3]),
        "born": np.zeros(4, bool),
    }
    factories.save(artifacts, f"{family_id}/code", tensors)
    return {"digest": "1", "count": len(document), "artifact": f"{family_id}/positions",
            "documents": f"{family_id}/documents.jsonl"}  # fmt: skip


def ask(installation: Installation, *features: str) -> str:
    with installation.database.write() as session:
        body = LabelIn(features=list(features) or None)
        return labels.create(session, families.get(session, "smol"), body)[0].id


def done(installation: Installation, *features: str) -> Run:
    run_id = ask(installation, *features)
    assert installation.run_next(pipelines=PIPELINES) == run_id
    return installation.run(run_id)


def feature(installation: Installation, number: int) -> Feature:
    with installation.database.read() as session:
        return session.query(Feature).filter_by(number=number).one()


def test_label_and_score(installation: Installation, model: Model) -> None:
    run = done(installation, "F0")
    assert (run.state, run.error) == ("succeeded", None)
    assert run.result == {"checkpoint": "v1", "model": "small-1", "labelled": 1, "scored": 1, "failed": []}
    found = feature(installation, 0)
    assert (found.model_label, found.model_label_by, found.label) == ("the word stop", "small-1", None)
    assert found.model_label_score == found.model_label_score_hi == 1.0
    assert 0.7 < (found.model_label_score_lo or 0) < 0.9
    assert model.keys == {f"Bearer {KEY}"}
    first, second = (one["messages"][-1]["content"] for one in model.asked)
    assert {one["model"] for one in model.asked} == {"small-1"}
    shown = first.partition("\n\n")[0].splitlines()
    assert len(shown) == 8
    assert shown[0] == "1. then we ⟦stop⟧ at place38"
    assert '" now"' in first
    held = second.partition("\n\n")[2].splitlines()
    assert len(held) == 20
    assert "⟦" not in second
    places = [{line.rpartition(" ")[2] for line in lines} for lines in (shown, held)]
    assert places[0].isdisjoint(places[1]), "what is scored on was not shown"
    assert 1 < sum("stop" in line for line in held[:10]) < 9, "mixed"


def test_what_has_no_score_and_what_has_no_label(installation: Installation, model: Model) -> None:
    run = done(installation, "F1", "F2", "F9", "F10", "F0")
    assert run.result is not None
    assert (run.result["labelled"], run.result["scored"]) == (2, 1)
    assert [(one["feature"], one["code"]) for one in run.result["failed"]] == [
        ("F2", "never-fires"), ("F9", "not-in-code"), ("F10", "not-in-code"),
    ]  # fmt: skip
    one = feature(installation, 1)
    assert (one.model_label, one.model_label_score) == ("the word stop", None)


def test_a_label_that_fits_nothing_scores_as_chance(installation: Installation, model: Model) -> None:
    model.script = [said('{"label": "cats"}'), said('{"fits": []}')]
    done(installation, "F0")
    found = feature(installation, 0)
    assert found.model_label_score == 0.5
    assert (found.model_label_score_lo or 0) < 0.5 < (found.model_label_score_hi or 0)


def test_which_features_by_default(installation: Installation, model: Model) -> None:
    with installation.database.write() as session:
        session.query(Feature).filter_by(number=2).one().watched = True
    run_id = ask(installation)
    assert installation.run(run_id).params["features"] == ["F2", "F1", "F0"]
    installation.run_next(pipelines=PIPELINES)
    with pytest.raises(ConflictError, match="Name the features"), installation.database.write() as session:
        session.query(Feature).filter_by(number=2).one().watched = False
        session.flush()
        labels.create(session, families.get(session, "smol"), LabelIn())


@pytest.mark.parametrize(
    "first",
    [
        (429, {"Retry-After": "0"}, {"error": "slow down"}),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"later"),
        (500, {}, b""),
        (200, {}, b"<html>"),
        (200, {}, {"choices": []}),
        said(None),
        said("I cannot say."),
        said('{"label": 7}'),
        said('{"label": " \\u200b"}'),
        (200, {}, b"x" * 100_000),
    ],
)
def test_what_is_asked_again(installation: Installation, model: Model, first: Reply) -> None:
    model.script = [first, first]
    run = done(installation, "F0")
    assert run.state == "succeeded", run.error
    assert feature(installation, 0).model_label == "the word stop"
    assert len(model.asked) == 4


@pytest.mark.parametrize("nonsense", ['{"fits": "all"}', '{"fits": [0]}', '{"fits": [21]}', '{"fits": [true]}', "[1]"])
def test_nonsense_for_one_feature(installation: Installation, model: Model, nonsense: str) -> None:
    model.script = [said('{"label": "x"}'), *[said(nonsense)] * endpoints.TRIES]
    run = done(installation, "F0", "F1")
    assert run.result is not None
    assert [(one["feature"], one["code"]) for one in run.result["failed"]] == [("F0", "label-nonsense")]
    assert run.result["labelled"] == 1
    assert feature(installation, 0).model_label is None


def test_a_slow_answer_is_asked_for_again(installation: Installation, model: Model) -> None:
    def late() -> Reply:
        time.sleep(1.5)
        return said('{"label": "late"}')

    model.script = [late]
    installation.settings = installation.settings.model_copy(update={"label_seconds": 1.0})
    assert done(installation, "F1").state == "succeeded"
    assert feature(installation, 1).model_label == "the word stop"


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_ends_the_run_and_is_told_nowhere(
    installation: Installation, model: Model, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = (status, {}, {"error": f"Incorrect API key provided: {KEY}"})
    answers = [said('{"label": "x"}'), said('{"fits": [1]}')]
    model.script = [*answers, refusal]
    run = done(installation, "F0", "F1", "F2")
    assert run.state == "failed"
    assert run.error is not None
    assert run.error["code"] == "label-key-refused"
    assert "1 of 3 features were labelled" in run.error["detail"]
    assert len(model.asked) == 3
    assert feature(installation, 0).model_label == "x", "what was there stays"
    captured = capsys.readouterr()
    assert KEY not in json.dumps(run.error) + captured.out + captured.err
    with installation.database.write() as session:
        runs.retry(session, session.get_one(Run, run.id))
    installation.run_next(pipelines=PIPELINES)
    again = installation.run(run.id)
    assert again.result is not None
    assert again.result["labelled"] == 2
    assert feature(installation, 0).model_label == "x", "it resumes, it does not start from scratch"


def test_a_run_that_is_interrupted_goes_on(installation: Installation, model: Model) -> None:
    run_id = ask(installation, "F0", "F1")
    installation.run_next(pipelines=PIPELINES, stop=lambda: len(model.asked) >= 2)
    assert installation.run(run_id).state == "queued"
    assert feature(installation, 0).model_label == "the word stop", "nothing is lost"
    installation.run_next(pipelines=PIPELINES)
    run = installation.run(run_id)
    assert (run.state, run.attempt, len(model.asked)) == ("succeeded", 2, 3)
    assert run.result is not None
    assert run.result["labelled"] == 2


def test_an_endpoint_that_stays_busy(installation: Installation, model: Model) -> None:
    model.script = [(429, {"Retry-After": "86400"}, {"error": f"quota of {KEY}"})] * 9
    run = done(installation, "F0", "F1")
    assert run.error is not None
    assert run.error["code"] == "label-endpoint-busy"
    assert "429" in run.error["detail"]
    assert KEY not in run.error["detail"]
    assert len(model.asked) == 2, "nobody waits for a day"
    assert "no feature was labelled" in run.error["detail"]
    run = done(installation, "F0", "F1", "F3", "F2")
    assert run.error is not None
    assert run.error["code"] == "label-endpoint-busy"
    assert "0 of 4 features were labelled" in run.error["detail"]
    assert len(model.asked) == 5, "three in a row are enough"


def test_nobody_there_and_not_allowed(settings: Settings, installation: Installation, server: HTTPServer) -> None:
    server.server_close()
    run = done(installation, "F0")
    assert run.error is not None
    assert run.error["code"] == "label-endpoint-unreachable"
    installation.settings = settings.model_copy(update={"label_allow": ""})
    run = done(installation, "F0")
    assert run.error is not None
    assert run.error["code"] == "label-address-refused"
    installation.settings = settings.model_copy(update={"label_url": ""})
    run = done(installation, "F0")
    assert run.error is not None
    assert run.error["code"] == "no-label-endpoint"
